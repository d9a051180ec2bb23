"""The stages of a run: measure base -> train -> choose -> export -> measure -> report."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from finetune.core import processes
from finetune.core.console import say
from finetune.core.csv_text import format_frame, shield_frame
from finetune.core.errors import Concern
from finetune.core.files import read_json, write_folder, write_json, write_text
from finetune.data.checks.seen import write_seen
from finetune.data.checks.unreadable import SkippedRow, write_skipped
from finetune.evaluation.measure import measure_calibration, measure_rows, measure_towers
from finetune.export.adapter_card import write_adapter_card
from finetune.export.artifact import Artifact
from finetune.export.artifacts import ARTIFACTS, find_exported
from finetune.export.cards import select_metrics, write_card
from finetune.export.choose_interpolation import Choice
from finetune.export.facts import read_facts
from finetune.export.merged import MergedCheckpoint, write_processor
from finetune.export.proof import FreshProcess
from finetune.export.trained import TrainedModel
from finetune.export.witness import write_witness
from finetune.inference.models import PlainClassifier
from finetune.model.adapter import save_adapter
from finetune.model.base import Base
from finetune.model.towers import AlignTowers
from finetune.pipeline.choose import choose, open_line
from finetune.pipeline.environment import describe_environment, find_changes
from finetune.pipeline.log_results import log_results
from finetune.pipeline.machine import suit_machine, use_choices
from finetune.pipeline.stage import Stage, compare
from finetune.pipeline.summary import summarise
from finetune.pipeline.train import fit
from finetune.pipeline.work import Work
from finetune.report.page import write_report
from finetune.run.folder import AFTER, BASE, MEASURED, ZERO_SHOT_AFTER, RunFolder
from finetune.run.measurement import MEASUREMENT, read_measurement, write_measurement
from finetune.run.results import PROOF_FILE, format_proof, installed_versions
from finetune.training.classification_task import ClassificationTask
from finetune.training.loggers import INSTALL_TENSORBOARD, has_tensorboard
from finetune.training.progress import clear_saves

WITNESS_ROWS = 8
"""Held-back rows that prove a merge."""


class MeasureBase(Stage):
    """Measures the untouched base."""

    name = "measure-base"
    is_shared = True

    def inputs(self, work: Work) -> dict[str, str]:
        """What is measured, and on what."""
        return {**work.sources, **work.settings("data", "run.neighbours", "run.linear_probe")}

    def make(self, work: Work) -> Sequence[Path]:
        """Measures and writes."""
        settings, output = work.recipe.run, work.run.measurement(BASE)
        towers = AlignTowers.of(work.base)
        measured, _ = measure_towers(towers, work.data, work.device, settings.neighbours, settings.linear_probe)
        if processes.is_first():
            write_measurement(measured, output)
        return [output]


class Train(Stage):
    """Trains, and writes what was trained: adapter, head, processor, and the witness of both."""

    name = "train"
    is_shared = True

    def inputs(self, work: Work) -> dict[str, str]:
        """What is trained, on what, and how."""
        return {**work.sources, **work.settings("model", "data", "trainer", "run.seed", "run.soup")}

    def make(self, work: Work) -> Sequence[Path]:
        """Trains, from where an interrupted training of the same things was saved, or from the start."""
        run, task = work.run, work.task
        use_choices(work.recipe, task, work.data, processes.from_first(lambda: self.prepare(work)))
        seconds = processes.from_first(lambda: MEASURE_BASE.seconds(work))  # what is exported takes about as long
        trained = fit(work.recipe, task, work.data, run, seconds)
        work.loggers = trained.loggers
        processes.from_first(lambda: self.write(work, trained.notices))
        del work.task
        return [*_trained(run), run.training, run.environment, run.table]

    def prepare(self, work: Work) -> dict[str, Any]:
        """Records what a training starts from, unless it goes on; returns what was found for the machine then."""
        run = work.run
        shutil.rmtree(run.adapter, ignore_errors=True)
        run.head.unlink(missing_ok=True)
        if not run.started.is_file() or read_json(run.started)["inputs"] != self.inputs(work):
            self._start(work)
        chosen: dict[str, Any] = read_json(run.environment)["auto"]
        if self.changed_versions(work):  # which was allowed
            write_json(run.environment, {**describe_environment(work), "auto": chosen})
        return chosen

    def write(self, work: Work, concerns: Sequence[Concern]) -> None:
        """Writes what was trained."""
        run, task, data = work.run, work.task, work.data
        head = task.head if isinstance(task, ClassificationTask) else None
        write_witness(task.towers, data.held_back(WITNESS_ROWS), run.witness, head)
        with write_folder(run.processor, overwrite=True) as staging:
            write_processor(data.processor, staging)
        if isinstance(task.towers.model, PeftModel):
            with write_folder(run.adapter) as staging:
                save_adapter(task.towers.model, staging, work.base)
                write_processor(data.processor, staging)
                write_adapter_card(staging, run, work.base)
        if head is not None:
            head.write(run.head)
        write_json(run.training, {"notices": [concern._asdict() for concern in concerns]})
        for member in run.members(work.recipe.run.soup):
            clear_saves(member.checkpoints)

    def changed_inputs(self, work: Work) -> list[str]:
        """Returns what has changed since the training was done, or since one began that is not done."""
        if not self._is_under_way(work):
            return super().changed_inputs(work)
        return compare(read_json(work.run.started)["inputs"], self.inputs(work))

    def changed_versions(self, work: Work) -> list[str]:
        """Returns the versions that have changed since a training began that is not done, and the device."""
        if not self._is_under_way(work):
            return []
        return find_changes(read_json(work.run.environment), work.device)

    def _is_under_way(self, work: Work) -> bool:
        """Whether a training began that is not done."""
        return work.run.started.is_file() and not work.run.stage(self.name).is_file()

    def _start(self, work: Work) -> None:
        """Removes what another training left, and records what this one starts from."""
        run = work.run
        for path in (run.started, run.fitted, run.logged):
            path.unlink(missing_ok=True)
        for folder in (run.checkpoints, run.tensorboard, run.path / "members"):
            if folder.exists():
                shutil.rmtree(folder)
        if work.recipe.takes_tensorboard and not has_tensorboard():
            say(f"values are logged to {run.logged}; for TensorBoard too: {INSTALL_TENSORBOARD}", file=sys.stderr)
        chosen = suit_machine(work.recipe, work.task, work.data)
        write_json(run.environment, {**describe_environment(work), "auto": chosen})
        write_seen(work.data.rows, run.table)
        write_json(run.started, {"inputs": self.inputs(work)})


class Choose(Stage):
    """Chooses the interpolation and fits the temperature."""

    name = "choose"
    is_shared = True

    def inputs(self, work: Work) -> dict[str, str]:
        """What was trained, and what the choice is made by."""
        settings = work.settings("data", "run.interpolation", "run.max_retention_loss", "run.calibrate")
        return {**work.sources, **settings, **work.fingerprints(*_trained(work.run))}

    def make(self, work: Work) -> Sequence[Path]:
        """Chooses and writes."""
        run, device = work.run, work.device
        choice = choose(work.recipe.run, work.data, device, lambda: open_line(run, work.base, device))
        if processes.is_first():
            choice.write(run.choice)
        return [run.choice]


class Export(Stage):
    """Writes and proves every kind of artifact that can be made of what was trained."""

    name = "export"

    def inputs(self, work: Work) -> dict[str, str]:
        """The base, what was trained, and what was chosen."""
        return {"base": work.base.fingerprint, **work.fingerprints(*_trained(work.run), work.run.choice)}

    def make(self, work: Work) -> Sequence[Path]:
        """Exports each artifact."""
        trained = TrainedModel(work.run, work.base, Choice.read(work.run.choice))
        facts = read_facts(work.run, work.base)
        with FreshProcess() as fresh:
            for kind in ARTIFACTS:
                folder = work.run.path / kind.name
                shutil.rmtree(folder, ignore_errors=True)
                if artifact := kind.of(trained):
                    artifact.export(folder, work.title, trained.choice.as_metrics(), fresh=fresh, facts=facts)
        return [*find_exported(work.run).values()]


class Measure(Stage):
    """Measures the folders that were exported, so that the figures are those of what a user gets."""

    name = "measure"
    is_shared = True

    def inputs(self, work: Work) -> dict[str, str]:
        """What was exported, as the proofs name it, and what it is measured on."""
        proofs = [folder / PROOF_FILE for folder in find_exported(work.run).values()]
        exported = work.fingerprints(work.run.choice, *proofs)
        return {**work.sources, **work.settings("data", "run.neighbours"), **exported}

    def make(self, work: Work) -> Sequence[Path]:
        """Measures and writes; beside a classifier the merged checkpoint has a measurement of its own."""
        run, choice, found = work.run, Choice.read(work.run.choice), {}
        if processes.is_first():
            for model in (AFTER, ZERO_SHOT_AFTER):
                shutil.rmtree(run.measurement(model), ignore_errors=True)
        if run.merged.is_dir():
            merged = Base.open(run.merged)
            towers = AlignTowers.of(merged)
            neighbours = work.recipe.run.neighbours
            found[_model_of(MergedCheckpoint, run)] = measure_towers(towers, work.data, work.device, neighbours)
        if run.classifier.is_dir():
            found[AFTER] = measure_rows(PlainClassifier(run.classifier), work.data, work.device)
        for model, (measured, answers) in found.items():
            if model == AFTER:
                measured = measured._replace(calibration=measure_calibration(choice, answers))
            if processes.is_first():
                write_measurement(measured, run.measurement(model))
        return [run.measurement(model) for model in found]


class Report(Stage):
    """Puts the measurements side by side: metrics, predictions, cards, the page."""

    name = "report"

    def inputs(self, work: Work) -> dict[str, str]:
        """All that the page shows."""
        run = work.run
        proofs = [folder / PROOF_FILE for folder in find_exported(run).values()]
        measured = [run.measurement(model) for model in MEASURED]
        described = [run.recipe, run.environment, run.training, run.choice, *run.logs]
        return work.fingerprints(*described, *proofs, *measured)

    def make(self, work: Work) -> Sequence[Path]:
        """Writes them; the run is finished then."""
        run = work.run
        measured = {model: read_measurement(path) for model in MEASURED if (path := run.measurement(model)).is_dir()}
        metrics = summarise(measured, Choice.read(run.choice), read_json(run.training)["notices"])
        before, after = measured[BASE].predictions, measured[AFTER].predictions
        predictions = after.assign(before=before["prediction"])
        write_json(run.metrics, metrics)
        write_text(run.predictions, format_frame(shield_frame(predictions)))
        proofs = {}
        exported = find_exported(run)
        for kind, folder in exported.items():
            proof = read_json(folder / PROOF_FILE)
            chosen = select_metrics(kind.by_head, metrics)
            write_card(folder, kind.card(kind.name, proof), work.title, chosen, read_facts(run, work.base))
            write_measurement(measured[_model_of(kind, run)], folder / MEASUREMENT)
            proofs[kind.name] = format_proof(proof)
        run.skipped.unlink(missing_ok=True)
        write_skipped(run.skipped, _list_skipped(work))
        write_report(run.path)
        log_results(work, {name: measured[name].test.metrics for name in (BASE, AFTER)})
        run.finish({"proofs": proofs, "versions": installed_versions()})
        carried = [folder / MEASUREMENT for folder in exported.values()]
        return [run.metrics, run.predictions, run.skipped, run.report, *carried, run.finished]


MEASURE_BASE, TRAIN, EXPORT = MeasureBase(), Train(), Export()
STAGES: tuple[Stage, ...] = (MEASURE_BASE, TRAIN, Choose(), EXPORT, Measure(), Report())


def _model_of(kind: type[Artifact], run: RunFolder) -> str:
    """Which measurement of a run is that of an artifact: beside a classifier, what the prompts answer has its own."""
    return AFTER if kind.by_head or not run.classifier.is_dir() else ZERO_SHOT_AFTER


def _trained(run: RunFolder) -> list[Path]:
    """What a training leaves to the stages that follow."""
    return [run.witness, run.head, run.processor, run.adapter]


def _list_skipped(work: Work) -> tuple[SkippedRow, ...]:
    """The rows that any stage left out, by file and number."""
    records = [read_json(record) for stage in STAGES if (record := work.run.stage(stage.name)).is_file()]
    found = {SkippedRow(**row) for record in records for row in record["skipped"]} | set(work.data.skipped)
    return tuple(sorted(found, key=lambda row: (row.file, len(row.row), row.row)))
