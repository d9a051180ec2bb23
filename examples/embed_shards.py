"""Vectors of tar shards, a file of each; processes started together share them. First: `finetune prepare digits`."""

from finetune import embed, prepare, read_vectors

prepare("shard", "--table", "data/digits/digits.csv", "--label", "label", "--samples", "500")
made = embed("align-mini", "data/shards/*.tar", "vectors", float16=True)
print(f"{made.tally.rows} images in {made.tally.parts} of {made.parts} parts, {made.tally.rate:.0f} a second")
found = read_vectors("vectors")
print(found.vectors.shape, found.vectors.dtype, found.values[0])
