"""Types, errors and files that every other folder shares."""
