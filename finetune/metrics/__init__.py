"""Retrieval and classification figures from embeddings, scores and ids.

All but average precision treat ties in one way (see `Placement`): a collapsed model, which scores everything the same,
gets exactly the figures of guessing. R@K is a hit rate: the share of queries with at least one correct item among the K
best.

Import from the files. This one imports none of them: those that keep state need torchmetrics, which takes seconds.
"""
