"""Images retrieve texts and texts images: ranks and hit rates, a chunk of queries at a time."""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.utilities import dim_zero_cat

from finetune.core.types import Answers
from finetune.metrics.ranking import TIE, Placement, place
from finetune.metrics.row_metric import RowMetric, require
from finetune.metrics.statistics import Figure, MeanOfMeans, Median, mean

_WAYS = ("image_to_text", "text_to_image")


def retrieval_placements(
    query_embeds: Tensor, gallery_embeds: Tensor, pairs: Tensor, chunk_size: int = 256
) -> Placement:
    """Finds where the best correct item of each query stands.

    Memory is of the order of chunk_size x G. Similarities are taken in float32, also under autocast.

    Args:
        query_embeds: Unit vectors of shape (Q, D).
        gallery_embeds: Unit vectors of shape (G, D).
        pairs: Int64 tensor of shape (P, 2): query index and gallery index of each correct pair, in any order,
            repetitions allowed. Each query has one or more.
        chunk_size: Queries compared at a time, at least 1.

    Raises:
        ValueError: If a query has no correct item, or an embedding is not finite.
    """
    _require_finite("query_embeds", query_embeds)
    _require_finite("gallery_embeds", gallery_embeds)
    pairs = torch.unique(pairs, dim=0)
    counts = torch.bincount(pairs[:, 0], minlength=len(query_embeds))
    if not counts.all():
        lonely = int((counts == 0).nonzero()[0])
        raise ValueError(f"Expected each query to have a correct item, but got none for query {lonely}.")
    # One block for the results: small tensors kept between large ones fragment the heap (by 1.3 GB for
    # 25,000 captions).
    found = torch.empty(3, len(query_embeds), dtype=torch.int64, device=query_embeds.device)
    ends = counts.cumsum(0)
    for start in range(0, len(query_embeds), chunk_size):
        own = slice(start, start + chunk_size)
        correct = pairs[int(ends[start] - counts[start]) : int(ends[own][-1])]
        with torch.autocast(query_embeds.device.type, enabled=False):
            similarities = query_embeds[own].float() @ gallery_embeds.float().T
        found[:, own] = torch.stack(place(similarities, correct[:, 0] - start, correct[:, 1], TIE))
    return Placement(*found)


def retrieval_ranks(query_embeds: Tensor, gallery_embeds: Tensor, pairs: Tensor, chunk_size: int = 256) -> Tensor:
    """Returns the rank, from 1, of the best-placed correct item of each query, float shape (Q,).

    Arguments and errors are those of ``retrieval_placements``; ties count as in ``Placement.ranks``.

    Example:
        >>> circle = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> retrieval_ranks(circle[:2], circle, torch.tensor([[0, 0], [1, 2]]))
        tensor([1., 3.])
    """
    return retrieval_placements(query_embeds, gallery_embeds, pairs, chunk_size).ranks()


class Retrieval(RowMetric):
    """Hit rates and median ranks of image-to-text and text-to-image retrieval.

    CLIP_benchmark and the Karpathy splits measure the same. Queries and galleries are the distinct images and the
    distinct captions; an image and a caption are correct for each other when they share a row. So the several
    captions of an image are several queries, and any of them is a hit for the image. A caption that stands on
    several rows is one query and one item: its text has but one embedding and one ranking, so counting it
    again would only weigh it by its frequency. Where no caption repeats, or where each row has a caption id of
    its own (`merge_equal_captions: false` in the data module), the figures are exactly the field's. Rows that a
    distributed sampler repeats to fill a batch change nothing.

    Args:
        chunk_size: Queries compared with the whole gallery at a time.

    Raises:
        ValueError: If the chunk size is below 1.

    Example:
        >>> metric = Retrieval()
        >>> ids = torch.arange(4)
        >>> metric.update(torch.eye(4), torch.eye(4)[[0, 1, 3, 2]], ids, ids)
        >>> float(metric.compute()["image_to_text/R@1"])
        0.5
    """

    headline = "mean_R@K"
    image_embeds: list[Tensor]
    text_embeds: list[Tensor]
    image_ids: list[Tensor]
    caption_ids: list[Tensor]

    def __init__(self, chunk_size: int = 256) -> None:
        super().__init__()
        if chunk_size < 1:
            raise ValueError(f"Expected chunk_size to be at least 1, but got {chunk_size}.")
        self.chunk_size = chunk_size
        for name in ("image_embeds", "text_embeds", "image_ids", "caption_ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor, caption_ids: Tensor) -> None:
        """Takes in a batch of rows. Of equal ids the first embedding counts.

        Args:
            image_embeds: Float tensor of shape (B, D), normalised here.
            text_embeds: Float tensor of shape (B, D), normalised here.
            image_ids: Int64 tensor of shape (B,), equal for equal images.
            caption_ids: Int64 tensor of shape (B,), equal for equal captions.
        """
        self.image_embeds.append(normalize(image_embeds.detach().float(), dim=-1))
        self.text_embeds.append(normalize(text_embeds.detach().float(), dim=-1))
        self.image_ids.append(image_ids)
        self.caption_ids.append(caption_ids)

    def observe(self, answers: Answers) -> None:
        """Takes in the features of a batch of rows, see `update`."""
        image_features = require(answers.image_features, "image_features")
        text_features = require(answers.text_features, "text_features")
        self.update(image_features, text_features, answers.image_ids, answers.caption_ids)

    def compute(self) -> dict[str, Tensor]:
        """Returns R@1, R@5, R@10 and median rank of both directions, and the mean of the six hit rates.

        Keys: ``image_to_text/R@1``, ``image_to_text/R@5``, ``image_to_text/R@10``,
        ``image_to_text/median_rank``, the same under ``text_to_image/``, and ``mean_R@K`` ("rsum" / 6).
        """
        return {name: figure.point_estimate() for name, figure in self.figures().items()}

    def figures(self) -> dict[str, Figure]:
        """Returns the metrics of ``compute`` as figures that a bootstrap can draw from.

        Units are the queries, in the order of their ids. A unit of ``mean_R@K`` is a group of images and captions that
        belong together: what shares a row with one of them is drawn with it.
        """
        images, captions, pairs = self._numbered()
        placements = self._placements(images, captions, pairs)
        groups = dict(zip(_WAYS, _belonging_together(pairs), strict=True))
        hits = {f"{way}/R@{k}": placements[way].hits(k) for way in _WAYS for k in (1, 5, 10)}
        units = [groups[name.split("/")[0]] for name in hits]
        rates = torch.arange(len(hits), device=pairs.device)
        all_hits = MeanOfMeans(
            torch.cat([*hits.values()]),
            torch.cat(units),
            rates.repeat_interleave(torch.tensor([*map(len, units)], device=pairs.device)),
        )
        return {
            **{name: mean(values) for name, values in hits.items()},
            **{f"{way}/median_rank": Median(placements[way].ranks()) for way in _WAYS},
            self.headline: all_hits,
        }

    def ranks(self) -> dict[str, Tensor]:
        """Returns where the best correct item of each query stands, by direction, in the same order.

        See ``Placement.ranks``.
        """
        return {name: placement.ranks() for name, placement in self._placements(*self._numbered()).items()}

    def _numbered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the first row of each image, that of each caption, and their numbers in each row, shape (N, 2)."""
        images, image_index = _first_of_each(dim_zero_cat(self.image_ids))
        captions, caption_index = _first_of_each(dim_zero_cat(self.caption_ids))
        return images, captions, torch.stack([image_index, caption_index], dim=1)

    def _placements(self, images: Tensor, captions: Tensor, pairs: Tensor) -> dict[str, Placement]:
        image_embeds = dim_zero_cat(self.image_embeds)[images]
        text_embeds = dim_zero_cat(self.text_embeds)[captions]
        return {
            "image_to_text": retrieval_placements(image_embeds, text_embeds, pairs, self.chunk_size),
            "text_to_image": retrieval_placements(text_embeds, image_embeds, pairs.flip(1), self.chunk_size),
        }


def _belonging_together(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the group of each image and of each caption; pairs connect the members of a group.

    Args:
        pairs: Int64 tensor of shape (P, 2), numbers of images and of captions, each of which occurs.
    """
    rows = pairs.cpu().numpy()
    images, captions = rows.max(axis=0) + 1
    links = (np.ones(len(rows)), (rows[:, 0], images + rows[:, 1]))
    graph = coo_array(links, shape=(images + captions, images + captions))
    groups = torch.as_tensor(connected_components(graph, directed=False)[1], dtype=torch.int64, device=pairs.device)
    return groups[:images], groups[images:]


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first position of each distinct id, and for each row the number of its id among them."""
    distinct, index = torch.unique(ids, return_inverse=True)
    positions = torch.arange(len(ids), device=ids.device)
    first = torch.full_like(distinct, len(ids)).scatter_reduce(0, index, positions, "amin")
    return first, index


def _require_finite(name: str, embeds: Tensor) -> None:
    """Refuses NaN, which would pass as a perfect score: nothing compares above it."""
    broken = int((~embeds.isfinite()).any(1).sum())
    if broken:
        raise ValueError(f"Expected {name} to be finite, but {broken} of {len(embeds)} rows are not.")
