"""A linear classification head on the image features: a model of its own, and its file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from finetune.core.errors import CheckpointError, TableError
from finetune.core.files import write_bytes
from finetune.core.interpolation import Interpolation
from finetune.model.interpolate import interpolate


class LinearHead(nn.Module):
    """Scores classes by image features that are not normalised: logits = image_features @ weight.T + bias.

    Features are left unnormalised since only then image tower and head together are a plain image classifier, see
    `finetune.model.efficientnet`. The start is kept beside the head: between the two lie the heads that forget less.

    Args:
        weight: Float tensor of shape (C, D).
        bias: Float tensor of shape (C,).
        classes: Class names; the position is the label id.
        is_multilabel: Whether an image may have several of them, or none: the sigmoid of each logit is its probability.
        start_weight: What `weight` was before training; None for `weight` itself.
        start_bias: What `bias` was before training; None for `bias` itself.

    Raises:
        ValueError: If the shapes do not suit each other, or there is not one name for each class.
    """

    start_weight: Tensor
    start_bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        classes: Sequence[str],
        is_multilabel: bool = False,
        start_weight: Tensor | None = None,
        start_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        start_weight = weight if start_weight is None else start_weight
        start_bias = bias if start_bias is None else start_bias
        shapes = [tuple(tensor.shape) for tensor in (weight, bias, start_weight, start_bias)]
        if shapes != 2 * [(len(classes), shapes[0][-1]), (len(classes),)]:
            raise ValueError(
                f"Expected weights of shape ({len(classes)}, D) and biases of shape ({len(classes)},) for "
                f"{len(classes)} classes, but got {', '.join(map(str, shapes))}."
            )
        self.classes = tuple(classes)
        self.is_multilabel = is_multilabel
        self.weight = nn.Parameter(_copy(weight))
        self.bias = nn.Parameter(_copy(bias))
        self.register_buffer("start_weight", _copy(start_weight))
        self.register_buffer("start_bias", _copy(start_bias))

    def forward(self, image_features: Tensor) -> Tensor:
        """Returns the logits, shape (B, C), computed in float32 whatever the precision of training.

        Args:
            image_features: Float tensor of shape (B, D), not normalised.
        """
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        with torch.autocast(image_features.device.type, enabled=False):
            return image_features.to(dtype) @ self.weight.to(dtype).T + self.bias.to(dtype)

    def at(self, interpolation: float | Interpolation, scale: float = 1.0) -> "LinearHead":
        """Returns the head between its start and what was trained of it, its logits multiplied by a number.

        Args:
            interpolation: 1 gives the trained head, 0 what it started from. Of a profile the last weight of the image
                tower counts.
            scale: What the logits are multiplied by: it changes how sure the classifier is, and no ranking.

        Raises:
            RecipeError: If `interpolation` is not in [0, 1].
        """
        start = {"weight": self.start_weight, "bias": self.start_bias}
        trained = {"weight": self.weight.detach(), "bias": self.bias.detach()}
        weight = interpolation.of_head if isinstance(interpolation, Interpolation) else interpolation
        found = {name: scale * tensor for name, tensor in interpolate(start, trained, weight).items()}
        return LinearHead(**found, classes=self.classes, is_multilabel=self.is_multilabel)

    def write(self, path: Path) -> None:
        """Writes the head as one safetensors file, class names in its metadata.

        Args:
            path: The file.
        """
        tensors = {name: tensor.float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        head = {"classes": self.classes, "is_multilabel": self.is_multilabel}
        # One key: safetensors writes several in an order of chance, and equal heads shall be equal files.
        write_bytes(path, save(tensors, metadata={"head": json.dumps(head, ensure_ascii=False)}))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a head that `write` wrote.

        Args:
            path: The file.

        Raises:
            CheckpointError: If the file is missing or holds no head.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("weight", "bias", "start_weight", "start_bias")}
                return cls(**tensors, **json.loads(file.metadata()["head"]))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"Expected {path} to hold a trained head, but got: {error}. Run it again.") from error


def require_classes(expected: Sequence[str], found: Sequence[str]) -> None:
    """Refuses a table that has other classes than a trained head, or the same in another order.

    Args:
        expected: The head's.
        found: The table's.

    Raises:
        TableError: If they differ.
    """
    if list(found) != list(expected):
        got = f"{len(found)}: {', '.join(found[:5])}" if found else "none"
        raise TableError(
            f"Expected the table to have the classifier's {len(expected)} classes, {', '.join(expected[:5])}"
            f"{', ...' if len(expected) > 5 else ''}, but got {got}. "
            "Take a table with the labels that it was trained on."
        )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone()
