"""One training task: batch -> embeddings -> objective -> logged metrics."""

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, cast

import torch
from jsonargparse import lazy_instance
from lightning import LightningModule
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from torchmetrics import Metric

from finetune.core.errors import CheckpointError, RecipeError
from finetune.core.types import Batch, ClassPrompts, Embeddings
from finetune.metrics import choose_metric, class_embeddings
from finetune.model.base import load_model
from finetune.model.lora import TowerLora, attach_lora
from finetune.model.recompute import checkpoint_blocks
from finetune.model.towers import AlignTowers
from finetune.objectives import Classification, Contrastive, Objective, Seen
from finetune.training.schedules import WarmupCosine, parameter_groups, total_steps

CALM_DOWN = "Lower the learning rate of model.optimizer tenfold, or set trainer.gradient_clip_val to 1.0."
"""What repairs a training that diverges or collapses."""


class AlignTask(LightningModule):
    """Adapts a pretrained ALIGN to image-text pairs.

    Subclass it to change a step: `training_step` receives a `Batch`, `self(batch)` returns `Embeddings`, and
    `self.objective(embeddings, batch)` the loss.

    Args:
        checkpoint: Hub id, local folder, or `align-mini`.
        image_lora: Adapters of the image tower; null leaves it as it is.
        text_lora: Adapters of the text tower; null leaves it as it is.
        objective: The loss.
        train_temperature: Whether the temperature is trained.
        min_temperature: Lower bound of the temperature, which divides the logits.
        image_checkpointing: Whether the image tower's blocks are computed again in the backward pass instead of
            kept: about half the memory for 1.4 times the time of a step.
        optimizer: Called with the parameter groups; weight decay spares biases, norms and the temperature.
        lr_scheduler: Called with the optimizer and the total number of steps; stepped after each step.
    """

    def __init__(
        self,
        checkpoint: str = "kakaobrain/align-base",
        image_lora: TowerLora | None = TowerLora(),  # noqa: B008 (frozen)
        text_lora: TowerLora | None = TowerLora(),  # noqa: B008 (frozen)
        objective: Objective = lazy_instance(Contrastive),  # noqa: B008 (copied below)
        train_temperature: bool = True,
        min_temperature: float = 0.01,
        image_checkpointing: bool = False,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] = lambda params: AdamW(params, lr=1e-3),
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] = WarmupCosine,
    ) -> None:
        super().__init__()
        if isinstance(objective, Classification) and text_lora is not None:
            raise ValueError(
                "Expected text_lora to be null with Classification, which reads no texts in training, but got "
                f"{text_lora}. Set model.text_lora to null."
            )
        adapted = attach_lora(load_model(checkpoint), image_lora, text_lora)
        self.towers = AlignTowers(adapted, train_temperature, min_temperature)
        if image_checkpointing:
            checkpoint_blocks(self.towers.align.vision_model)
        self._trained = {f"towers.{name}" for name in self.towers.trained_names()}
        self.objective = copy.deepcopy(objective)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.strict_loading = False
        self._class_embeds: Tensor | None = None
        self.metric = choose_metric(None)

    @property
    def head(self) -> Classification | None:
        """The head on the image features, where the objective has one; texts are not read then."""
        return self.objective if isinstance(self.objective, Classification) else None

    def forward(self, batch: Batch) -> Embeddings:
        """Embeds a batch with both towers, or with the image tower alone where the objective has a head."""
        if self.head is None:
            return cast(Embeddings, self.towers(batch))
        features = self.towers.image_features(batch.pixel_values)
        return Embeddings(features, features[:0], self.towers.temperature)

    def setup(self, stage: str) -> None:
        """Starts the objective's head, before a checkpoint is restored or weights are sorted.

        Raises:
            RecipeError: If there is a head and the table has no labels.
        """
        if stage != "fit" or self.head is None:
            return
        self.towers.temperature.requires_grad_(False)  # the head has taken it in
        prompts = cast(ClassPrompts, self._find_prompts())
        if not self.head.is_started:
            self.to(self.trainer.strategy.root_device)
            start = self.head.head_start
            loader = getattr(self.trainer, "datamodule").train_dataloader()  # noqa: B009
            seen = self._see(loader, start.rows, start.views)
            self.head.start(*start(self.class_embeds(prompts), self.towers.temperature, seen))

    def _find_prompts(self) -> ClassPrompts | None:
        """The class prompts of the data module; none where it has none, or the trainer was given loaders alone."""
        datamodule = getattr(self.trainer, "datamodule", None)
        prompts: ClassPrompts | None = getattr(datamodule, "class_prompts", None)
        if prompts is None and self.head is not None:
            raise RecipeError(
                "Expected data.table.label to name a column with Classification, but got "
                f"{'loaders without a table' if datamodule is None else 'none'}. "
                "Give the trainer an ImageTextDataModule whose table has labels."
            )
        return prompts

    @torch.no_grad()
    def _see(self, batches: DataLoader[Batch], rows: int, views: int) -> Seen:
        """Training rows, in the order and with the augmentations of the first epochs."""
        parts: list[Seen] = []
        for batch in _repeat(batches, views):
            features = self.towers.image_features(batch.pixel_values.to(self.device))
            parts.append(Seen(features.float(), batch.truth.to(self.device), batch.weights.to(self.device)))
            if sum(len(part.weights) for part in parts) >= rows:
                break
        return Seen(*map(torch.cat, zip(*parts, strict=True)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The objective's loss, logged as `train/loss` beside the temperature."""
        loss = cast(Tensor, self.objective(self(batch), batch))
        size = len(batch.rows)
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log("train/temperature", self.towers.temperature.detach(), batch_size=size)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """The objective's loss as `val/loss`, and the metrics of the table's kind.

        Returns:
            `image_features` and `text_features`, for callbacks.
        """
        embeddings = self(batch)
        self.log("val/loss", self.objective(embeddings, batch), prog_bar=True, batch_size=len(batch.rows))
        if self._class_embeds is None:
            self._update_retrieval(embeddings, batch)
        else:
            self._update_accuracy(embeddings.image_features, self._class_embeds, batch)
        return {"image_features": embeddings.image_features, "text_features": embeddings.text_features}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """The metrics of the table's kind.

        Returns:
            `rows`, `image_features`, and `class_scores` (label tables) or `text_features` (caption tables).
        """
        if self._class_embeds is not None:
            features = self.towers.image_features(batch.pixel_values)
            scores = self._update_accuracy(features, self._class_embeds, batch)
            return {"rows": batch.rows, "image_features": features, "class_scores": scores}
        embeddings = self(batch)
        self._update_retrieval(embeddings, batch)
        return {
            "rows": batch.rows,
            "image_features": embeddings.image_features,
            "text_features": embeddings.text_features,
        }

    def class_scores(self, image_features: Tensor, class_embeds: Tensor) -> Tensor:
        """Logits of every class for every image, shape (B, C).

        Args:
            image_features: Unnormalised image features of shape (B, D).
            class_embeds: Normalised class embeddings of shape (C, D), see `class_embeds`.
        """
        return self.objective.class_scores(image_features, class_embeds, self.towers.temperature)

    @torch.no_grad()
    def class_embeds(self, prompts: ClassPrompts) -> Tensor:
        """Normalised embeddings of the classes, shape (C, D): per class the mean over its prompts."""
        features = [
            self.towers.text_features(ids.to(self.device), mask.to(self.device))
            for ids, mask in zip(prompts.input_ids.split(256), prompts.attention_mask.split(256), strict=True)
        ]
        embeds = torch.nn.functional.normalize(torch.cat(features).float(), dim=-1)
        return class_embeddings(embeds, prompts.label_ids.to(self.device))

    def _update_accuracy(self, image_features: Tensor, class_embeds: Tensor, batch: Batch) -> Tensor:
        scores = self.class_scores(image_features, class_embeds)
        _require_finite(scores)
        cast(Metric, self.metric).update(scores, batch.truth)
        return scores

    def _update_retrieval(self, embeddings: Embeddings, batch: Batch) -> None:
        _require_finite(embeddings.image_embeds, embeddings.text_embeds)
        metric = cast(Metric, self.metric)
        metric.update(embeddings.image_embeds, embeddings.text_embeds, batch.image_ids, batch.caption_ids)

    def _start_evaluation(self) -> None:
        prompts = self._find_prompts()
        self._class_embeds = None if prompts is None else self.class_embeds(prompts)
        self.metric = choose_metric(prompts).to(self.device)

    def _end_evaluation(self, stage: str) -> None:
        self.log_dict({f"{stage}/{name}": value for name, value in self.metric.compute().items()})

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

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trained, and its schedule, stepped after each step."""
        named = dict(self.named_parameters())
        of_objective = {name: named.pop(name) for name in list(named) if name.startswith("objective.")}
        groups = parameter_groups(named.items())
        optimizer = self.optimizer(cast(Iterable[Parameter], groups + parameter_groups(of_objective.items())))
        if self.head is not None:
            for group in optimizer.param_groups[len(groups) :]:
                group["lr"] *= self.head.lr_scale
        schedule = self.lr_scheduler(optimizer, total_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's step, then the bound of the temperature."""
        super().optimizer_step(*args, **kwargs)
        self.towers.bound_temperature()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out the towers' frozen weights: they are the base's, which the run names by hash."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: weights[name] for name in weights if name in self._trained or not name.startswith("towers.")
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Starts the head that a checkpoint holds, so that there is a place for it.

        Raises:
            CheckpointError: If it holds weights that have no place in this task.
        """
        weights = checkpoint["state_dict"]
        if self.head is not None and {"objective.weight", "objective.bias"} <= weights.keys():
            self.head.start(weights["objective.weight"].to(self.device), weights["objective.bias"].to(self.device))
        if unknown := sorted(weights.keys() - self.state_dict().keys()):
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
        saved = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
        task = cls(**{**saved.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **init_args})
        task.on_load_checkpoint(saved)
        task.load_state_dict(saved["state_dict"], strict=False)
        return task


def _require_finite(*outputs: Tensor) -> None:
    """Refuses what no metric can rank."""
    if not all(output.isfinite().all() for output in outputs):
        raise RecipeError(
            f"Expected finite numbers of images and texts, but got NaN or infinity: training has diverged. {CALM_DOWN}"
        )


def _repeat(batches: DataLoader[Batch], epochs: int) -> Iterator[Batch]:
    """The batches of the first epochs, each in its order and with its augmentations where the loader has such."""
    set_epoch = getattr(batches.batch_sampler, "set_epoch", None)
    for epoch in range(epochs):
        if set_epoch is not None:
            set_epoch(epoch)
        yield from batches
