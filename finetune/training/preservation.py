"""Keeps towers near the base on random texts and pictures, so that learning a table forgets nothing else."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from finetune.core import processes
from finetune.core.types import Batch, Texts
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.embed import embed_image_features, embed_text_features
from finetune.model.base import Base
from finetune.model.lora import TowerLora
from finetune.model.towers import AlignTowers
from finetune.training.random_pictures import draw_picture
from finetune.training.random_texts import draw_texts, list_words

_TEXTS = 1024
"""Texts that are drawn once; a step takes the next few of them, and then the first again."""

_IMAGES = 512
"""The same of images."""


@dataclass(frozen=True)
class TextPreservation:
    """Holds the text tower to what the base makes of random texts, so that learning a table's texts forgets no others.

    Each step embeds some texts beside those of the batch, and adds to its loss

        weight * mean over these texts of (1 - cosine(text_features, the base's text_features))

    It is distillation of features on reference data (ZSCL, Zheng et al. 2023, arXiv 2303.06628; after LwF, Li and Hoiem
    2016, arXiv 1606.09282) without the data: a text is one to four words, drawn from the tokenizer's vocabulary. The
    base embeds them once, at the first step.

    Args:
        weight: How much a distance counts in the loss, of which 1 is a right angle.
        texts: How many texts a step embeds, over all processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    weight: float = 10.0
    texts: int = 8

    def __post_init__(self) -> None:
        _require_weight(self.weight, "text_preservation")
        _require_count("texts", self.texts, _TEXTS)


@dataclass(frozen=True)
class ImagePreservation:
    """Holds the image tower to what the base makes of random pictures, so that learning a table's images forgets no
    others.

    As `TextPreservation`, with pictures of overlapping shapes (Baradad et al. 2021, arXiv 2106.05963) as large as the
    images of the batch.

    Args:
        weight: How much a distance counts in the loss, of which 1 is a right angle.
        images: How many pictures a step embeds, over all processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    weight: float = 1.0
    images: int = 8

    def __post_init__(self) -> None:
        _require_weight(self.weight, "image_preservation")
        _require_count("images", self.images, _IMAGES)


def require_fixed_statistics(images: ImagePreservation | None, image_lora: TowerLora | None) -> None:
    """Refuses pictures that would change what is normalised by.

    Args:
        images: How the image tower is preserved, if it is.
        image_lora: What is trained of it.

    Raises:
        ValueError: If statistics follow the batch.
    """
    if images and image_lora and image_lora.train_statistics:
        raise ValueError(
            "Expected image_preservation to be null with image_lora.train_statistics, but got both: the statistics "
            "would follow the random pictures, too. Remove one of them."
        )


def preserve(
    base: Base, images: ImagePreservation | None, texts: TextPreservation | None
) -> "dict[str, PreservedImages | PreservedTexts]":
    """Returns what is preserved, by the name of the tower.

    Args:
        base: What both towers are held to.
        images: How the image tower is preserved, if it is.
        texts: How the text tower is preserved, if it is.

    Raises:
        CheckpointError: As `PreservedTexts`.
    """
    preserved: dict[str, PreservedImages | PreservedTexts] = {}
    if images:
        preserved["image"] = PreservedImages(base, images)
    if texts:
        preserved["text"] = PreservedTexts(base, texts)
    return preserved


class PreservedTexts:
    """Random texts, and what a base makes of them, which is asked once, when a distance is.

    Args:
        base: The base.
        how: How many texts a step embeds, and what their distance weighs.

    Raises:
        CheckpointError: If the base's tokenizer has no vocabulary of words.
    """

    def __init__(self, base: Base, how: TextPreservation) -> None:
        self.how = how
        encoder = TextEncoder.from_processor(base.processor())
        encoded = encoder.pad(encoder.encode_all(draw_texts(list_words(encoder, base.name), _TEXTS)))
        self._texts = Texts(*map(torch.from_numpy, encoded))
        self._base = base
        self._features: Tensor | None = None

    def distance(self, towers: AlignTowers, batch: Batch, step: int) -> Tensor:  # noqa: ARG002
        """Returns how far the text tower has moved on some of the texts, a scalar in [0, 2].

        Where processes share them, it is this one's part, of which the mean over the processes is the distance.

        Args:
            towers: The towers.
            batch: The step's, not used.
            step: The number of the step, from 0, which says which texts.
        """
        device = towers.temperature.device
        if self._features is None:
            base = AlignTowers(self._base.load()).to(device)
            self._features = embed_text_features(base, self._texts, device).to(device)
        places = _places(self.how.texts, step, _TEXTS)
        mask = self._texts.attention_mask[places]
        kept = mask.any(dim=0)  # no further than the longest of these texts, on whichever side the padding is
        features = towers.text_features(self._texts.input_ids[places][:, kept].to(device), mask[:, kept].to(device))
        return _mean_distance(features, self._features[places.to(device)], self.how.texts)


class PreservedImages:
    """Random pictures, and what a base makes of them, which is asked once, when a distance is.

    Args:
        base: The base.
        how: How many pictures a step embeds, and what their distance weighs.
    """

    def __init__(self, base: Base, how: ImagePreservation) -> None:
        self.how = how
        self._base = base
        self._pictures = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        self._features = torch.empty(0)

    def distance(self, towers: AlignTowers, batch: Batch, step: int) -> Tensor:
        """Returns how far the image tower has moved on some of the pictures, see `PreservedTexts.distance`.

        Args:
            towers: The towers.
            batch: The step's; pictures are as large as its images.
            step: The number of the step, from 0, which says which pictures.
        """
        device, side = towers.temperature.device, batch.pixel_values.shape[-1]
        if self._pictures.shape[-1] != side:
            base = AlignTowers(self._base.load(), levels=self._base.levels).to(device)
            drawn = np.stack([draw_picture(number, side) for number in range(_IMAGES)])
            self._pictures = torch.from_numpy(drawn)
            self._features = embed_image_features(base, self._pictures, device).to(device)
        places = _places(self.how.images, step, _IMAGES)
        features = towers.image_features(self._pictures[places].to(device))
        return _mean_distance(features, self._features[places.to(device)], self.how.images)


def _places(count: int, step: int, among: int) -> Tensor:
    """The places of a step's texts or pictures that are this process's."""
    return ((torch.arange(count) + step * count) % among)[processes.rank() :: processes.count()]


def _mean_distance(features: Tensor, before: Tensor, count: int) -> Tensor:
    distances = 1 - cosine_similarity(features.float(), before)
    return distances.sum() * (processes.count() / count)


def _require_weight(weight: float, key: str) -> None:
    if not 0 < weight < float("inf"):
        raise ValueError(
            f"Expected weight to be positive and finite, but got {weight}. To preserve nothing, set model.{key} to "
            "null."
        )


def _require_count(key: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ValueError(f"Expected {key} to be in [1, {most}], but got {count}.")
