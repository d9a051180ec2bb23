"""Training rows to look at."""
