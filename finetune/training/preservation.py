"""Keeps towers near the base on random texts and pictures, so that learning a table forgets nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from finetune.core import processes
from finetune.core.types import Texts
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.embed import embed_image_features, embed_text_features
from finetune.model.base import Base
from finetune.model.layers import IMAGE, TEXT
from finetune.model.lora import TowerLora
from finetune.model.towers import AlignTowers
from finetune.training.random_pictures import draw_picture
from finetune.training.random_texts import draw_texts, list_words

_TEXTS = 1024
"""Texts that are drawn once; a step takes the next few of them, and then the first again."""

_IMAGES = 512
"""Most pictures that are drawn once, likewise."""


@dataclass(frozen=True)
class TextPreservation:
    """Holds the text tower to what the base makes of random texts, so that learning a table's texts forgets no others.

    Each step embeds some texts beside those of the batch, and adds to its loss

        weight * mean over these texts of (1 - cosine(text_features, the base's text_features))

    It is distillation of features on reference data (ZSCL, Zheng et al. 2023, arXiv 2303.06628; after LwF, Li and Hoiem
    2016, arXiv 1606.09282) without the data: a text is one to four words, drawn from the tokenizer's vocabulary. The
    base embeds all texts once, at the first step.

    Args:
        weight: Factor of the mean distance, 1 - cosine, in the loss.
        texts: How many texts a step embeds, over all processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    weight: float = 2.0
    texts: int = 8

    def __post_init__(self) -> None:
        _require_weight(self.weight, "text_preservation")
        _require_count("texts", self.texts, _TEXTS)


@dataclass(frozen=True)
class ImagePreservation:
    """Holds the image tower to what the base makes of random pictures, so that learning images forgets no others.

    As `TextPreservation`, with pictures of overlapping shapes (Baradad et al. 2021, arXiv 2106.05963) as large as the
    images of the first batch.

    Args:
        weight: Factor of the mean distance, 1 - cosine, in the loss.
        images: How many pictures a step embeds, over all processes.

    Raises:
        ValueError: If a number is out of its range.
    """

    weight: float = 1.0
    images: int = 8

    def __post_init__(self) -> None:
        _require_weight(self.weight, "image_preservation")
        _require_count("images", self.images, _IMAGES)


@dataclass(frozen=True)
class Reference:
    """Texts or pictures, and the features that the base gives them.

    Args:
        tower: `image` or `text`.
        weight: Factor of the distance in the loss.
        count: How many of them a step embeds, over all processes.
        embed: Embeds those at the places that it is given, with the towers that it is given.
        features: Float tensor of shape (N, D), the base's, on the CPU.
    """

    tower: str
    weight: float
    count: int
    embed: Callable[[AlignTowers, Tensor], Tensor]
    features: Tensor

    def distance(self, towers: AlignTowers, number: int) -> Tensor:
        """Returns how far the tower has moved on some of them, the mean of 1 - cosine: a scalar in [0, 2].

        Where processes share them, it is this one's part, of which the mean over the processes is the distance.

        Args:
            towers: The towers.
            number: The number of the batch, from 0, which says which of them.
        """
        places = (torch.arange(self.count) + number * self.count) % len(self.features)
        own = places[processes.rank() :: processes.count()]
        features = self.embed(towers, own)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        distances = 1 - cosine_similarity(features, self.features[own].to(features.device))
        return distances.sum() * (processes.count() / self.count)


class Preservation:
    """What both towers are held to while a task is trained.

    Args:
        base: The base.
        images: How the image tower is preserved; None where it is not.
        texts: How the text tower is preserved; None where it is not.

    Attributes:
        references: Of each preserved tower, between `start` and `stop`.

    Raises:
        CheckpointError: If the base's tokenizer has no vocabulary of words.
    """

    def __init__(self, base: Base, images: ImagePreservation | None, texts: TextPreservation | None) -> None:
        self.references: list[Reference] = []
        self._base = base
        self._images = images
        self._texts = texts
        self._tokens = None if texts is None else _draw_tokens(base)

    @property
    def towers(self) -> tuple[str, ...]:
        """The names of the towers that are preserved."""
        held = ((IMAGE.name, self._images), (TEXT.name, self._texts))
        return tuple(name for name, how in held if how is not None)

    @property
    def images_per_step(self) -> int:
        """How many pictures this process embeds in a step at most."""
        return 0 if self._images is None else -(-self._images.images // processes.count())

    @property
    def is_due(self) -> bool:
        """Whether something is preserved, and `start` has yet to be called."""
        return bool(self.towers) and not self.references

    def start(self, device: torch.device, size: tuple[int, int], batches: int) -> None:
        """Lets the base embed texts and pictures.

        Args:
            device: Where the base embeds them.
            size: Height and width of the pictures, the same in all processes.
            batches: Batches of the whole training: no more pictures are drawn than they need.
        """
        base = AlignTowers.of(self._base).to(device)
        self.references = [*self._build(base, device, size, batches)]

    def stop(self) -> None:
        """Forgets texts, pictures and features."""
        self.references = []

    def _build(
        self, base: AlignTowers, device: torch.device, size: tuple[int, int], batches: int
    ) -> Iterator[Reference]:
        if self._images is not None:
            drawn = min(_IMAGES, max(batches, 1) * self._images.images)
            pictures = torch.from_numpy(np.stack([draw_picture(number, *size) for number in range(drawn)]))
            embed = partial(_embed_pictures, pictures)
            features = embed_image_features(base, pictures, device)
            yield Reference(IMAGE.name, self._images.weight, self._images.images, embed, features)
        if self._texts is not None and self._tokens is not None:
            features = embed_text_features(base, self._tokens, device)
            embed = partial(_embed_tokens, self._tokens)
            yield Reference(TEXT.name, self._texts.weight, self._texts.texts, embed, features)


def require_fixed_statistics(images: ImagePreservation | None, image_lora: TowerLora | None) -> None:
    """Refuses image preservation where BatchNorm's statistics are trained.

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


def _draw_tokens(base: Base) -> Texts:
    encoder = TextEncoder.from_processor(base.processor())
    encoded = encoder.pad(encoder.encode_all(draw_texts(list_words(encoder, base.name), _TEXTS)))
    return Texts(*map(torch.from_numpy, encoded))


def _embed_tokens(texts: Texts, towers: AlignTowers, places: Tensor) -> Tensor:
    device = towers.temperature.device
    mask = texts.attention_mask[places]
    kept = mask.any(dim=0)  # no further than the longest of these texts
    return towers.text_features(texts.input_ids[places][:, kept].to(device), mask[:, kept].to(device))


def _embed_pictures(pictures: Tensor, towers: AlignTowers, places: Tensor) -> Tensor:
    return towers.image_features(pictures[places].to(towers.temperature.device))


def _require_weight(weight: float, key: str) -> None:
    if not 0 < weight < float("inf"):
        raise ValueError(
            f"Expected weight to be positive and finite, but got {weight}. To preserve nothing, set model.{key} to "
            "null."
        )


def _require_count(key: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ValueError(f"Expected {key} to be in [1, {most}], but got {count}.")
