"""A checkpoint's tower as it is asked for vectors: of images by their paths, or of texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AlignProcessor

from finetune.core.errors import RecipeError
from finetune.core.types import PixelBatch, Texts
from finetune.data.prepare.images import ImagePreparation
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.embed import TEXTS, embed, embed_text_features
from finetune.inference.pictures import IMAGES, Picture, Pictures
from finetune.inference.vectors import FloatArray, Skipped, Space
from finetune.model.base import Base
from finetune.model.layers import IMAGE, TEXT, Tower
from finetune.model.pixels import read_levels
from finetune.model.towers import AlignTowers


class Storage(NamedTuple):
    """How vectors are kept.

    Attributes:
        normalised: Whether they are given length 1.
        dtype: `float32` or `float16`.
    """

    normalised: bool = True
    dtype: str = "float32"


class Embedded(NamedTuple):
    """What a tower made of some images or texts.

    Attributes:
        kept: Positions of those that have a vector, ascending.
        vectors: Array of shape (kept, dimension).
        skipped: Those that have none.
    """

    kept: Sequence[int]
    vectors: FloatArray
    skipped: list[Skipped]


class Embedder(ABC):
    """One tower of a checkpoint. The model is loaded at its first use.

    Args:
        base: The checkpoint.
        processor: Prepares its inputs.
        device: Where the tower runs.
        storage: How vectors are kept.
        batch_size: Images or texts that are asked about at a time; None takes the tower's own number.
    """

    tower: ClassVar[Tower]
    usual_batch: ClassVar[int]

    def __init__(
        self,
        base: Base,
        processor: AlignProcessor,
        device: torch.device,
        storage: Storage = Storage(),  # noqa: B008 (a tuple)
        batch_size: int | None = None,
    ) -> None:
        self.device = device
        self.batch_size = batch_size or self.usual_batch
        self._base = base
        self._processor, self._storage = processor, storage

    @cached_property
    def space(self) -> Space:
        """What decides on the vectors; the weights are hashed for it."""
        return Space(
            model=self._base.public_name,
            fingerprint=self._base.fingerprint,
            processor=describe_processor(self._processor),
            tower=self.tower.name,
            tower_fingerprint=self._base.fingerprint_tower(self.tower),
            normalised=self._storage.normalised,
            dimension=self._base.dimension,
            dtype=self._storage.dtype,
        )

    @cached_property
    def towers(self) -> AlignTowers:
        """The model, on the device."""
        return AlignTowers(self._base.load(), levels=read_levels(self._processor.image_processor)).to(self.device)

    @abstractmethod
    def embed(self, values: Sequence[Picture], note: Callable[[int], None]) -> Embedded:
        """Embeds images or texts.

        Args:
            values: Paths and addresses of images and open ones, or texts: one or more.
            note: Is told of each batch how many it holds.

        Raises:
            RecipeError: If the model answers with numbers that are not finite.
        """

    def store(self, features: Tensor) -> FloatArray:
        """Returns features as they are kept: normalised or not, in their data type.

        Args:
            features: Float32 tensor of shape (N, D).
        """
        vectors = (normalize(features, dim=-1) if self._storage.normalised else features).numpy()
        vectors = vectors.astype(self._storage.dtype)
        if not np.isfinite(vectors).all():
            raise RecipeError(
                f"Expected finite vectors in {self._storage.dtype}, but got NaN or infinity: "
                f"{self._base.public_name} is no sound model, or its features are too large to be kept raw in float16."
            )
        return vectors


class ImageEmbedder(Embedder):
    """The image tower; images that cannot be read have no vector."""

    tower, usual_batch = IMAGE, IMAGES

    def __init__(self, base: Base, processor: AlignProcessor, *settings: Any) -> None:
        super().__init__(base, processor, *settings)
        self._prepare = ImagePreparation.from_processor(processor.image_processor)

    def embed(self, values: Sequence[Picture], note: Callable[[int], None]) -> Embedded:
        """Embeds images, see `Embedder.embed`."""
        pictures = Pictures(values, self._prepare, self.batch_size)

        def noted() -> Iterator[PixelBatch]:
            for batch in pictures:
                yield batch
                note(len(batch.pixel_values))

        batches = noted()
        first = next(batches, None)
        encode = self.towers.image_embeddings
        found = None if first is None else embed(encode, chain([first], batches), self.device).image_features
        features = torch.empty(0, self._base.dimension) if found is None else found
        return Embedded(pictures.read, self.store(features), [Skipped(*skipped) for skipped in pictures.skipped])


class TextEmbedder(Embedder):
    """The text tower; texts that are equal to it are embedded once."""

    tower, usual_batch = TEXT, TEXTS

    def __init__(self, base: Base, processor: AlignProcessor, *settings: Any) -> None:
        super().__init__(base, processor, *settings)
        self._encoder = TextEncoder.from_processor(processor)

    def embed(self, values: Sequence[Picture], note: Callable[[int], None]) -> Embedded:
        """Embeds texts, see `Embedder.embed`."""
        places: dict[tuple[int, ...], int] = {}
        rows = [places.setdefault(tuple(ids), len(places)) for ids in self._encoder.encode_all([*map(str, values)])]
        texts = Texts(*map(torch.as_tensor, self._encoder.pad([list(ids) for ids in places])))
        features = embed_text_features(self.towers, texts, self.device, self.batch_size)
        note(len(values))
        return Embedded(range(len(values)), self.store(features[rows]), [])


def describe_processor(processor: AlignProcessor) -> dict[str, Any]:
    """Says how a processor prepares images and texts, in numbers that depend on no release of a library.

    Args:
        processor: The processor.

    Returns:
        Of images the sides in pixels to which they are resized and cropped, Pillow's filter, and what black and white
        become in each channel; of texts the largest number of tokens, and a hash of the vocabulary.
    """
    prepare = ImagePreparation.from_processor(processor.image_processor)
    levels = read_levels(processor.image_processor).double().round(decimals=6)
    vocabulary = sorted(processor.tokenizer.get_vocab().items())
    return {
        "size": prepare.size and list(prepare.size),
        "resample": prepare.resample.name.lower(),
        "crop": prepare.crop and list(prepare.crop),
        "black": levels[:, 0].tolist(),
        "white": levels[:, -1].tolist(),
        "tokens": TextEncoder.from_processor(processor).max_length,
        "vocabulary": sha256(repr(vocabulary).encode()).hexdigest()[:16],
    }
