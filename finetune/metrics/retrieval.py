"""Images retrieve texts and texts images: ranks and hit rates."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from finetune.core.types import Answers
from finetune.metrics.row_metric import RowMetric, require
from finetune.metrics.search import TILE, Found, Items, search_both_ways
from finetune.metrics.statistics import Figure, MeanOfMeans, Median, mean


class Search(NamedTuple):
    """What the rows' images and captions find of each other.

    Attributes:
        image_to_text: What each distinct image finds among the distinct captions.
        text_to_image: What each distinct caption finds among the distinct images.
        rows: Number of its image and of its caption in each row, int64 of shape (N, 2).
        images: The first row of each distinct image, in the order of the ids.
        captions: The first row of each distinct caption, likewise.
    """

    image_to_text: Found
    text_to_image: Found
    rows: Tensor
    images: Tensor
    captions: Tensor


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
        tile: Images, and captions, compared at a time, see `search_both_ways`.

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

    def __init__(self, tile: int = TILE) -> None:
        super().__init__()
        self.tile = tile
        self._searched: tuple[list[Tensor], Search] | None = None
        for name in ("image_embeds", "text_embeds", "image_ids", "caption_ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor, caption_ids: Tensor) -> None:
        """Takes in a batch of rows, whose features are kept as they are. Of equal ids the first counts.

        Args:
            image_embeds: Float tensor of shape (B, D), normalised here.
            text_embeds: Float tensor of shape (B, D), normalised here.
            image_ids: Int64 tensor of shape (B,), equal for equal images.
            caption_ids: Int64 tensor of shape (B,), equal for equal captions.
        """
        self.image_embeds.append(image_embeds.detach())
        self.text_embeds.append(text_embeds.detach())
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
        found = self.search()
        placements = {"image_to_text": found.image_to_text.placement, "text_to_image": found.text_to_image.placement}
        groups = dict(zip(placements, _belonging_together(found.rows), strict=True))
        hits = {f"{way}/R@{k}": placement.hits(k) for way, placement in placements.items() for k in (1, 5, 10)}
        units = [groups[name.split("/")[0]] for name in hits]
        rates = torch.arange(len(hits), device=found.rows.device)
        all_hits = MeanOfMeans(
            torch.cat([*hits.values()]),
            torch.cat(units),
            rates.repeat_interleave(torch.tensor([*map(len, units)], device=found.rows.device)),
        )
        return {
            **{name: mean(values) for name, values in hits.items()},
            **{f"{way}/median_rank": Median(placement.ranks()) for way, placement in placements.items()},
            self.headline: all_hits,
        }

    def search(self) -> Search:
        """Compares all images with all captions, once for the rows so far.

        Raises:
            ValueError: If a feature is not finite.
        """
        ids = [*self.image_ids] if isinstance(self.image_ids, list) else [self.image_ids]  # a tensor between processes
        if self._searched is None or [*map(id, self._searched[0])] != [*map(id, ids)]:
            images, image_index = _first_of_each(dim_zero_cat(self.image_ids))
            captions, caption_index = _first_of_each(dim_zero_cat(self.caption_ids))
            rows = torch.stack([image_index, caption_index], dim=1)
            found = search_both_ways(
                Items(_whole(self.image_embeds), images), Items(_whole(self.text_embeds), captions), rows, self.tile
            )
            self._searched = ids, Search(*found, rows, images, captions)
        return self._searched[1]


def _whole(parts: list[Tensor] | Tensor) -> Tensor:
    """The parts as one tensor, which takes their place, as memory would not hold both; a whole one as it is."""
    if isinstance(parts, Tensor):
        return parts
    if len(parts) > 1:
        parts[:] = [torch.cat(parts)]
    return parts[0]


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
