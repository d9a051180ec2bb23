"""A trained classification head as one file of its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finetune.core.errors import CheckpointError
from finetune.objectives import Classification


class Head(NamedTuple):
    """A trained linear head: logits = image_features @ weight.T + bias.

    Attributes:
        weight: Float32 tensor of shape (C, D), for image features that are not normalised.
        bias: Float32 tensor of shape (C,).
        classes: Class names; the position is the label id.
        is_multilabel: Whether an image may have several of them, or none: the sigmoid of each logit is its probability.
        start_weight: What `weight` was before training.
        start_bias: What `bias` was before training.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    start_weight: Tensor
    start_bias: Tensor
    is_multilabel: bool = False

    @property
    def trained(self) -> dict[str, Tensor]:
        """`weight` and `bias`."""
        return {"weight": self.weight, "bias": self.bias}

    @property
    def start(self) -> dict[str, Tensor]:
        """What they were before training."""
        return {"weight": self.start_weight, "bias": self.start_bias}

    def logits(self, image_features: Tensor) -> Tensor:
        """The head on unnormalised image features of shape (B, D); shape (B, C)."""
        return image_features @ self.weight.T + self.bias


def build_head(objective: Classification, classes: Sequence[str], is_multilabel: bool) -> Head:
    """The head that an objective holds, as tensors of its own.

    Args:
        objective: A head that was started.
        classes: Class names; the position is the label id.
        is_multilabel: Whether an image may have several of the classes, or none.
    """
    tensors = {name: tensor.float().cpu().clone() for name, tensor in objective.state_dict().items()}
    return Head(**tensors, classes=tuple(classes), is_multilabel=is_multilabel)


def write_head(head: Head, path: Path) -> None:
    """Writes a trained head as one safetensors file, class names in its metadata.

    Args:
        head: The head.
        path: Where to write; parent folders exist.
    """
    tensors = {**head.trained, "start_weight": head.start_weight, "start_bias": head.start_bias}
    staging = path.with_name(f".{path.name}")
    metadata = {
        "classes": json.dumps(head.classes, ensure_ascii=False),
        "is_multilabel": json.dumps(head.is_multilabel),
    }
    staging.write_bytes(save(tensors, metadata=metadata))
    staging.replace(path)


def read_head(path: Path) -> Head:
    """Reads a head that `write_head` wrote.

    Args:
        path: The file.

    Raises:
        CheckpointError: If the file is missing or holds no head.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            classes = tuple(json.loads(metadata["classes"]))
            tensors = {name: file.get_tensor(name) for name in ("weight", "bias", "start_weight", "start_bias")}
            return Head(**tensors, classes=classes, is_multilabel=metadata.get("is_multilabel") == "true")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"Expected {path} to hold a trained head, but got: {error}. Run it again.") from error
