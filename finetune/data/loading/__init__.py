"""Loads rows as batches: rows in a reproducible, resumable order, each a sample as the model reads it.

Other folders use `ImageTextDataModule` (`loading.datamodule`), `TableKind` (`loading.kinds`) and the samplings
(`loading.sampling`).
"""
