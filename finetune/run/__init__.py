"""The files of a run, and what is written in them."""
