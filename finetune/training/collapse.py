"""What goes wrong in training without an error: each step is watched, and concerns are reported with their repair."""

import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from finetune.core import processes
from finetune.core.console import say
from finetune.core.errors import Concern
from finetune.core.types import Batch, Embeddings
from finetune.inference.models import CALM_DOWN
from finetune.metrics.geometry import Cloud
from finetune.model.layers import TOWERS
from finetune.model.towers import AlignTowers
from finetune.objectives.objective import count_positives
from finetune.training.global_loss import gather_ids
from finetune.training.schedules import total_steps
from finetune.training.task import AlignTask

LEAST_SPREAD = 0.01
"""Spread of a cloud of embeddings below which it has collapsed."""

LEAST_RANK = 0.1
"""Effective rank of a cloud below which it has collapsed, as a share of the largest that its rows allow."""

AT_CHANCE = 0.99
"""Share of the loss at equal similarities above which an epoch has learned nothing."""

CHANCE_EVERY = 16
"""Batches between two for which the loss at equal similarities is computed; the first so many all have it."""

FEW_STEPS = 30
"""Steps of a training that may be too short to leave the loss at chance."""


class CollapseWatch(Callback):
    """Logs what shows a collapse, and reports each concern once on the standard error stream.

    Each step logs `train/image_gradient_norm` and `train/text_gradient_norm` (before clipping), and
    `train/duplicate_positives`, the share of rows that have a positive beside themselves in the batch. Each validation
    logs `val/image_spread`, `val/image_effective_rank`, `val/text_spread` and `val/text_effective_rank` of its distinct
    images and texts, see `finetune.metrics.spread` and `finetune.metrics.effective_rank`.

    Attributes:
        notices: What was reported.
    """

    def __init__(self) -> None:
        self.notices: list[Concern] = []
        self._trained: dict[str, list[Parameter]] = {}
        self._epoch: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._rows = 0
        self._clouds: dict[str, Cloud] = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was reported, and what the epoch has shown so far."""
        notices = [notice._asdict() for notice in self.notices]
        epoch = {name: torch.stack(values) for name, values in self._epoch.items() if values}
        return {"notices": notices, "epoch": epoch, "rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on within an epoch."""
        self.notices = [Concern.of_record(notice) for notice in state_dict["notices"]]
        self._epoch = defaultdict(list, {name: list(values) for name, values in state_dict["epoch"].items()})
        self._rows = state_dict["rows"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Brings what was restored to the device."""
        self._epoch = defaultdict(
            list, {name: [value.to(pl_module.device) for value in values] for name, values in self._epoch.items()}
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Sorts the trained parameters by tower."""
        assert isinstance(pl_module, AlignTask)
        named = [pair for pair in pl_module.towers.named_parameters() if pair[1].requires_grad]
        self._trained = {tower.name: [parameter for name, parameter in named if tower.owns(name)] for tower in TOWERS}

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
        batch_idx: int,
    ) -> None:
        """Logs duplicate positives; keeps the loss, and now and then what it would be at equal similarities."""
        assert isinstance(pl_module, AlignTask)
        counts = processes.count_rows(len(batch.rows))
        rows = sum(counts)
        self._rows = max(self._rows, rows)
        start = sum(counts[: processes.rank()])
        positives = count_positives(gather_ids(batch, counts), slice(start, start + len(batch.rows)))
        found = {"duplicates": (positives > 1).float().sum() * len(counts) / rows}
        if outputs:  # a step that returns nothing is skipped
            found["loss"] = outputs["loss"] * trainer.accumulate_grad_batches - (pl_module.preservation or 0.0)
            if pl_module.forgets_preservation:
                self._report(trainer, describe_forgotten_preservation(type(pl_module).__name__))
            if batch_idx < CHANCE_EVERY or batch_idx % CHANCE_EVERY == 0:
                found["chance"] = chance_loss(pl_module, batch)
        means = processes.average(torch.stack([value.float() for value in found.values()]))
        shared = dict(zip(found, means, strict=True))
        pl_module.log("train/duplicate_positives", shared.pop("duplicates"), batch_size=rows)
        for name, value in shared.items():
            self._epoch[name].append(value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports concerns about the epoch, from the middle of training on: before, warm-up may explain them."""
        assert isinstance(pl_module, AlignTask)
        if not self._epoch["chance"] or 2 * trainer.global_step < total_steps(trainer):
            return
        means = {name: torch.stack(values).mean().item() for name, values in self._epoch.items() if values}
        about_loss = find_loss_concern(means["loss"], means["chance"], self._rows, total_steps(trainer))
        self._report(trainer, about_loss, find_temperature_concern(pl_module.towers))
        if about_loss is None:
            self._report(
                trainer, *(describe_missing_gradient(tower) for tower in self._trained if means.get(tower) == 0)
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts new clouds."""
        self._clouds = {tower.name: Cloud() for tower in TOWERS}

    def on_validation_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Takes in the features that `AlignTask.validation_step` returns, of the towers that were asked."""
        if not isinstance(outputs, Mapping):  # the step of a subclass may return nothing
            return
        for tower, ids in (("image", batch.image_ids), ("text", batch.caption_ids)):
            features = outputs.get(f"{tower}_features")
            if features is not None:
                counts = processes.count_rows(len(ids))
                everyone = [processes.gather_rows(part, counts) for part in (features, ids)]
                self._clouds[tower].update(*everyone)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs spread and effective rank of the clouds, and reports which have collapsed."""
        assert isinstance(pl_module, AlignTask)
        whole = {tower: cloud for tower, cloud in self._clouds.items() if cloud.count > 1}
        possible = min([pl_module.towers.align.config.projection_dim, *(cloud.count for cloud in whole.values())])
        for tower, cloud in whole.items():
            pl_module.log(f"val/{tower}_spread", cloud.spread)
            pl_module.log(f"val/{tower}_effective_rank", cloud.effective_rank)
        if not trainer.sanity_checking:
            diverged = [describe_divergence(tower, cloud) for tower, cloud in self._clouds.items() if cloud.broken]
            self._report(trainer, *diverged, *(find_collapse(tower, cloud, possible) for tower, cloud in whole.items()))

    def _report(self, trainer: Trainer, *found: Concern | None) -> None:
        known = {notice.about for notice in self.notices}
        for concern in found:
            if concern is not None and concern.about not in known:
                self.notices.append(concern)
                if trainer.is_global_zero:
                    say(f"warning: {concern.message}", file=sys.stderr)


@torch.no_grad()
def chance_loss(task: AlignTask, batch: Batch) -> Tensor:
    """Returns a task's loss of a batch when all similarities are equal: ln B for B unique rows.

    Features of zero have the cosine 0 with each other, and a head answers them with its bias alone.

    Args:
        task: The task; its towers are not asked.
        batch: Ids and weights of the rows.
    """
    nothing = task.towers.temperature.new_zeros(len(batch.rows), task.towers.align.config.projection_dim)
    return task.loss(Embeddings(nothing, nothing, task.towers.temperature), batch)


def find_collapse(tower: str, cloud: Cloud, possible: int) -> Concern | None:
    """Returns a concern where a tower's embeddings have collapsed.

    Args:
        tower: `image` or `text`.
        cloud: Its embeddings, at least two.
        possible: The largest effective rank: the dimension, or the number of distinct images or texts where that is
            smaller. Images of few classes may well lie in few directions.
    """
    spread, rank = cloud.spread, cloud.effective_rank
    if spread >= LEAST_SPREAD and rank >= LEAST_RANK * possible:
        return None
    return Concern(
        f"{tower}_collapse",
        f"The {tower} embeddings have collapsed: effective rank {rank:.1f} of {possible}, mean cosine "
        f"{1 - spread:.2f}. {CALM_DOWN} Check whether the table's {tower}s differ at all.",
    )


def find_loss_concern(loss: float, chance: float, rows: int, steps: int) -> Concern | None:
    """Returns a concern where an epoch's loss shows that nothing is learned.

    Args:
        loss: Mean over the epoch.
        chance: What the loss would be at equal similarities.
        rows: Those of the largest batch.
        steps: Those of the whole training.

    Example:
        >>> find_loss_concern(3.1, 4.159, rows=64, steps=100) is None
        True
        >>> [find_loss_concern(loss, 4.159, rows=64, steps=100).about for loss in (4.158, math.nan)]
        ['loss_at_chance', 'loss_not_finite']
        >>> find_loss_concern(0.0, 0.0, rows=64, steps=100).about
        'no_negatives'
    """
    if not math.isfinite(loss):
        return Concern(
            "loss_not_finite",
            f"The loss is {loss}: training has diverged. {CALM_DOWN}",
        )
    if chance == 0 and rows == 1:
        return Concern(
            "no_negatives",
            "Each batch is a single row, with nothing to tell it apart from: the loss is 0. Raise data.batch_size.",
        )
    if chance == 0:
        return Concern(
            "no_negatives",
            "All rows of a batch are positives of each other, so there is nothing to tell apart: the loss is 0. The "
            "table needs more than one label or caption.",
        )
    if loss < AT_CHANCE * chance:
        return None
    change = "Change the learning rate of model.optimizer tenfold"
    if steps < FEW_STEPS:
        change = (
            f"The training takes few steps ({steps:,}), of up to {rows:,} rows: raise trainer.max_epochs, or lower "
            f"data.batch_size. If that does not help, {change[0].lower()}{change[1:]}"
        )
    return Concern(
        "loss_at_chance",
        f"The loss stays at chance: {loss:.3f} on the mean of an epoch, and {chance:.3f} where all similarities are "
        f"equal. {change}, down where it was raised and up where it was lowered, and check whether captions and images "
        "belong together.",
    )


def find_temperature_concern(towers: AlignTowers) -> Concern | None:
    """Returns a concern where a trained temperature has run into its bound."""
    bound = towers.min_temperature
    if not towers.temperature.requires_grad or towers.temperature.item() > bound * (1 + 1e-6):
        return None
    return Concern(
        "temperature_at_bound",
        f"The temperature has fallen to its bound, {bound:g}. Set model.train_temperature to false, or lower the "
        "learning rate of model.optimizer; if the base's own temperature is below, lower model.min_temperature.",
    )


def describe_missing_gradient(tower: str) -> Concern:
    """Returns the concern that a tower which is to be trained received no gradient."""
    return Concern(
        f"{tower}_gradient_zero",
        f"The gradient of the {tower} tower was exactly 0 for an epoch: it learns nothing. Lower the learning rate of "
        f"model.optimizer, or adapt other layers by model.{tower}_lora.layers.",
    )


def describe_forgotten_preservation(task: str) -> Concern:
    """Returns the concern that a step of a user's own leaves preservation out."""
    return Concern(
        "preservation_forgotten",
        f"A tower is to be preserved, but the training_step of {task} does not add self.preservation_loss(batch) to "
        "its loss. Add it, or set model.image_preservation and model.text_preservation to null.",
    )


def describe_divergence(tower: str, cloud: Cloud) -> Concern:
    """Returns the concern that some of a tower's features have no direction."""
    return Concern(
        f"{tower}_diverged",
        f"{cloud.broken:,} of {cloud.count + cloud.broken:,} {tower} features are 0 or not finite: training has "
        f"diverged. {CALM_DOWN}",
    )
