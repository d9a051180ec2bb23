"""Adapters folded into the weights of their base, which then is an ordinary `AlignModel` again."""

from pathlib import Path

import torch
from transformers import AlignModel

from finetune.core.errors import CheckpointError
from finetune.model.adapter import load_adapter
from finetune.model.base import Base


def merge_adapter(base: Base, adapter: Path) -> AlignModel:
    """Merges a saved adapter into a fresh model of its base, in float32.

    Args:
        base: The base.
        adapter: A folder written by `finetune.model.adapter.save_adapter`.

    Returns:
        A model with the base's tensor names, shapes and dtypes.

    Raises:
        CheckpointError: If the adapter is not one of this base, or the merged tensors are not the base's in name,
            shape and dtype, or not finite.
    """
    adapted = load_adapter(base, adapter)
    merged: AlignModel = adapted.merge_and_unload(safe_merge=True)
    merged.eval().requires_grad_(False)
    signature, found = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
        for state in (base.state_dict(), merged.state_dict())
    )
    changed = sorted(set(signature.items()) ^ set(found.items()))
    if changed:
        raise CheckpointError(
            f"Expected the merged model to have the base's tensors, but {changed[0][0]} differs in presence, "
            "shape or dtype. The installed peft merges this layer differently: please report it."
        )
    for name, tensor in merged.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"Expected every merged weight to be finite, but {name} is not. Training diverged: lower the "
                "learning rate or clip gradients (trainer.gradient_clip_val)."
            )
    return merged
