"""The commands, a file for each: argparse only, free of torch until one of them runs."""
