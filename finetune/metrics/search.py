"""One pass over the similarities of all images and texts says what either finds, a tile at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.metrics.precision import full_float32
from finetune.metrics.ranking import TIE, Placement

TILE = 2048
"""Images, and texts, that are compared at a time: 16 MiB of similarities, whatever the number of either."""


@dataclass(frozen=True)
class Items:
    """Items to be compared, some rows of a tensor, which is not copied.

    Args:
        features: Float tensor of shape (N, D), normalised here, a part at a time.
        rows: Int64 tensor of shape (I,), the row of each item.
    """

    features: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def embeds(self, chosen: slice | Tensor) -> Tensor:
        """Returns the unit vectors of some items, float32."""
        return normalize(self.features.index_select(0, self.rows[chosen]).float(), dim=-1)

    def count_broken(self) -> int:
        """Returns how many items have a number that is not finite."""
        parts = (self.features[part] for part in self.rows.split(TILE))
        return sum(int((~part.isfinite()).any(1).sum()) for part in parts)


class Found(NamedTuple):
    """What Q queries find.

    Attributes:
        placement: Where the best correct item of each stands.
        nearest: The most similar item, int64 of shape (Q,).
        similarity: Its cosine similarity, float32 of shape (Q,).
    """

    placement: Placement
    nearest: Tensor
    similarity: Tensor


def search_both_ways(images: Items, texts: Items, pairs: Tensor, tile: int = TILE) -> tuple[Found, Found]:
    """Finds what images find among texts, and texts among images.

    Both are read off the same similarities, in float32 (see `full_float32`). Memory beside the items is that of a tile.

    Args:
        images: The images.
        texts: The texts.
        pairs: Int64 tensor of shape (P, 2): image and text of each correct pair, in any order, repetitions allowed.
            Each image and each text has one or more.
        tile: Images and texts compared at a time, at least 1.

    Returns:
        What the images find, and what the texts find.

    Raises:
        ValueError: If an image or a text has no correct partner, or a feature is not finite.
    """
    for name, items in (("image", images), ("text", texts)):
        if broken := items.count_broken():
            raise ValueError(f"Expected {name} features to be finite, but {broken} of {len(items)} rows are not.")
    pairs = _sort(pairs, len(texts))
    with full_float32(pairs.device):
        by_image, by_text = _start(images, texts, pairs)
        for rows, columns, similarities, correct, space in _tiles(images, texts, pairs, tile):
            by_image.take_in(rows, similarities, correct[:, 0], correct[:, 1], columns.start, space)
            by_text.take_in(columns, similarities.T, correct[:, 1], correct[:, 0], rows.start, space.T)
    return by_image.found(), by_text.found()


class _Side:
    """Counts for the queries of one direction, tile by tile."""

    def __init__(self, best: Tensor) -> None:
        self.lowest, self.highest = best - TIE, best + TIE
        self.better, self.tied, self.tied_correct, self.nearest = torch.zeros(
            4, len(best), dtype=torch.int64, device=best.device
        )
        self.similarity = torch.full_like(best, -torch.inf)

    def take_in(self, own: slice, scores: Tensor, queries: Tensor, items: Tensor, first: int, counts: Tensor) -> None:
        """Takes in a tile.

        Args:
            own: The queries of the tile.
            scores: Their similarities with the items of the tile, shape (Q, G).
            queries: The query of each correct pair in the tile, counted from the tile's first.
            items: Likewise the item.
            first: Number of the tile's first item.
            counts: Space of the shape and layout of the scores.
        """
        lowest, highest = self.lowest[own], self.highest[own]
        # Comparisons as floats: their sums are exact below 2 ** 24, and several times faster than those of booleans.
        self.better[own] += torch.gt(scores, highest[:, None], out=counts).sum(1).long()
        self.tied[own] += torch.ge(scores, lowest[:, None], out=counts).sum(1).long()
        is_tied = (scores[queries, items] >= lowest[queries]).to(self.tied.dtype)
        self.tied_correct[own].index_add_(0, queries, is_tied)
        nearer = (scores.amax(1) > self.similarity[own]).nonzero()[:, 0]
        best = scores.index_select(0, nearer).max(1)
        self.similarity[own][nearer], self.nearest[own][nearer] = best.values, best.indices + first

    def found(self) -> Found:
        tied_wrong = self.tied - self.better - self.tied_correct
        return Found(Placement(self.better, self.tied_correct, tied_wrong), self.nearest, self.similarity)


def _sort(pairs: Tensor, texts: int) -> Tensor:
    """Each pair once, ordered by image, then by text."""
    keys = torch.unique(pairs[:, 0] * texts + pairs[:, 1])
    return torch.stack([keys // texts, keys % texts], dim=1)


def _start(images: Items, texts: Items, pairs: Tensor) -> tuple[_Side, _Side]:
    """Either side, which needs the best correct score of each query beforehand."""
    best = [torch.full((len(items),), -torch.inf, device=pairs.device) for items in (images, texts)]
    for part in pairs.split(TILE):
        scores = (images.embeds(part[:, 0]) * texts.embeds(part[:, 1])).sum(1)
        for side, of_pairs in zip(best, part.T, strict=True):
            side.scatter_reduce_(0, of_pairs, scores, "amax")
    for name, side in zip(("image", "text"), best, strict=True):
        lonely = (side == -torch.inf).nonzero()[:, 0].tolist()
        if lonely:
            raise ValueError(f"Expected each {name} to have a correct partner, but got none for {name} {lonely[0]}.")
    return _Side(best[0]), _Side(best[1])


def _tiles(
    images: Items, texts: Items, pairs: Tensor, tile: int
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Yields which images, which texts, their similarities, the correct pairs counted from the tile's first, and space.

    Similarities and space are used again for the next tile: fresh memory would cost more than the comparisons.
    """
    space = torch.empty(2, min(tile, len(images)) * min(tile, len(texts)), device=pairs.device)
    for rows in _slices(len(images), tile):
        own = pairs[(pairs[:, 0] >= rows.start) & (pairs[:, 0] < rows.stop)]
        own = own[own[:, 1].argsort()]
        counts = torch.bincount(own[:, 1] // tile, minlength=-(-len(texts) // tile)).tolist()
        image_embeds = images.embeds(rows)
        for columns, correct in zip(_slices(len(texts), tile), own.split(counts), strict=True):
            text_embeds = texts.embeds(columns)
            here = space[:, : len(image_embeds) * len(text_embeds)].view(2, len(image_embeds), len(text_embeds))
            similarities = torch.mm(image_embeds, text_embeds.T, out=here[0])
            yield rows, columns, similarities, correct - correct.new_tensor([rows.start, columns.start]), here[1]


def _slices(count: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, count)) for start in range(0, count, tile)]
