"""The report of a run: one page that opens anywhere, from the files of the run's folder and the images of its table."""
