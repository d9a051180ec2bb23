"""A run in figures: the content of `metrics.json`, and what the screen shows of a finished run."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.core.files import read_json
from finetune.data.checks.unreadable import describe_skipped, read_skipped
from finetune.evaluation.forgetting import compare, find_differences
from finetune.export.artifacts import find_exported
from finetune.export.choose_interpolation import Choice
from finetune.run.folder import AFTER, BASE, ZERO_SHOT_AFTER, RunFolder
from finetune.run.measurement import Measurement
from finetune.run.results import PROOF_FILE, format_proof, format_results


def describe(run: RunFolder) -> str:
    """Returns the tables of a finished run, what it exported, where its files lie, and which rows were left out.

    Args:
        run: A finished run.
    """
    exported = find_exported(run).values()
    return "\n".join(
        [
            format_results(read_json(run.metrics)),
            "",
            *(f"{folder.name:<11} {folder}: {format_proof(read_json(folder / PROOF_FILE))}" for folder in exported),
            f"run         {run.path}",
            f"report      {run.report}",
            *describe_skipped(read_skipped(run.skipped), run.skipped),
        ]
    )


def summarise(
    measured: Mapping[str, Measurement], choice: Choice, notices: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the content of `metrics.json`.

    Args:
        measured: The measurements of a run, by their names in `MEASURED`.
        choice: What was chosen.
        notices: What went wrong in training.
    """
    before, after = measured[BASE], measured[AFTER]
    metrics: dict[str, Any] = {"before": before.test.metrics}
    if before.linear_probe:
        metrics["linear probe"] = before.linear_probe
    if ZERO_SHOT_AFTER in measured:
        metrics["zero-shot after"] = measured[ZERO_SHOT_AFTER].test.metrics
    metrics["after"] = after.test.metrics
    towers = measured.get(ZERO_SHOT_AFTER, after)
    if towers.probe is not None:  # else there is a classifier alone, whose towers are the base's
        metrics |= compare(before, towers)
    metrics["difference"] = find_differences(before.test, after.test)
    metrics |= choice.as_metrics()
    if after.calibration:
        metrics["calibration"] = after.calibration
    if notices:
        metrics["notices"] = notices
    return metrics
