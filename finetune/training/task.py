"""Adapting both towers to image-text pairs: batch -> embeddings -> objective -> logged metrics."""

import copy
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from jsonargparse import lazy_instance
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune.core import processes
from finetune.core.console import say
from finetune.core.errors import CheckpointError, Concern, RecipeError
from finetune.core.types import Answers, Batch, ClassPrompts, Embeddings
from finetune.data.checks.learnable import (
    find_untrained,
    require_several_classes,
    require_several_prompts,
    require_several_texts,
)
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.kinds import TableKind
from finetune.inference.embed import gather
from finetune.inference.models import RowModel, ask_towers, require_finite
from finetune.metrics.retrieval import Retrieval
from finetune.metrics.row_metric import RowMetric
from finetune.model.base import Base, Checkpoint
from finetune.model.fused import fuse_image_layers
from finetune.model.fused_text import fuse_text_layers
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.pixels import read_levels
from finetune.model.recompute import recompute_blocks
from finetune.model.towers import AlignTowers
from finetune.objectives import Contrastive, Objective
from finetune.training.global_loss import pair_loss
from finetune.training.micro_batch import ROWS_AT_FIRST, choose_portion, require_micro_batch
from finetune.training.preservation import (
    ImagePreservation,
    Preservation,
    TextPreservation,
    require_fixed_statistics,
)
from finetune.training.schedules import WarmupCosine, parameter_groups, total_steps

OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]


class AlignTask(LightningModule):
    """Adapts a pretrained ALIGN to image-text pairs.

    Subclass it to change a step: `training_step` receives a `Batch`, `self(batch)` returns `Embeddings`, and
    `self.loss(embeddings, batch)` the loss. Where a tower is preserved, the step adds `self.preservation_loss(batch)`.

    Args:
        checkpoint: Hub id, local folder, or `align-mini`; in Python also an open `Base`.
        image_lora: Adapters of the image tower; null leaves it as it is.
        text_lora: Adapters of the text tower; null leaves it as it is.
        objective: The loss.
        image_preservation: Holds the image tower to the base on other images than the table's; null does not, and a
            tower without adapters needs none.
        text_preservation: Holds the text tower to the base on other texts than the table's, likewise.
        train_temperature: Whether the temperature is trained.
        min_temperature: Lower bound of the temperature, which divides the logits.
        image_recompute: Whether the image tower's blocks are computed again in the backward pass instead of
            kept: about half the memory for 1.5 times the time of a step.
        fused: Whether a training step computes adapter and BatchNorm along with each convolution, and no padding, last
            layer or repeated text that nothing depends on: the same loss and gradients, to rounding, in less time and
            memory.
        channels_last: Whether the image tower's training step keeps images in memory channels last, which changes time
            and rounding; null is true on a CPU where layers are fused, else false, and `auto` times both in a run.
        micro_batch: Most rows that the towers embed at a time, so that the memory of a large batch is that of so many
            rows: the whole batch's loss and gradients, to rounding, for 1.4 times the time of a step. `auto` becomes
            what fits when training starts; null is the whole batch.
        optimizer: Called with the parameter groups; weight decay spares biases, norms and the temperature.
        lr_scheduler: Called with the optimizer and the total number of steps; stepped after each step.

    Attributes:
        metric: What measures the rows of the current or the last evaluation.
        preservation: What preservation added to the loss of the last step, a scalar without gradient; None where the
            step did not ask `preservation_loss`.
    """

    metric: RowMetric
    _model: RowModel

    def __init__(
        self,
        checkpoint: Checkpoint = "kakaobrain/align-base",
        image_lora: TowerLora | None = TowerLora(),  # noqa: B008 (frozen)
        text_lora: TowerLora | None = TowerLora(),  # noqa: B008 (frozen)
        objective: Objective = lazy_instance(Contrastive),  # noqa: B008 (copied below)
        image_preservation: ImagePreservation | None = None,
        text_preservation: TextPreservation | None = None,
        train_temperature: bool = True,
        min_temperature: float = 0.01,
        image_recompute: bool = False,
        fused: bool = True,
        channels_last: bool | Literal["auto"] | None = None,
        micro_batch: int | Literal["auto"] | None = None,
        optimizer: OptimizerFactory = lambda params: AdamW(params, lr=1e-3),
        lr_scheduler: ScheduleFactory = WarmupCosine,
    ) -> None:
        super().__init__()
        require_micro_batch(micro_batch, image_lora)
        if channels_last not in (True, False, None, "auto"):
            raise ValueError(f"Expected channels_last to be true, false, auto or null, but got {channels_last!r}.")
        require_fixed_statistics(image_preservation, image_lora)
        base = Base.open(checkpoint)
        adapted = attach_lora(base.load(), image_lora, text_lora)
        layout = channels_last if isinstance(channels_last, bool) else (None if fused else False)
        self.towers = AlignTowers(adapted, train_temperature, min_temperature, base.levels, layout)
        self.micro_batch = micro_batch
        self.towers.micro_batch = ROWS_AT_FIRST if micro_batch == "auto" else micro_batch
        if image_recompute:
            recompute_blocks(self.towers.align.vision_model)
        if fused:
            fuse_image_layers(self.towers.align.vision_model)
            fuse_text_layers(self.towers.align.text_model, self.towers.align.text_projection)
        self._trained = {f"towers.{name}" for name in self.towers.trained_names()}
        self.objective: nn.Module = copy.deepcopy(objective)
        self._preservation = Preservation(
            base,
            None if image_lora is None else image_preservation,
            None if text_lora is None else text_preservation,
        )
        self.preservation: Tensor | float | None = None
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.strict_loading = False

    @classmethod
    def require_learnable(cls, data: ImageTextDataModule) -> None:
        """Checks that the training rows teach something, before any weight is loaded.

        Args:
            data: The table.

        Raises:
            TableError: If each text of the training rows is true of each image.
            RecipeError: If a batch is a single row.
        """
        rows = data.rows
        if data.batch_size == 1:
            raise RecipeError(
                "Expected data.batch_size to be at least 2, but got 1: a row is told apart from others of its batch. "
                "Raise it."
            )
        if rows.classes:
            require_several_classes(rows)
        if data.table.caption:
            require_several_texts(rows)
        else:
            require_several_prompts(rows, data.templates, data.texts)

    @classmethod
    def find_concerns(cls, data: ImageTextDataModule) -> list[Concern]:
        """What is seldom meant in a table that this task is trained on.

        Args:
            data: The table.
        """
        if data.table.caption:
            return []  # captions may teach classes that have no rows of their own
        return find_untrained(data.rows, "Their prompts answer for them as the base's do, or worse.")

    @property
    def trains(self) -> bool:
        """Whether anything is trained that a run can export: adapters, but not a temperature alone."""
        return self.towers.has_adapters

    def forward(self, batch: Batch) -> Embeddings:
        """Embeds a batch with both towers."""
        return cast(Embeddings, self.towers(batch))

    def loss(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        """Returns the objective's loss of a batch; where processes share it, this one's part, see `global_loss`.

        Args:
            embeddings: What `self(batch)` returns.
            batch: Ids and weights of the same rows.
        """
        return pair_loss(cast(Objective, self.objective), embeddings, batch)

    def model(self, prompts: ClassPrompts | None) -> RowModel:
        """Returns the model as it is asked in evaluation, see `finetune.inference.models`.

        Args:
            prompts: The classes of the table; None where it has none.
        """
        return ask_towers(self.towers, prompts)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss, logged as `train/loss` beside the temperature, and what preservation adds."""
        loss = self.loss(self(batch), batch)
        size = len(batch.rows)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("train/temperature", self.towers.temperature.detach(), batch_size=size)
        return loss + self.preservation_loss(batch)

    def preservation_loss(self, batch: Batch) -> Tensor | float:
        """Returns what preservation adds to the loss of a step; logs `train/image_distance` and `train/text_distance`.

        A `training_step` of your own adds it to its loss.

        Args:
            batch: The step's.

        Returns:
            A scalar; 0 where nothing is preserved.
        """
        parts = []
        for reference in self._preservation.references:
            distance = reference.distance(self.towers, self.trainer.fit_loop.total_batch_idx)
            self.log(f"train/{reference.tower}_distance", distance, batch_size=len(batch.rows), sync_dist=True)
            parts.append(reference.weight * distance)
        self.preservation = sum(part.detach() for part in parts)
        return sum(parts)

    @property
    def preserved(self) -> tuple[str, ...]:
        """The names of the towers that are held to the base."""
        return self._preservation.towers

    @property
    def forgets_preservation(self) -> bool:
        """Whether the last step was to add `preservation_loss`, and did not."""
        return bool(self._preservation.references) and self.preservation is None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Settles on the first batch what is left of `auto`, and lets the base embed what the towers are held to."""
        self.preservation = None
        if self._preservation.is_due:
            height, width = max(processes.from_all(tuple(batch.pixel_values.shape[-2:])))  # a part may be empty
            batches = total_steps(self.trainer) * self.trainer.accumulate_grad_batches
            self._preservation.start(self.device, (height, width), batches)
        if self.micro_batch == "auto":
            with self.trainer.precision_plugin.forward_context():
                self.settle_micro_batch(batch)

    def settle_micro_batch(self, batch: Batch) -> None:
        """Sets how many rows are embedded at a time to what fits into the free memory, and says so on stderr.

        Args:
            batch: One as in training, on any device; the task is on its own.
        """
        names = self._name_trained()
        trained = [parameter for name, parameter in self.named_parameters() if name in names]
        self.towers.micro_batch = None
        found = choose_portion(self, trained, batch, self.device, beside=self._preservation.images_per_step)
        self.micro_batch = self.towers.micro_batch = found.rows
        if processes.is_first():
            say(found, file=sys.stderr)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | None]:  # noqa: ARG002
        """The loss as `val/loss`, and the metrics of the table's kind.

        Returns:
            `image_features` and `text_features`, for callbacks.
        """
        embeddings: Embeddings = self(batch)
        assert embeddings.image_features is not None
        size = sum(processes.count_rows(len(batch.rows)))
        self.log("val/loss", self.loss(embeddings, batch), prog_bar=True, batch_size=size, sync_dist=True)
        scores = self._model.scores(embeddings.image_features)
        self._observe(Answers.of(batch, embeddings.image_features, embeddings.text_features, scores))
        return {"image_features": embeddings.image_features, "text_features": embeddings.text_features}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | None]:  # noqa: ARG002
        """The metrics of the table's kind.

        Returns:
            The fields of `Answers`.
        """
        answers = self._model(batch)
        self._observe(answers)
        return answers._asdict()

    def _observe(self, answers: Answers) -> None:
        require_finite(answers)
        self.metric.observe(gather(answers))

    def _start_evaluation(self) -> None:
        data = getattr(self.trainer, "datamodule", None)  # None where the trainer was given loaders alone
        self._model = self.model(getattr(data, "class_prompts", None))
        kind: TableKind | None = getattr(data, "kind", None)
        self.metric = (Retrieval() if kind is None else kind.metric()).to(self.device)

    def _end_evaluation(self, stage: str) -> None:
        self.log_dict({f"{stage}/{name}": value for name, value in self.metric.compute().items()})

    def setup(self, stage: str) -> None:
        """Checks that the data module prepares images for this task's checkpoint. A fit keeps what is frozen.

        Raises:
            RecipeError: If its processor scales pixels otherwise than the checkpoint's, or several processes train that
                know nothing of each other's rows.
        """
        if self.trainer.world_size != processes.count():
            raise RecipeError(
                "Expected the trainer to have one device, or DataParallel as its strategy, but got "
                f"{type(self.trainer.strategy).__name__} of {self.trainer.world_size} processes, each of which would "
                "compare its rows with its own alone. Pass devices=1, or "
                "strategy=finetune.training.data_parallel.DataParallel() and use_distributed_sampler=False."
            )
        self.towers.keep_features(stage == "fit")
        data, levels = getattr(self.trainer, "datamodule", None), self.towers.scale_pixels.levels
        if not isinstance(data, ImageTextDataModule) or levels is None:
            return
        of_data = read_levels(data.processor.image_processor).to(levels.dtype)  # which `precision` may have rounded
        if not levels.cpu().equal(of_data):
            raise RecipeError(
                "Expected the data module to prepare images as the task's checkpoint does, but got a processor that "
                "scales pixels otherwise. Give both the same checkpoint."
            )

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Forgets the features that were kept, and what the towers were held to."""
        self.towers.keep_features(False)
        self._preservation.stop()

    def on_fit_start(self) -> None:
        """Silences Lightning's warning of modules in evaluation mode, which it gives before training starts.

        BatchNorm and the base's dropout are in it on purpose.
        """
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
        self._silenced = warnings.filters[0]

    def on_train_start(self) -> None:
        """Leaves the warning to other modules."""
        if self._silenced in warnings.filters:
            warnings.filters.remove(self._silenced)  # type: ignore[attr-defined]  # a list

    def on_validation_epoch_start(self) -> None:
        """Embeds the class prompts with the towers as they are now."""
        self._start_evaluation()

    def on_validation_epoch_end(self) -> None:
        """Logs `val/...`."""
        self._end_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Embeds the class prompts with the towers as they are now."""
        self._start_evaluation()

    def on_test_epoch_end(self) -> None:
        """Logs `test/...`."""
        self._end_evaluation("test")

    def build_optimizer(self) -> Optimizer:
        """Returns the optimizer over what is trained."""
        return self.optimizer(cast(Iterable[Parameter], parameter_groups(self.named_parameters())))

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trained, which also bounds the temperature, and its schedule, stepped with it."""
        optimizer = self.build_optimizer()
        optimizer.register_step_post_hook(lambda *_: self.towers.bound_temperature())
        schedule = self.lr_scheduler(optimizer, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out the towers' frozen weights: they are the base's, which the run names by hash."""
        weights, trained = checkpoint["state_dict"], self._name_trained()
        checkpoint["state_dict"] = {
            name: weights[name] for name in weights if name in trained or not name.startswith("towers.")
        }
        for owner in (LightningModule, LightningDataModule):  # what `save_hyperparameters` keeps of a subclass
            kept = checkpoint.get(owner.CHECKPOINT_HYPER_PARAMS_KEY, {})
            kept.update({key: value.name for key, value in kept.items() if isinstance(value, Base)})

    def _name_trained(self) -> set[str]:
        """What is trained of the towers, whether it is frozen just now or was freed by a subclass."""
        freed = {f"towers.{name}" for name, parameter in self.towers.named_parameters() if parameter.requires_grad}
        return self._trained | freed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the weights of a checkpoint have a place in this task.

        Raises:
            CheckpointError: If one has none.
        """
        if unknown := sorted(checkpoint["state_dict"].keys() - self.state_dict().keys()):
            raise CheckpointError(
                "Expected a checkpoint of a task like this one, but got weights that have no place in it, the first of "
                f"{len(unknown)}: {unknown[0]}. Build the task with the adapters and the objective that were trained."
            )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's takes no argument named checkpoint
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", **init_args: Any
    ) -> Self:
        """Builds a task and restores what `on_save_checkpoint` kept.

        Args:
            checkpoint_path: The file.
            map_location: As for `torch.load`.
            init_args: What the trained task was built with, `checkpoint` among them. The file does not say, unless a
                subclass called `save_hyperparameters`.

        Raises:
            CheckpointError: As `on_load_checkpoint`.
        """
        with torch.serialization.safe_globals([TowerLora, ImagePreservation, TextPreservation]):
            saved = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
        task = cls(**{**saved.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **init_args})
        task.on_load_checkpoint(saved)
        task.load_state_dict(saved["state_dict"], strict=False)
        return task
