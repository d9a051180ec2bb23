"""Towers for comparisons: whatever is trained is moved away from its start, where adapters would do nothing."""

import torch

from finetune.model.base import Base
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers


def build_moved(checkpoint: str, image_lora: TowerLora | None, text_lora: TowerLora | None) -> AlignTowers:
    """Plain towers with adapters, the same for the same arguments."""
    torch.manual_seed(0)
    towers = AlignTowers(attach_lora(Base.open(checkpoint).load(), image_lora, text_lora), True)
    with torch.no_grad():
        for parameter in towers.parameters():
            if parameter.requires_grad and parameter.ndim:
                parameter += 0.01 * torch.randn_like(parameter)
    return towers
