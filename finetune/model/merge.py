"""Adapters folded into the weights of their base, which then is an ordinary `AlignModel` again."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AlignModel

from finetune.core.errors import CheckpointError
from finetune.model.adapter import load_adapter


def merge_adapter(base: AlignModel, adapter: Path, fingerprint: str) -> AlignModel:
    """Merges a saved adapter into a freshly loaded base, in float32.

    Args:
        base: The base, float32 and without adapters; it is used up.
        adapter: A folder written by `finetune.model.adapter.save_adapter`.
        fingerprint: SHA-256 of the weights `base` was loaded from.

    Returns:
        A model with the base's tensor names, shapes and dtypes.

    Raises:
        CheckpointError: If the merged tensors are not the base's in name, shape and dtype, or not finite.
    """
    signature = {name: (tensor.shape, tensor.dtype) for name, tensor in base.state_dict().items()}
    half = [name for name, (_, dtype) in signature.items() if dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise CheckpointError(
            f"Expected the base to be in float32, but {half[0]} is not: merging in half precision costs 2e-2. "
            "Load it with dtype=torch.float32."
        )
    adapted = load_adapter(base, adapter, fingerprint)
    merged: AlignModel = adapted.merge_and_unload(safe_merge=True)
    merged.eval().requires_grad_(False)
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in merged.state_dict().items()}
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


def merge_copy(adapted: PeftModel) -> AlignModel:
    """Merges a copy of an adapted model in memory, in float32; the model itself stays adapted.

    Args:
        adapted: The model returned by `finetune.model.lora.attach_lora`.
    """
    merged: AlignModel = copy.deepcopy(adapted).cpu().float().merge_and_unload(safe_merge=True)
    return merged
