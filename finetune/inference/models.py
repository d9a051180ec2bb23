"""The ways a trained model answers about a batch: with both towers, class prompts, a head, or as a plain classifier."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import EfficientNetForImageClassification

from finetune.core.errors import RecipeError
from finetune.core.types import Answers, Batch, ClassPrompts
from finetune.inference.embed import embed_classes
from finetune.model.base import open_image_processor
from finetune.model.head import LinearHead
from finetune.model.pixels import PixelScale, read_levels
from finetune.model.pretrained import open_model
from finetune.model.towers import AlignTowers
from finetune.objectives import cosine_logits

CALM_DOWN = "Lower the learning rate of model.optimizer tenfold, or set trainer.gradient_clip_val to 1.0."
"""What repairs a training that diverges or collapses."""


class RowModel(ABC):
    """A model as it is asked about rows. The modules inside stay with their owner, who may go on training them."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Answers:
        """Returns what the model says of the rows of a batch, which lies on the model's device."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Moves the modules to a device and returns the model."""

    def scores(self, image_features: Tensor) -> Tensor | None:  # noqa: ARG002
        """Returns the logits of every class, shape (B, C); None where there are no classes.

        Args:
            image_features: Float tensor of shape (B, D), not normalised.
        """
        return None


class TwoTowers(RowModel):
    """Answers with the features of images and texts: for retrieval.

    Args:
        towers: The model.
    """

    def __init__(self, towers: AlignTowers) -> None:
        self.towers = towers

    def to(self, device: torch.device) -> Self:
        """Moves the towers."""
        self.towers.to(device)
        return self

    def __call__(self, batch: Batch) -> Answers:
        """Embeds images and texts."""
        embeddings = self.towers(batch)
        return Answers.of(batch, embeddings.image_features, embeddings.text_features)


class _ByImage(RowModel):
    """Scores the classes of an image by the features that the image tower gives it."""

    towers: AlignTowers

    @abstractmethod
    def scores(self, image_features: Tensor) -> Tensor:
        """Returns the logits of every class, see `RowModel.scores`."""

    def __call__(self, batch: Batch) -> Answers:
        """Scores the classes for each image."""
        features = self.towers.image_features(batch.pixel_values)
        return Answers.of(batch, features, class_scores=self.scores(features))


class ZeroShot(_ByImage):
    """Answers with the scores of classes that are given by their prompts.

    Args:
        towers: The model, on the device where it is asked.
        prompts: The classes.
    """

    def __init__(self, towers: AlignTowers, prompts: ClassPrompts) -> None:
        self.towers = towers
        self.class_embeds = embed_classes(towers, prompts, towers.temperature.device)

    def scores(self, image_features: Tensor) -> Tensor:
        """Returns the cosine similarities with the classes divided by the temperature, see `RowModel.scores`."""
        return cosine_logits(image_features, self.class_embeds, self.towers.temperature)

    def to(self, device: torch.device) -> Self:
        """Moves the towers and the embeddings of the classes."""
        self.towers.to(device)
        self.class_embeds = self.class_embeds.to(device)
        return self


class HeadOnTower(_ByImage):
    """Answers with the logits of a head on the image tower.

    Args:
        towers: The model.
        head: The head.
    """

    def __init__(self, towers: AlignTowers, head: LinearHead) -> None:
        self.towers = towers
        self.head = head

    def scores(self, image_features: Tensor) -> Tensor:
        """Returns the head's logits, see `RowModel.scores`."""
        logits: Tensor = self.head(image_features)
        return logits

    def to(self, device: torch.device) -> Self:
        """Moves the towers and the head."""
        self.towers.to(device)
        self.head.to(device)
        return self


def ask_towers(towers: AlignTowers, prompts: ClassPrompts | None) -> RowModel:
    """Returns the towers as rows ask for them: with class prompts where the table has classes, else both.

    Args:
        towers: The model, on the device where it is asked.
        prompts: The classes of the table; None where it has none.
    """
    return TwoTowers(towers) if prompts is None else ZeroShot(towers, prompts)


class PlainClassifier(RowModel):
    """Answers with the logits of an `EfficientNetForImageClassification` folder, run as any user would run it.

    Args:
        folder: A folder written by `finetune.export.classifier`.

    Raises:
        CheckpointError: If the folder or its processor does not open, or its tensors are not exactly those of its
            configuration.
    """

    def __init__(self, folder: Path) -> None:
        self.model: Any = open_model(EfficientNetForImageClassification, folder)
        self.scale_pixels = PixelScale(read_levels(open_image_processor(folder)))
        config: Any = self.model.config
        self.classes = tuple(config.id2label[index] for index in range(config.num_labels))
        self.is_multilabel = config.problem_type == "multi_label_classification"

    def to(self, device: torch.device) -> Self:
        """Moves the model."""
        self.model.to(device)
        self.scale_pixels.to(device)
        return self

    def logits(self, pixel_values: Tensor) -> Tensor:
        """Returns the logits of every class, shape (B, C).

        Args:
            pixel_values: Uint8 tensor of shape (B, 3, H, W), or floats as the folder's processor makes them.
        """
        logits: Tensor = self.model(self.scale_pixels(pixel_values)).logits
        return logits

    def __call__(self, batch: Batch) -> Answers:
        """Scores the classes for each image."""
        return Answers.of(batch, class_scores=self.logits(batch.pixel_values))


def require_finite(answers: Answers) -> None:
    """Refuses answers that no metric can rank.

    Args:
        answers: What a model says of rows.

    Raises:
        RecipeError: If a number is NaN or infinity.
    """
    outputs = (answers.image_features, answers.text_features, answers.class_scores)
    if not all(output.isfinite().all() for output in outputs if output is not None):
        raise RecipeError(
            f"Expected finite numbers of images and texts, but got NaN or infinity: training has diverged. {CALM_DOWN}"
        )
