"""What each tower made of a table's rows is kept, so that any two are answered together without asking either again."""

from collections.abc import Mapping

import torch
from torch import Tensor

from finetune.core.interpolation import Interpolation
from finetune.core.types import Answers, Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.evaluate import Evaluation, measure
from finetune.export.choose_interpolation import Line
from finetune.inference.embed import embed, embed_classes
from finetune.model.towers import AlignTowers
from finetune.objectives import cosine_logits

ROWS = 4096
"""Rows whose classes are scored at a time."""


class KeptAnswers:
    """The models of a line as they are asked about the rows of a table.

    The towers know nothing of each other, so a profile's answers are joined from those of its halves: I image profiles
    and T text profiles take I + T passes over the rows, and not I x T.

    Args:
        line: The models.
        data: The table.
        split: Which of its rows.
        device: Where the models run.
        title: Under which progress is shown.
        by_head: Whether the line's head answers where it has one, as on the rows that it was trained for.
    """

    def __init__(
        self,
        line: Line,
        data: ImageTextDataModule,
        split: str,
        device: torch.device,
        title: str,
        by_head: bool = False,
    ) -> None:
        self.line, self.data, self.split, self.device, self.title = line, data, split, device, title
        self.by_head = by_head and line.has_head
        # By weights; None where the tower was not trained, as it is the same in every profile.
        self._images: dict[tuple[float, float] | None, Answers] = {}
        self._texts: dict[tuple[float, float] | None, Tensor] = {}

    def evaluate(self, interpolation: float | Interpolation) -> Evaluation:
        """Measures the model of an interpolation on the rows.

        Args:
            interpolation: In [0, 1], or a profile.

        Raises:
            RecipeError: If the model answers with NaN or infinity.
        """
        return measure(self.answers(interpolation), self.data.kind.metric())

    def answers(self, interpolation: float | Interpolation) -> Answers:
        """Returns what the model of an interpolation says of the rows, as `RowModel`s do.

        Args:
            interpolation: In [0, 1], or a profile.
        """
        profile = Interpolation.of(interpolation)
        image, text = (half if tower in self.line.moved else None for tower, half in profile.by_tower().items())
        asks_images, asks_texts = image not in self._images, text not in self._texts and not self.by_head
        if asks_images or asks_texts:
            towers = self.line.towers_at(profile)
            if asks_texts and (prompts := self.data.class_prompts) is not None:
                self._texts[text], asks_texts = embed_classes(towers, prompts, self.device).cpu(), False
            if asks_images or asks_texts:
                found = self._embed_rows(towers, asks_images, asks_texts)
                if asks_images:
                    self._images[image] = found._replace(text_features=None)
                if found.text_features is not None:
                    self._texts[text] = found.text_features
        answers = self._images[image]
        if self.by_head or self.data.kind.classes:
            return answers._replace(class_scores=self._score(interpolation, answers, self._texts.get(text)))
        return answers._replace(text_features=self._texts[text])

    def count_bytes(self, weights: Mapping[str, int]) -> int:
        """Returns how much memory takes what is kept once the towers were asked.

        Args:
            weights: At how many weights each tower is asked, by its name.
        """
        rows, classes = len(self.data.rows.indices(self.split)), len(self.data.kind.classes)
        texts = 0 if self.by_head else classes or rows
        width: int = self.line.towers.align.config.projection_dim
        return 4 * width * (rows * weights["image"] + texts * weights["text"])

    def forget(self) -> None:
        """Drops what was kept."""
        self._images.clear()
        self._texts.clear()

    def _embed_rows(self, towers: AlignTowers, images: bool, texts: bool) -> Answers:
        """What the towers make of the rows, in one pass, as each image is read for it."""

        def encode(batch: Batch) -> Answers:
            return Answers.of(
                batch,
                towers.image_features(batch.pixel_values) if images else None,
                towers.text_features(batch.input_ids, batch.attention_mask) if texts else None,
            )

        return embed(encode, self.data.loader(self.split), self.device, progress=self.title, shared=True)

    @torch.no_grad()
    def _score(self, interpolation: float | Interpolation, answers: Answers, classes: Tensor | None) -> Tensor:
        """The scores of the classes, by the head or by the embeddings of the classes."""
        assert answers.image_features is not None
        parts = (part.to(self.device) for part in answers.image_features.split(ROWS))
        if self.by_head:
            head = self.line.head_at(interpolation)
            return torch.cat([head(part).cpu() for part in parts])
        assert classes is not None
        embeds, temperature = classes.to(self.device), self.line.temperature_at(interpolation)
        return torch.cat([cosine_logits(part, embeds, temperature).cpu() for part in parts])
