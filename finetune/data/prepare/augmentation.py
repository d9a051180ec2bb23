"""Augments images by albumentations, with draws that depend on seed, epoch and row alone."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from finetune.core.errors import RecipeError
from finetune.data.prepare.images import Pixels

if TYPE_CHECKING:
    from albumentations import BaseCompose, BasicTransform

DRAWS = 8
"""How often a blank image is augmented beforehand: what `OneOf` holds is drawn."""

ENLARGED = 2048
"""By how many pixels each side is enlarged, to see whether an image is too small for transforms."""


class Refused(NamedTuple):
    """Why the transforms fail on an image.

    Attributes:
        reason: In a few words.
        repair: What helps: the beginning of a sentence.
    """

    reason: str
    repair: str


class Augmentation:
    """Albumentations transforms whose random draws depend on seed, epoch and row alone.

    The transforms receive the image as it is in the file, before it is resized. For photographs of many megapixels,
    begin with one that makes them small, such as `RandomResizedCrop`, and give it the size that the checkpoint's
    processor resizes to (346 for align-base), because its output is prepared like any other image.

    Args:
        transforms: Transforms and compositions such as `OneOf`, in the order in which they are applied; or one alone.

    Raises:
        RecipeError: If the transforms turn a blank image into something that is no image.
    """

    def __init__(self, transforms: "Sequence[BasicTransform | BaseCompose] | BasicTransform | BaseCompose") -> None:
        from albumentations import Compose  # imports torch, which opening an image does not need

        # A composition is a sequence of its parts, too: as a list, OneOf would apply each of them.
        self.compose = Compose(list(transforms) if isinstance(transforms, list | tuple) else [transforms])
        self._repair: str | None = None
        blank = Image.new("RGB", (512, 512))
        for draw in range(DRAWS):
            try:
                self(blank, 0, 0, draw)
            except RecipeError:
                raise
            except Exception:  # they may refuse this blank image alone; each image of the table is tried and reported
                pass

    def __call__(self, image: Image.Image, seed: int, epoch: int, row: int) -> Pixels:
        """Augments one image.

        Args:
            image: RGB, of any size.
            seed: Seed of the run.
            epoch: Epoch, from 0.
            row: Position in the table.

        Returns:
            Uint8 array of shape (H, W, 3), with the height and width that the transforms produce.

        Raises:
            RecipeError: If the transforms produce something else.
        """
        # One stream for all transforms: set_random_seed would start the same stream in each, and a horizontal
        # and a vertical flip would always coincide.
        generator = np.random.default_rng([seed, epoch, row])
        self.compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        augmented: Pixels = self.compose(image=np.asarray(image))["image"]
        shape, kind = tuple(augmented.shape), str(augmented.dtype)
        if not isinstance(augmented, np.ndarray) or len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != "uint8":
            raise RecipeError(
                f"Expected data.augmentations to return RGB levels, uint8 of shape (H, W, 3), but got {kind} of shape "
                f"{shape}. Leave out Normalize, ToFloat and ToTensorV2: the processor does their work afterwards."
            )
        return augmented

    def attempt(self, image: Image.Image, seed: int, epoch: int, row: int) -> Pixels | Refused:
        """Augments one image, or returns why the transforms fail on it. The arguments are those of the call."""
        try:
            return self(image, seed, epoch, row)
        except Exception as error:  # transforms raise whatever they like
            reason = f"data.augmentations fail on {image.width} x {image.height} pixels: {error}"
        if self._repair is None:  # found for the first image alone, as it takes time
            self._repair = self._find_repair(image.width + ENLARGED, image.height + ENLARGED, (seed, epoch, row))
        return Refused(reason, self._repair)

    def _find_repair(self, width: int, height: int, key: tuple[int, int, int]) -> str:
        """Says what helps where an image is refused: another size, if a large one is taken with the same draws."""
        try:
            self(Image.new("RGB", (width, height)), *key)
        except Exception:
            return "Correct or remove the transform that fails"
        return (
            "Crop less, pad small images first (albumentations.PadIfNeeded), take albumentations.RandomResizedCrop, "
            "which suits any size"
        )
