"""Run folders as a training leaves them, with noise in place of training."""

from pathlib import Path

import torch

from finetune.core.types import Batch
from finetune.export.choose_interpolation import Choice, Temperature
from finetune.export.merged import write_processor
from finetune.export.trained import TrainedModel
from finetune.export.witness import write_witness
from finetune.model.adapter import save_adapter
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.towers import AlignTowers
from finetune.run.folder import RunFolder

CLASSES = ("cat", "dog", "Käse", "emu", "fox")
TEMPERATURE = 0.0321


def adapt(base: Base, image_lora: TowerLora | None, text_lora: TowerLora | None) -> AlignTowers:
    """Adapters and layers trained whole, moved by noise, at another temperature."""
    torch.manual_seed(0)
    towers = AlignTowers(attach_lora(base.load(), image_lora, text_lora), True, 0.01)
    with torch.no_grad():
        for name, parameter in towers.named_parameters():
            if parameter.requires_grad and "magnitude" not in name and parameter.ndim:
                parameter += 0.02 * torch.randn_like(parameter)
        towers.temperature.fill_(TEMPERATURE)
    return towers


@torch.no_grad()
def train_head(towers: AlignTowers, batch: Batch, is_multilabel: bool = False) -> LinearHead:
    """A head that starts from texts of the batch, moved by noise."""
    embeddings = towers(batch)
    start = embeddings.text_embeds[: len(CLASSES)] / embeddings.image_features.norm(dim=-1).mean() / 0.05
    head = LinearHead(start, torch.linspace(-1, 1, len(CLASSES)), CLASSES, is_multilabel)
    head.weight += 0.3 * head.weight.std() * torch.randn_like(head.weight)
    head.bias += torch.randn_like(head.bias)
    return head


def write_run(path: Path, base: Base, towers: AlignTowers, batch: Batch, head: LinearHead | None = None) -> RunFolder:
    """What the training stage leaves: witness, processor, adapter, head."""
    run = RunFolder(path)
    write_witness(towers, batch, run.witness, head)
    run.processor.mkdir()
    write_processor(base.processor(64), run.processor)
    if towers.has_adapters:
        run.adapter.mkdir()
        save_adapter(towers.model, run.adapter, base)
        write_processor(base.processor(64), run.adapter)
    if head is not None:
        head.write(run.head)
    return run


def open_trained(run: RunFolder, base: Base, interpolation: float = 1.0, fitted: float | None = None) -> TrainedModel:
    """The model at an interpolation and, where one is given, at a fitted temperature."""
    temperature = None if fitted is None else Temperature(TEMPERATURE, fitted)
    return TrainedModel(run, base, Choice(interpolation, temperature))
