"""How long the measurements of a run take, by the first batches of each."""

import time

import torch

from finetune.core.shipped import shipped_folder
from finetune.core.types import Texts
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.workers import typical
from finetune.data.prepare.texts import write_prompts
from finetune.evaluation.probe import IMAGES, TEMPLATE, WORDS
from finetune.inference.embed import embed, embed_texts
from finetune.inference.models import PlainClassifier, RowModel, ask_towers
from finetune.model.base import Base
from finetune.model.towers import AlignTowers
from finetune.pipeline.choose import Score, open_line
from finetune.pipeline.pace import FirstBatches, Reading, clock
from finetune.run.folder import RunFolder
from finetune.run.settings import RunSettings

_TEXTS = 64
"""Texts of the drift meter that are tried."""


class MeasurePace:
    """Asks models about the first batches, the base before all others.

    Args:
        data: The table, and those of `data.retention`.
        settings: The recipe's.
        device: Where the models run.
        reading: How images are read.

    Attributes:
        images: Seconds in which the training images are embedded, once the base was measured.
        probed: How many embeddings a measurement keeps for the drift meter, likewise.
        kept: Bytes that are kept while an interpolation is chosen, once that was tried.
    """

    def __init__(
        self, data: ImageTextDataModule, settings: RunSettings, device: torch.device, reading: Reading
    ) -> None:
        self.data, self.settings, self.device, self.reading = data, settings, device, reading
        self.test = self.images = self.retention = self.probe = 0.0
        self.probed = IMAGES
        self.kept = 0

    def expect_base(self, base: Base) -> float:
        """Returns the seconds in which the base is measured.

        Args:
            base: The base.
        """
        data = self.data
        started = time.perf_counter()
        towers = AlignTowers.of(base).eval().to(self.device)
        model = ask_towers(towers, data.class_prompts)
        opened = time.perf_counter() - started
        self.test = self._ask(model, data, "test")
        images = FirstBatches(data.loader("train"))
        embed(towers.image_embeddings, images, self.device)
        rows = {split: len(data.rows.indices(split)) for split in ("train", "test")}
        self.images = images.total * self.reading.join(typical(images.seconds), rows["train"] // images.total)
        self.probe = self._probe(towers) + min(IMAGES, rows["test"]) / rows["train"] * self.images
        for other in data.retention.values():
            self.retention += self._ask(ask_towers(towers, other.class_prompts), other, "test")
        has_probe = bool(data.kind.classes) and (self.settings.linear_probe or self.settings.neighbours)
        return opened + self.test + self.retention + self.probe + (self.images if has_probe else 0.0)

    def expect_choice(self, run: RunFolder, base: Base) -> float:
        """Returns the seconds in which interpolation and temperature are chosen.

        Args:
            run: Where something was trained.
            base: The base of that.
        """
        settings, data = self.settings, self.data
        rows = len(data.rows.indices("val"))
        fits = settings.calibrate and data.kind.has_one_label and rows > 0
        is_chosen = settings.fixed_interpolation is None
        if not fits and not is_chosen:
            return 0.0
        started = time.perf_counter()
        line = open_line(run, base, self.device)
        opened = time.perf_counter() - started
        validation = self.test * rows / len(data.rows.indices("test"))
        passes = 0
        if is_chosen:
            score = Score(line, data, self.device)
            self.kept, passes = score.kept_bytes, len(score.candidates.asking)
        return opened + (passes + fits) * validation + passes * self.retention

    def expect_exported(self, run: RunFolder) -> float:
        """Returns the seconds in which what was exported is measured.

        Args:
            run: Where it lies.
        """
        seconds = 0.0
        if run.merged.is_dir():
            started = time.perf_counter()
            merged = Base.open(run.merged)
            model = ask_towers(AlignTowers.of(merged).eval(), self.data.class_prompts)
            seconds += time.perf_counter() - started + self._ask(model, self.data, "test")
            seconds += self.retention + self.probe + (self.images if self.settings.neighbours else 0.0)
        if run.classifier.is_dir():
            seconds += self._ask(PlainClassifier(run.classifier), self.data, "test")
        return seconds

    def _ask(self, model: RowModel, data: ImageTextDataModule, split: str) -> float:
        """Seconds in which a model answers about all rows of a split, by those of its first batches."""
        few = FirstBatches(data.loader(split))
        embed(model.to(self.device), few, self.device)
        each = self.reading.join(typical(few.seconds), len(data.rows.indices(split)) // few.total)
        return few.total * each + few.warming_up

    def _probe(self, towers: AlignTowers) -> float:
        """Seconds of the drift meter's words."""
        words = (shipped_folder("datasets") / WORDS).read_text(encoding="utf-8").splitlines()
        self.probed = IMAGES + len(words)
        texts = [self.data.texts.encode(text) for text in write_prompts(words[:_TEXTS], [TEMPLATE])]
        padded = Texts(*map(torch.as_tensor, self.data.texts.pad(texts)))
        return len(words) / len(texts) * clock(lambda: embed_texts(towers, padded, self.device))
