"""Pixels travel as bytes; the model turns them into the floats that its checkpoint's processor makes of them."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class PixelScale(nn.Module):
    """Rescales and normalises pixels as a checkpoint's processor does, bit for bit; floats pass as they are.

    A table says what the processor makes of each level of each channel, so nothing depends on how a device rounds.
    It is no part of the state dict: it is the checkpoint's.

    Args:
        levels: Float32 tensor of shape (3, 256), see `read_levels`; None takes floats alone.
    """

    levels: Tensor | None
    starts: Tensor

    def __init__(self, levels: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("starts", 256 * torch.arange(3, dtype=torch.int32)[:, None, None], persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the floats behind pixels.

        Args:
            pixel_values: Uint8 tensor of shape (B, 3, H, W), levels of the resized image; or floats, as the processor
                makes them.

        Returns:
            Float tensor of shape (B, 3, H, W).

        Raises:
            ValueError: If the pixels are bytes and there is no table.
        """
        if pixel_values.dtype != torch.uint8:
            return pixel_values
        if self.levels is None:
            raise ValueError(
                "Expected pixel_values to be floats, but got torch.uint8: nothing says how to scale them. Build the "
                "towers with levels=base.levels, where base is the open finetune.Base."
            )
        places = pixel_values.int().add_(self.starts)
        return self.levels.flatten().index_select(0, places.flatten()).view(pixel_values.shape)


def read_levels(image_processor: Any) -> Tensor:
    """Asks an image processor what it makes of each level of each channel, on an image that holds all 256 of them.

    Args:
        image_processor: An `EfficientNetImageProcessor` with the Pillow backend.

    Returns:
        Float32 tensor of shape (3, 256).
    """
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
    made = image_processor(ramp, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"]
    return torch.from_numpy(made[0, :, 0, :].astype(np.float32))
