"""Finds what is wrong or doubtful with a table before, and unreadable images while, a model sees it.

Other folders use `check_table` and `read_settings` (`checks.check`), `find_concerns` (`checks.concerns`) and the
skipped rows of `checks.unreadable`. Nothing here needs torch.
"""
