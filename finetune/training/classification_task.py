"""Fixed classes: a linear head on the image features, trained with the image tower."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, cast

from jsonargparse import lazy_instance
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from finetune.core import processes
from finetune.core.errors import Concern, RecipeError
from finetune.core.types import Batch, ClassPrompts, Embeddings
from finetune.data.checks.learnable import find_untrained, require_several_classes, require_trained_classes
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.kinds import TableKind
from finetune.inference.embed import embed, embed_classes
from finetune.inference.models import HeadOnTower, RowModel
from finetune.model.base import Checkpoint
from finetune.model.head import LinearHead, require_classes
from finetune.model.lora import TowerLora
from finetune.objectives import CrossEntropy
from finetune.training.global_loss import row_loss
from finetune.training.head_start import FromPrompts, HeadStart, Seen
from finetune.training.preservation import ImagePreservation
from finetune.training.schedules import WarmupCosine, parameter_groups
from finetune.training.task import AlignTask, OptimizerFactory, ScheduleFactory

_HEAD = "head"
"""What a checkpoint says of the head beside its weights."""


class ClassificationTask(AlignTask):
    """Trains a linear head on the image features, and the image tower, on a table with labels.

    Texts are not read in training, so the text tower stays as it is. Subclass it to change a step: `training_step`
    receives a `Batch`, `self(batch)` returns `Embeddings` without text features, `self.head` maps image features to
    logits, and `self.objective(logits, batch)` returns the loss. Where the image tower is preserved, the step adds
    `self.preservation_loss(batch)`.

    Args:
        checkpoint: Hub id, local folder, or `align-mini`; in Python also an open `Base`.
        image_lora: Adapters of the image tower; null trains the head alone, a linear probe.
        objective: The loss.
        head_start: What the head is before it is trained; null is `FromPrompts`.
        head_lr_scale: Learning rate of the head as a multiple of the optimizer's.
        image_preservation: Holds the image tower to the base on other images than the table's, see `AlignTask`.
        image_recompute: Whether the image tower's blocks are computed again in the backward pass instead of
            kept: about half the memory for 1.4 times the time of a step.
        fused: Whether a training step computes adapter and BatchNorm along with each convolution: the same loss and
            gradients, to rounding, in less time and memory.
        channels_last: Whether the image tower's training step keeps images in memory channels last, which changes time
            and rounding; null is true on a CPU where layers are fused, else false, and `auto` times both in a run.
        micro_batch: Most rows that the image tower embeds at a time, see `AlignTask`.
        optimizer: Called with the parameter groups; weight decay spares biases and norms.
        lr_scheduler: Called with the optimizer and the total number of steps; stepped after each step.

    Attributes:
        head: The head; None until a fit starts or a checkpoint is loaded. Until then class prompts answer.

    Raises:
        ValueError: If `head_lr_scale` is not positive.
    """

    objective: CrossEntropy

    def __init__(
        self,
        checkpoint: Checkpoint = "kakaobrain/align-base",
        image_lora: TowerLora | None = TowerLora(),  # noqa: B008 (frozen)
        objective: CrossEntropy = lazy_instance(CrossEntropy),  # noqa: B008 (copied below)
        head_start: HeadStart | None = None,
        head_lr_scale: float = 5.0,
        image_preservation: ImagePreservation | None = None,
        image_recompute: bool = False,
        fused: bool = True,
        channels_last: bool | Literal["auto"] | None = None,
        micro_batch: int | Literal["auto"] | None = None,
        optimizer: OptimizerFactory = lambda params: AdamW(params, lr=1e-3),
        lr_scheduler: ScheduleFactory = WarmupCosine,
    ) -> None:
        if not 0 < head_lr_scale < float("inf"):
            raise ValueError(f"Expected head_lr_scale to be positive and finite, but got {head_lr_scale}.")
        super().__init__(
            checkpoint=checkpoint,
            image_lora=image_lora,
            text_lora=None,
            image_preservation=image_preservation,
            train_temperature=False,
            image_recompute=image_recompute,
            fused=fused,
            channels_last=channels_last,
            micro_batch=micro_batch,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.objective = copy.deepcopy(objective)
        self.head: LinearHead | None = None
        self.head_start = head_start or FromPrompts()
        self.head_lr_scale = head_lr_scale

    @classmethod
    def require_learnable(cls, data: ImageTextDataModule) -> None:
        """Checks that the training rows teach classes that are measured, before any weight is loaded.

        Args:
            data: The table.

        Raises:
            RecipeError: If the table has no labels.
            TableError: If training rows are of one class, or test rows of none of their classes.
        """
        _require_labels(data.rows.classes, "none")
        require_several_classes(data.rows)
        require_trained_classes(data.rows)

    @classmethod
    def find_concerns(cls, data: ImageTextDataModule) -> list[Concern]:
        """What is seldom meant in a table that a head is trained on, see `AlignTask.find_concerns`."""
        return find_untrained(data.rows, "The head never learns them. Put rows of each into the training split.")

    @property
    def trains(self) -> bool:
        """True: the head is trained, whether the image tower has adapters or not."""
        return True

    def forward(self, batch: Batch) -> Embeddings:
        """Embeds the images of a batch."""
        return self.towers.image_embeddings(batch)

    def loss(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        """Returns the objective's loss of the head's logits, see `AlignTask.loss`.

        Raises:
            RuntimeError: If there is no head yet.
        """
        return row_loss(self.objective, self._require_head()(embeddings.image_features), batch)

    def model(self, prompts: ClassPrompts | None) -> RowModel:
        """Returns the image tower with the head, or the class prompts' scores while there is no head.

        Raises:
            TableError: If the table has other classes than the head.
        """
        if self.head is None:
            return super().model(prompts)
        require_classes(self.head.classes, () if prompts is None else prompts.names)
        return HeadOnTower(self.towers, self.head)

    def setup(self, stage: str) -> None:
        """Starts the head of a fit, before a checkpoint is restored or weights are sorted.

        Raises:
            RecipeError: If the table has no labels, or the objective's class weights are for other classes.
            TableError: If the table has other classes than a head that is there already.
        """
        super().setup(stage)
        if stage == "predict":
            return
        data = getattr(self.trainer, "datamodule", None)
        kind: TableKind | None = getattr(data, "kind", None)
        _require_labels(() if kind is None else kind.classes, "loaders without a table" if data is None else "none")
        assert data is not None
        assert kind is not None
        self.objective.require_classes(len(kind.classes))
        if self.head is not None:
            require_classes(self.head.classes, kind.classes)
        elif stage == "fit" and self.trainer.ckpt_path is None:  # a checkpoint brings its own
            self.to(device := self.trainer.strategy.root_device)
            start = self.head_start
            seen = embed(self._see, _take(data.train_dataloader(), start.views, start.rows), device, shared=True)
            class_embeds = embed_classes(self.towers, data.class_prompts, device).cpu()
            weight, bias = start(class_embeds, self.towers.temperature.detach().cpu(), seen)
            self.head = LinearHead(weight, bias, kind.classes, kind.is_multilabel).to(device)

    def _require_head(self) -> LinearHead:
        if self.head is None:
            raise RuntimeError("Expected the task to have a head, but got none. Fit it, or load a checkpoint.")
        return self.head

    def _see(self, batch: Batch) -> Seen:
        return Seen(self.towers.image_features(batch.pixel_values), batch.truth, batch.weights)

    def build_optimizer(self) -> Optimizer:
        """Returns the optimizer over what is trained; the head has its own learning rate."""
        of_head = parameter_groups(self._require_head().named_parameters())
        others = parameter_groups(pair for pair in self.named_parameters() if not pair[0].startswith("head."))
        optimizer = self.optimizer(cast(Iterable[Parameter], others + of_head))
        for group in optimizer.param_groups[len(others) :]:
            group["lr"] *= self.head_lr_scale
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the head's weights do not say: its classes."""
        super().on_save_checkpoint(checkpoint)
        if self.head is not None:
            checkpoint[_HEAD] = {"classes": list(self.head.classes), "is_multilabel": self.head.is_multilabel}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes a place for the head that a checkpoint holds.

        Raises:
            CheckpointError: See `AlignTask.on_load_checkpoint`.
            TableError: If a head that is there already has other classes, which are the table's.
        """
        if saved := checkpoint.get(_HEAD):
            if self.head is None:
                weights = checkpoint["state_dict"]
                self.head = LinearHead(weights["head.weight"], weights["head.bias"], **saved).to(self.device)
            require_classes(saved["classes"], self.head.classes)
        super().on_load_checkpoint(checkpoint)


def _require_labels(classes: Sequence[str], got: str) -> None:
    if not classes:
        raise RecipeError(
            f"Expected data.table.label to name a column with ClassificationTask, but got {got}. "
            "Give the trainer an ImageTextDataModule whose table has labels."
        )


def _take(batches: DataLoader[Batch], epochs: int, rows: int) -> Iterator[Batch]:
    """The batches of the first epochs, each in its order and with its augmentations, until there are enough rows."""
    set_epoch = getattr(batches.batch_sampler, "set_epoch", None)
    seen = 0
    for epoch in range(epochs):
        if set_epoch is not None:
            set_epoch(epoch)
        for batch in batches:
            yield batch
            seen += sum(processes.count_rows(len(batch.rows)))
            if seen >= rows:
                return
