"""Prepared images in batches, opened by threads while a model is asked about those before."""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from finetune.core.cores import count_share
from finetune.core.errors import TableError
from finetune.core.types import PixelBatch
from finetune.data.prepare.images import FORMATS, ImagePreparation, Pixels, try_image
from finetune.data.prepare.members import place_of
from finetune.inference.ahead import work_ahead

IMAGES = 32
"""Images that are asked about at a time."""

Picture: TypeAlias = str | Image.Image
"""The path or address of an image, or one that Pillow has opened."""

_DECODING = Lock()  # an open image may be handed over several times, and decodes itself once


def name_picture(picture: Picture, number: int) -> str:
    """Returns what a picture is called: its path, or the place of its address; `image N` where it is open.

    Args:
        picture: The picture.
        number: Which one of all it is, from 1.
    """
    return place_of(picture) if isinstance(picture, str) else f"image {number}"


class SkippedImage(NamedTuple):
    """An image that was left out.

    Attributes:
        image: Its path.
        reason: Why it cannot be read, in a few words.
    """

    image: str
    reason: str


class Pictures:
    """Prepared images in batches, to be gone through once. Images that cannot be read are left out and noted.

    Args:
        images: Paths, addresses and open images.
        prepare: Resizes and crops as the model's processor does.
        batch_size: Images of a batch.

    Attributes:
        read: Positions in `images` of those that were read so far.
        skipped: The images that cannot be read.
    """

    def __init__(self, images: Sequence[Picture], prepare: ImagePreparation, batch_size: int = IMAGES) -> None:
        self.read: list[int] = []
        self.skipped: list[SkippedImage] = []
        self._images = images
        self._batch_size = batch_size
        self._first: PixelBatch | None = None
        self._batches = self._prepare(prepare, batch_size)

    def require_any(self) -> None:
        """Opens images until a batch is full, before a model is opened.

        Raises:
            TableError: If no image can be read.
        """
        self._first = next(self._batches, None)
        if self._first is None:
            first, number = self.skipped[0], len(self._images)
            others = f"; nor can the others be read, {number} in all" if number > 1 else ""
            raise TableError(
                f"Expected {first.image} to be a whole image ({', '.join(FORMATS)}), but got: {first.reason}{others}. "
                "Save it again as a PNG or JPEG of ordinary size."
            )

    def __len__(self) -> int:
        return len(range(0, len(self._images), self._batch_size))

    def __iter__(self) -> Iterator[PixelBatch]:
        if self._first is not None:
            yield self._first
        yield from self._batches

    def _prepare(self, prepare: ImagePreparation, batch_size: int) -> Iterator[PixelBatch]:
        def open_one(picture: Picture) -> Pixels | str:
            if isinstance(picture, str):
                image = try_image(picture)
            else:
                with _DECODING:
                    image = try_image(picture)
            return image if isinstance(image, str) else prepare(image)

        opened = work_ahead(open_one, self._images, threads=count_share(), most_ahead=2 * batch_size)
        for start in range(0, len(self._images), batch_size):
            pixels = []
            for at, found in zip(range(start, min(start + batch_size, len(self._images))), opened, strict=False):
                if isinstance(found, str):
                    self.skipped.append(SkippedImage(name_picture(self._images[at], at + 1), found))
                else:
                    self.read.append(at)
                    pixels.append(found)
            if pixels:
                yield PixelBatch(torch.from_numpy(np.stack(pixels)))
