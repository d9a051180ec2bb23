"""Fetches tables and shards that lie elsewhere into a bounded folder, from which they are read like any other.

Other folders use `is_remote`, `check_remote` (`remote.places`), `find_remote` (`remote.patterns`), and `open_store`
(`remote.store`).
"""
