"""What goes wrong in training without an error: watched at each step, and said in words with the repair."""

import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from finetune.core.types import Batch, Embeddings
from finetune.metrics import Cloud
from finetune.model.towers import AlignTowers
from finetune.objectives import positive_mask
from finetune.training.schedules import total_steps
from finetune.training.task import CALM_DOWN, AlignTask

LEAST_SPREAD = 0.01
"""Spread of a cloud of embeddings below which it has collapsed."""

LEAST_RANK = 0.1
"""Effective rank of a cloud below which it has collapsed, as a share of the largest that its rows allow."""

AT_CHANCE = 0.99
"""Share of the loss at equal similarities above which an epoch has learned nothing."""

_TOWERS = {"image": ("vision_model.",), "text": ("text_model.", "text_projection.")}


class Notice(NamedTuple):
    """One thing that went wrong.

    Attributes:
        about: What it is about, a word for machines.
        message: What was found, and what repairs it.
    """

    about: str
    message: str


class CollapseWatch(Callback):
    """Logs what a collapse shows itself by, and tells of one, once, on the standard error stream.

    Logged at each step: `train/image_gradient_norm` and `train/text_gradient_norm` (before clipping), and
    `train/duplicate_positives`, the share of rows that have a positive beside themselves in the batch. Logged at each
    validation, over its distinct images and texts: `val/image_spread`, `val/image_effective_rank`, `val/text_spread`,
    `val/text_effective_rank`, see `finetune.metrics.spread` and `finetune.metrics.effective_rank`.

    Attributes:
        notices: What was told.
    """

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self._trained: dict[str, list[Parameter]] = {}
        self._epoch: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._clouds: dict[str, Cloud] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Sorts what is trained by tower."""
        assert isinstance(pl_module, AlignTask)
        named = [pair for pair in pl_module.towers.named_parameters() if pair[1].requires_grad]
        self._trained = {
            tower: [parameter for name, parameter in named if any(mark in name for mark in marks)]
            for tower, marks in _TOWERS.items()
        }

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Forgets the epoch before."""
        self._epoch.clear()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:  # noqa: ARG002
        """Logs the norm of each tower's gradient."""
        for tower, parameters in self._trained.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if gradients:
                norm = get_total_norm(gradients)
                pl_module.log(f"train/{tower}_gradient_norm", norm)
                self._epoch[tower].append(norm)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Logs duplicate positives; keeps the loss, and what it would be at equal similarities."""
        assert isinstance(pl_module, AlignTask)
        duplicates = (positive_mask(batch).sum(dim=1) > 1).float().mean()
        pl_module.log("train/duplicate_positives", duplicates, batch_size=len(batch.rows))
        if outputs:  # a step that returns nothing is skipped
            self._epoch["loss"].append(outputs["loss"] * trainer.accumulate_grad_batches)
            self._epoch["chance"].append(chance_loss(pl_module, batch))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the epoch, from the middle of training on: before, warm-up may explain what is found."""
        assert isinstance(pl_module, AlignTask)
        if not self._epoch["loss"] or 2 * trainer.global_step < total_steps(trainer):
            return
        means = {name: torch.stack(values).mean().item() for name, values in self._epoch.items() if values}
        wrong = judge_loss(means["loss"], means["chance"])
        self._tell(trainer, wrong, judge_temperature(pl_module.towers))
        if wrong is None:
            self._tell(trainer, *(silent_tower(tower) for tower in _TOWERS if means.get(tower) == 0))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts new clouds."""
        self._clouds = {tower: Cloud() for tower in _TOWERS}

    def on_validation_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Takes in what `AlignTask.validation_step` returns; a subclass that returns nothing is not looked at."""
        if isinstance(outputs, Mapping):
            self._clouds["image"].update(outputs["image_features"], batch.image_ids)
            if len(outputs["text_features"]):
                self._clouds["text"].update(outputs["text_features"], batch.caption_ids)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs spread and effective rank of both clouds, and judges them."""
        assert isinstance(pl_module, AlignTask)
        whole = {tower: cloud for tower, cloud in self._clouds.items() if cloud.count > 1}
        possible = min([pl_module.towers.align.config.projection_dim, *(cloud.count for cloud in whole.values())])
        for tower, cloud in whole.items():
            pl_module.log(f"val/{tower}_spread", cloud.spread)
            pl_module.log(f"val/{tower}_effective_rank", cloud.effective_rank)
        if not trainer.sanity_checking:
            broken = [broken_features(tower, cloud) for tower, cloud in self._clouds.items() if cloud.broken]
            self._tell(trainer, *broken, *(judge_cloud(tower, cloud, possible) for tower, cloud in whole.items()))

    def _tell(self, trainer: Trainer, *found: Notice | None) -> None:
        known = {notice.about for notice in self.notices}
        for notice in found:
            if notice is not None and notice.about not in known:
                self.notices.append(notice)
                if trainer.is_global_zero:
                    print(f"warning: {notice.message}", file=sys.stderr)


@torch.no_grad()
def chance_loss(task: AlignTask, batch: Batch) -> Tensor:
    """What the task's objective gives a batch when all similarities are equal: ln B for B unique rows.

    Features of zero have the cosine 0 with each other, and leave of a head its bias alone.

    Args:
        task: Its objective and temperature are used; no tower is.
        batch: Ids and weights of the rows.
    """
    nothing = task.towers.temperature.new_zeros(len(batch.rows), task.towers.align.config.projection_dim)
    loss: Tensor = task.objective(Embeddings(nothing, nothing, task.towers.temperature), batch)
    return loss


def judge_cloud(tower: str, cloud: Cloud, possible: int) -> Notice | None:
    """Says whether a tower's embeddings have collapsed.

    Args:
        tower: `image` or `text`.
        cloud: Its embeddings, at least two.
        possible: The largest effective rank: the dimension, or the number of distinct images or texts where that is
            smaller. Images of few classes may well lie in few directions.
    """
    spread, rank = cloud.spread, cloud.effective_rank
    if spread >= LEAST_SPREAD and rank >= LEAST_RANK * possible:
        return None
    return Notice(
        f"{tower}_collapse",
        f"The {tower} embeddings have collapsed: effective rank {rank:.1f} of {possible}, mean cosine "
        f"{1 - spread:.2f}. {CALM_DOWN} Look whether the table's {tower}s differ at all.",
    )


def judge_loss(loss: float, chance: float) -> Notice | None:
    """Says whether an epoch's loss shows that nothing is learned.

    Args:
        loss: Mean over the epoch.
        chance: What it would be at equal similarities.

    Example:
        >>> judge_loss(3.1, 4.159) is None
        True
        >>> judge_loss(4.158, 4.159).about, judge_loss(0.0, 0.0).about, judge_loss(math.nan, 4.159).about
        ('loss_at_chance', 'no_negatives', 'loss_not_finite')
    """
    if not math.isfinite(loss):
        return Notice(
            "loss_not_finite",
            f"The loss is {loss}: training has diverged. {CALM_DOWN}",
        )
    if chance == 0:
        return Notice(
            "no_negatives",
            "All rows of a batch are positives of each other, so there is nothing to tell apart: the loss is 0. The "
            "table needs more than one label or caption.",
        )
    if loss < AT_CHANCE * chance:
        return None
    return Notice(
        "loss_at_chance",
        f"The loss stays at chance: {loss:.3f} on the mean of an epoch, and {chance:.3f} where all similarities are "
        "equal. Change the learning rate of model.optimizer tenfold, down where it was raised and up where it was "
        "lowered, and look whether captions and images belong together.",
    )


def judge_temperature(towers: AlignTowers) -> Notice | None:
    """Says whether a trained temperature has run into its bound."""
    bound = towers.min_temperature
    if not towers.temperature.requires_grad or towers.temperature.item() > bound * (1 + 1e-6):
        return None
    return Notice(
        "temperature_at_bound",
        f"The temperature has fallen to its bound, {bound:g}. Set model.train_temperature to false, or lower the "
        "learning rate of model.optimizer; if the base's own temperature is below, lower model.min_temperature.",
    )


def silent_tower(tower: str) -> Notice:
    """Says that a tower which is to be trained received no gradient."""
    return Notice(
        f"{tower}_gradient_zero",
        f"The gradient of the {tower} tower was exactly 0 for an epoch: it learns nothing. Lower the learning rate of "
        f"model.optimizer, or adapt other layers by model.{tower}_lora.layers.",
    )


def broken_features(tower: str, cloud: Cloud) -> Notice:
    """Says that some of a tower's features have no direction."""
    return Notice(
        f"{tower}_diverged",
        f"{cloud.broken:,} of {cloud.count + cloud.broken:,} {tower} features are 0 or not finite: training has "
        f"diverged. {CALM_DOWN}",
    )
