"""One file a command: argparse, free of torch until a command runs."""
