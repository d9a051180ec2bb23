"""Several trainings make one adapter, whose merge is the average of their merges."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AlignModel

from finetune.model.pretrained import quiet_transformers


def average_adapters(model: AlignModel, config: LoraConfig, members: Sequence[Mapping[str, Tensor]]) -> PeftModel:
    """Puts the average of several trainings of one adapter into their base (a uniform soup, arXiv 2203.05482).

    An average of products B A is not the product of their averages, but that of factors side by side:

        alpha / r * (B1 A1 + ... + Bk Ak) / k = alpha / (k r) * [B1 ... Bk] [A1; ...; Ak].

    This is LoRA with k times the rank and the same alpha: the soup stays an adapter, and nothing is rounded off. Layers
    trained whole, statistics and the temperature are averaged directly.

    Args:
        model: The base of all members, float32 and without adapters; it is changed in place.
        config: The members' configuration.
        members: What each member trained, by the name in the adapted model's state dict; the same names in all.

    Returns:
        The adapted model, not to be trained further.

    Raises:
        ValueError: If the names differ or are not the adapted model's, or the adapters have magnitudes (DoRA): the
            magnitudes of an average are not the average of the members' magnitudes.
    """
    if config.use_dora:
        raise ValueError("Expected adapters without magnitudes, but got use_dora. Their average is no such adapter.")
    with quiet_transformers():
        adapted = PeftModel(model, _widen(config, len(members)))
    unknown = adapted.load_state_dict(average_weights(members), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"Expected tensors of the adapted model, but got {unknown[0]}, which it does not have.")
    return adapted.requires_grad_(False).eval()


def average_weights(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the average of state dicts; factors of LoRA stand side by side instead, see `average_adapters`.

    Args:
        members: Tensors by name, the same names in all.

    Raises:
        ValueError: If the names differ.

    Example:
        >>> members = [{"query.lora_B.default.weight": torch.tensor([[value]]), "bias": torch.tensor(value)}
        ...            for value in (1.0, 2.0)]
        >>> average_weights(members)
        {'query.lora_B.default.weight': tensor([[1., 2.]]), 'bias': tensor(1.5000)}
    """
    if any(member.keys() != members[0].keys() for member in members):
        raise ValueError("Expected all members to have trained the same tensors, but their names differ.")
    return {name: _average(name, [member[name] for member in members]) for name in members[0]}


def _average(name: str, tensors: list[Tensor]) -> Tensor:
    if "lora_A" in name or "lora_embedding_A" in name:
        return torch.cat(tensors, dim=0)
    if "lora_B" in name or "lora_embedding_B" in name:
        return torch.cat(tensors, dim=1)
    return torch.stack(tensors).double().mean(0).to(tensors[0].dtype)


def _widen(config: LoraConfig, times: int) -> LoraConfig:
    """Returns the configuration of factors side by side; rsLoRA divides by the root of the rank: its alpha shrinks."""
    wide = copy.deepcopy(config)
    shrunk = math.sqrt(times) if config.use_rslora else 1.0
    wide.r *= times
    wide.lora_alpha /= shrunk  # type: ignore[assignment]
    wide.rank_pattern = {name: rank * times for name, rank in (config.rank_pattern or {}).items()}
    wide.alpha_pattern = {name: alpha / shrunk for name, alpha in (config.alpha_pattern or {}).items()}
    return wide
