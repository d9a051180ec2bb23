"""A trained classification head as one file of its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finetune.errors import CheckpointError
from finetune.objectives import Classification


class Head(NamedTuple):
    """A trained linear head: logits = image_features @ weight.T + bias.

    Attributes:
        weight: Float32 tensor of shape (C, D), for image features that are not normalised.
        bias: Float32 tensor of shape (C,).
        classes: Class names; the position is the label id.
        is_multilabel: Whether an image may have several of them, or none: the sigmoid of each logit is its probability.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[str, ...]
    is_multilabel: bool = False


def write_head(objective: Classification, classes: Sequence[str], path: Path, is_multilabel: bool = False) -> None:
    """Writes a trained head as one safetensors file, class names in its metadata.

    Args:
        objective: A head that was started.
        classes: Class names; the position is the label id.
        path: Where to write; parent folders exist.
        is_multilabel: Whether an image may have several of the classes, or none.
    """
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in objective.named_parameters()}
    staging = path.with_name(f".{path.name}")
    metadata = {"classes": json.dumps(list(classes), ensure_ascii=False), "is_multilabel": json.dumps(is_multilabel)}
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
            is_multilabel = metadata.get("is_multilabel") == "true"
            return Head(file.get_tensor("weight"), file.get_tensor("bias"), classes, is_multilabel)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"Expected {path} to hold a trained head, but got: {error}. Run it again.") from error
