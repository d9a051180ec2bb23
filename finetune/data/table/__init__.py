"""Reads a table: files become cells, cells become columns, splits and filters, and these become `Rows`.

Other folders use `Table`, `RandomSplit` and `CaptionList` (`table.table`), `Rows` (`table.rows`), `SPLITS`
(`table.splits`), `name_tables` (`table.retention`) and the array types of `table.cells`. Nothing here needs torch.
"""
