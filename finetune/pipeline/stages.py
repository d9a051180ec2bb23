"""A run as stages that read and write its folder: measure base -> train -> choose -> export -> measure -> report.

A stage leaves its output whole or absent. Then it notes down the fingerprints of what it was made from, and is skipped
as long as they stay the same and its output is there.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.loggers.logger import DummyLogger
from peft import PeftModel

from finetune.core.files import fingerprint_file, read_json, write_folder, write_json, write_text
from finetune.data.checks.unreadable import read_skipped, write_skipped
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.evaluation.forgetting import compare, find_differences
from finetune.evaluation.measure import measure_calibration, measure_classifier, measure_towers
from finetune.export.artifacts import ARTIFACTS
from finetune.export.cards import select_metrics, write_card
from finetune.export.choose_interpolation import Choice, Line
from finetune.export.merged import write_processor
from finetune.export.trained import TrainedModel
from finetune.export.witness import write_witness
from finetune.inference.embed import find_device
from finetune.inference.models import PlainClassifier
from finetune.model.adapter import save_adapter
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.model.merge import merge_adapter
from finetune.model.towers import AlignTowers
from finetune.pipeline.choose import check_settings, choose
from finetune.pipeline.recipe import Recipe
from finetune.pipeline.train import fit
from finetune.report.page import write_report
from finetune.run.folder import AFTER, BASE, MEASURED, ZERO_SHOT_AFTER, RunFolder
from finetune.run.measurement import FACTS, MEASUREMENT, read_measurement, write_measurement
from finetune.run.results import PROOF_FILE, format_proof, installed_versions
from finetune.training.classification_task import ClassificationTask
from finetune.training.task import AlignTask

WITNESS_ROWS = 8
"""Held-back rows that prove a merge."""


class Work:
    """What the stages of a run share: the recipe and the run's folder, and what is opened of them at first use.

    Args:
        recipe: What to run.
        run: The run's folder.
    """

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe = recipe
        self.run = run

    @property
    def base(self) -> Base:
        """The base of the training."""
        return self.recipe.base

    @cached_property
    def data(self) -> ImageTextDataModule:
        """The tables."""
        return self.recipe.build_data()

    @cached_property
    def task(self) -> AlignTask:
        """What is trained, adapters freshly drawn."""
        return self.recipe.build_trainable()

    @cached_property
    def device(self) -> torch.device:
        """Where models are measured."""
        return find_device(self.recipe.accelerator)

    @cached_property
    def sources(self) -> dict[str, str]:
        """Fingerprints of what every stage depends on: the recipe, the base, the tables."""
        tables = {str(file): file for file in find_tables(self.data) if file.is_file()}
        return {
            "recipe": fingerprint_file(self.run.recipe),
            "base": self.base.fingerprint,
            **{name: fingerprint_file(file) for name, file in tables.items()},
        }

    def check(self) -> None:
        """Finds what is wrong with tables and recipe before anything is written.

        Raises:
            TableError: If a table has a fault.
            RecipeError: If the interpolation is to be chosen but the tables hold nothing to choose it by, nothing is
                trained, or the trainer's values do not go together.
        """
        self.data.rows.require("train", "test")
        for other in self.data.retention.values():
            other.rows.require("test")
        check_settings(self.recipe.run, self.data)
        if self.task.trains:  # builds it
            self.recipe.build_trainer([], DummyLogger())

    def open_trained(self) -> TrainedModel:
        """Returns what was trained, at what was chosen."""
        return TrainedModel(self.run, self.base, Choice.read(self.run.choice))


def find_tables(data: ImageTextDataModule) -> list[Path]:
    """Returns the files of a table and of its retention tables.

    Args:
        data: The tables.
    """
    return [Path(file) for one in (data, *data.retention.values()) for file in one.rows.files]


class Stage(ABC):
    """One step of a run."""

    name: ClassVar[str]

    @abstractmethod
    def inputs(self, work: Work) -> Mapping[str, str]:
        """Returns the fingerprints of what the stage reads, by a name for each."""

    @abstractmethod
    def outputs(self, run: RunFolder) -> Iterable[Path]:
        """Returns the files that are there once the stage is done."""

    @abstractmethod
    def make(self, work: Work) -> None:
        """Does the work, in place of what an earlier run of the stage may have left."""

    def is_done(self, work: Work) -> bool:
        """Returns whether the output is there and was made from the inputs as they are now."""
        record = work.run.stage(self.name)
        if not record.is_file() or not all(path.exists() for path in self.outputs(work.run)):
            return False
        return bool(read_json(record) == dict(self.inputs(work)))

    def run(self, work: Work) -> None:
        """Does the work, unless it is done."""
        if self.is_done(work):
            return
        work.run.stage(self.name).unlink(missing_ok=True)
        self.make(work)
        found = (*read_skipped(work.run.skipped), *work.data.skipped)
        write_skipped(work.run.skipped, tuple(dict.fromkeys(found)))
        write_json(work.run.stage(self.name), dict(self.inputs(work)))


class MeasureBase(Stage):
    """Measures the untouched base."""

    name = "measure-base"

    def inputs(self, work: Work) -> Mapping[str, str]:
        """The recipe, the base, the tables."""
        return work.sources

    def outputs(self, run: RunFolder) -> Iterable[Path]:
        """The measurement."""
        return [run.measurement(BASE)]

    def make(self, work: Work) -> None:
        """Measures and writes."""
        settings = work.recipe.run
        measured, _ = measure_towers(
            open_towers(work.base), work.data, work.device, settings.neighbours, settings.linear_probe
        )
        write_measurement(measured, work.run.measurement(BASE))


class Train(Stage):
    """Trains, and writes what was trained: adapter, head, processor, and the witness of both."""

    name = "train"

    def inputs(self, work: Work) -> Mapping[str, str]:
        """The recipe, the base, the tables."""
        return work.sources

    def outputs(self, run: RunFolder) -> Iterable[Path]:
        """What all trainings leave."""
        return [run.processor, run.witness, run.training]

    def make(self, work: Work) -> None:
        """Trains from the start: what an interrupted training left is removed."""
        run, task, data = work.run, work.task, work.data
        for path in (run.checkpoints, run.path / "members", run.adapter):
            shutil.rmtree(path, ignore_errors=True)
        for path in (run.logged, run.head):
            path.unlink(missing_ok=True)
        concerns = fit(work.recipe, task, data, run)
        head = task.head if isinstance(task, ClassificationTask) else None
        write_witness(task.towers, data.held_back(WITNESS_ROWS), run.witness, head)
        with write_folder(run.processor, overwrite=True) as staging:
            write_processor(data.processor, staging)
        if isinstance(task.towers.model, PeftModel):
            with write_folder(run.adapter, overwrite=True) as staging:
                save_adapter(task.towers.model, staging, work.base)
                write_processor(data.processor, staging)
        if head is not None:
            head.write(run.head)
        write_json(run.training, {"notices": [concern._asdict() for concern in concerns]})
        del work.task


class Choose(Stage):
    """Chooses the interpolation and fits the temperature."""

    name = "choose"

    def inputs(self, work: Work) -> Mapping[str, str]:
        """The recipe, the base, the tables, and what was trained."""
        return {**work.sources, **_fingerprint(_trained_files(work.run))}

    def outputs(self, run: RunFolder) -> Iterable[Path]:
        """The choice."""
        return [run.choice]

    def make(self, work: Work) -> None:
        """Chooses and writes."""
        choose(work.recipe.run, work.data, work.device, lambda: open_line(work.run, work.base, work.device)).write(
            work.run.choice
        )


class Export(Stage):
    """Writes and proves every kind of artifact that can be made of what was trained."""

    name = "export"

    def inputs(self, work: Work) -> Mapping[str, str]:
        """The base, what was trained, and what was chosen."""
        return {"base": work.base.fingerprint, **_fingerprint([*_trained_files(work.run), work.run.choice])}

    def outputs(self, run: RunFolder) -> Iterable[Path]:
        """The proofs."""
        return [folder / PROOF_FILE for folder in artifact_folders(run)] or [run.path / ARTIFACTS[0].name]

    def make(self, work: Work) -> None:
        """Exports each artifact."""
        trained = work.open_trained()
        for kind in ARTIFACTS:
            artifact = kind.of(trained)
            folder = work.run.path / kind.name
            shutil.rmtree(folder, ignore_errors=True)
            if artifact is not None:
                artifact.export(folder, work.recipe.name, trained.choice.as_metrics())


class Measure(Stage):
    """Measures the folders that were exported, so that the figures are those of what a user gets."""

    name = "measure"

    def inputs(self, work: Work) -> Mapping[str, str]:
        """The recipe, the base, the tables, what was chosen, and the proofs of what was exported."""
        proofs = [folder / PROOF_FILE for folder in artifact_folders(work.run)]
        return {**work.sources, **_fingerprint([work.run.choice, *proofs])}

    def outputs(self, run: RunFolder) -> Iterable[Path]:
        """The measurements."""
        beside = [run.measurement(ZERO_SHOT_AFTER)] if run.classifier.is_dir() and run.merged.is_dir() else []
        return [run.measurement(AFTER), *beside]

    def make(self, work: Work) -> None:
        """Measures and writes; beside a classifier the merged checkpoint has a measurement of its own."""
        run, choice = work.run, Choice.read(work.run.choice)
        for model in MEASURED[1:]:
            shutil.rmtree(run.measurement(model), ignore_errors=True)
        if run.merged.is_dir():
            towers, name = open_towers(Base.open(run.merged)), ZERO_SHOT_AFTER if run.classifier.is_dir() else AFTER
            measured, answers = measure_towers(towers, work.data, work.device, work.recipe.run.neighbours)
            if name == AFTER:
                measured = measured._replace(calibration=measure_calibration(choice, answers))
            write_measurement(measured, run.measurement(name))
        if run.classifier.is_dir():
            measured, answers = measure_classifier(PlainClassifier(run.classifier), work.data, work.device)
            measured = measured._replace(calibration=measure_calibration(choice, answers))
            write_measurement(measured, run.measurement(AFTER))


class Report(Stage):
    """Puts the measurements side by side: metrics, predictions, cards, the page."""

    name = "report"

    def inputs(self, work: Work) -> Mapping[str, str]:
        """The measurements, what was chosen, and what went wrong in training."""
        measured = [work.run.measurement(model) / FACTS for model in MEASURED]
        proofs = [folder / PROOF_FILE for folder in artifact_folders(work.run)]
        return _fingerprint([work.run.choice, work.run.training, *proofs, *measured])

    def outputs(self, run: RunFolder) -> Iterable[Path]:
        """All that a reader looks at."""
        return [run.metrics, run.predictions, run.report, run.finished]

    def make(self, work: Work) -> None:
        """Writes them; the run is finished then."""
        run = work.run
        metrics = summarise(run)
        before, after = read_measurement(run.measurement(BASE)), read_measurement(run.measurement(AFTER))
        predictions = after.predictions.assign(before=before.predictions["prediction"])
        write_json(run.metrics, metrics)
        write_text(run.predictions, predictions.to_csv(index=False, lineterminator="\n"))
        proofs = {}
        for kind in ARTIFACTS:
            folder = run.path / kind.name
            if folder.is_dir():
                proof = read_json(folder / PROOF_FILE)
                write_card(folder, kind.card(kind.name, proof), work.recipe.name, select_metrics(kind.name, metrics))
                write_measurement(read_measurement(run.measurement(model_of(kind.name, run))), folder / MEASUREMENT)
                proofs[kind.name] = format_proof(proof)
        write_report(run.path)
        run.finish({"proofs": proofs, "versions": installed_versions()})


STAGES: tuple[Stage, ...] = (MeasureBase(), Train(), Choose(), Export(), Measure(), Report())


def run_stages(work: Work) -> None:
    """Runs the stages that are left.

    Args:
        work: The run.
    """
    for stage in STAGES:
        stage.run(work)


def open_towers(base: Base) -> AlignTowers:
    """Returns an untouched checkpoint's towers.

    Args:
        base: The checkpoint.
    """
    return AlignTowers(base.load(), train_temperature=False, min_temperature=1e-6)


def open_line(run: RunFolder, base: Base, device: torch.device) -> Line:
    """Returns the models between a base and what a run trained of it.

    Args:
        run: The run's folder.
        base: The base.
        device: Where the models run.
    """
    adapted = merge_adapter(base, run.adapter).state_dict() if run.adapter.is_dir() else None
    return Line(base, adapted, LinearHead.read(run.head) if run.head.is_file() else None, device)


def summarise(run: RunFolder) -> dict[str, Any]:
    """Returns the content of `metrics.json`, made of the measurements.

    Args:
        run: A run whose models are measured.

    Raises:
        CheckpointError: If a measurement is damaged.
    """
    before, after = read_measurement(run.measurement(BASE)), read_measurement(run.measurement(AFTER))
    merged = after
    metrics: dict[str, Any] = {"before": before.test.metrics}
    if before.linear_probe:
        metrics["linear probe"] = before.linear_probe
    if run.measurement(ZERO_SHOT_AFTER).is_dir():
        merged = read_measurement(run.measurement(ZERO_SHOT_AFTER))
        metrics["zero-shot after"] = merged.test.metrics
    metrics["after"] = after.test.metrics
    metrics |= compare(before, merged)
    metrics["difference"] = find_differences(before.test, after.test)
    metrics |= Choice.read(run.choice).as_metrics()
    if after.calibration:
        metrics["calibration"] = after.calibration
    if notices := read_json(run.training)["notices"]:
        metrics["notices"] = notices
    return metrics


def model_of(artifact: str, run: RunFolder) -> str:
    """Returns which measurement of a run is that of an artifact: beside a classifier, the merged checkpoint's own.

    Args:
        artifact: Name of the artifact.
        run: The run.
    """
    return ZERO_SHOT_AFTER if artifact == "merged" and run.measurement(ZERO_SHOT_AFTER).is_dir() else AFTER


def artifact_folders(run: RunFolder) -> list[Path]:
    """Returns the folders that a run has exported.

    Args:
        run: The run.
    """
    return [folder for kind in ARTIFACTS if (folder := run.path / kind.name).is_dir()]


def _trained_files(run: RunFolder) -> list[Path]:
    return [run.witness, run.head, *(run.adapter / name for name in ("adapter_model.safetensors", "temperature.json"))]


def _fingerprint(files: Iterable[Path]) -> dict[str, str]:
    """The hashes of those files that are there, by the names of their folder and themselves."""
    return {f"{path.parent.name}/{path.name}": fingerprint_file(path) for path in files if path.is_file()}
