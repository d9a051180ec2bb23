"""The sections of the page in their order, each only where the run has its facts."""

from typing import Any, NamedTuple

import pandas as pd

from finetune.report.charts import Chart
from finetune.report.classes import MOST_CONFUSED, find_confusions, find_recalls
from finetune.report.curves import draw_alpha, draw_reliability, draw_training
from finetune.report.examples import find_mistakes, find_queries
from finetune.report.facts import Facts
from finetune.report.pictures import Pictures
from finetune.run.results import list_results, list_retention

MOST_CLASSES = 40
"""Classes in the table of recalls; of more, those that lost and those that gained most."""


class Section(NamedTuple):
    """One section.

    Attributes:
        title: Its heading.
        content: What the page's template shows in it.
    """

    title: str
    content: Any


class Grid(NamedTuple):
    """A table of the page.

    Attributes:
        title: Its caption.
        head: The names of the columns.
        lines: The cells of each line; the first names the line.
        texts: How many columns, from the first, hold words rather than numbers.
    """

    title: str
    head: list[str]
    lines: list[list[str]]
    texts: int = 1


def build_sections(facts: Facts, pictures: Pictures) -> dict[str, Section]:
    """The sections by their anchors.

    Args:
        facts: The run.
        pictures: Of its table.
    """
    metrics, predictions = facts.metrics, facts.predictions
    head, *lines = list_results(metrics)
    training = f"Training, mean of {facts.trainings}" if facts.trainings > 1 else "Training"
    is_wrong = facts.is_classified and (predictions["label"] != predictions["prediction"]).any()
    sections = {
        "results": Section("Before and after", Grid("On the test rows", head, lines)),
        "elsewhere": Section("Elsewhere", _show_elsewhere(metrics)),
        "training": Section(training, draw_training(facts)),
        "alpha": Section("Alpha", _show_alpha(metrics.get("alpha"))),
        "calibration": Section("Calibration", _show_calibration(metrics.get("calibration"))),
        "classes": Section("Classes", _show_recalls(facts)),
        "confusions": Section("Confusions", _show_confusions(predictions) if is_wrong else None),
        "mistakes": Section("Mistakes", find_mistakes(predictions, pictures) if is_wrong else None),
        "queries": Section("Queries", _show_queries(predictions, pictures)),
        "proof": Section("Proof", _show_proofs(facts.proofs)),
        "use": Section("Use it", facts.cards),
        "origin": Section("Where it comes from", _show_origin(facts.environment)),
    }
    return {anchor: section for anchor, section in sections.items() if section.content}


def _show_elsewhere(metrics: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if "retention" in metrics:
        head, *lines = list_retention(metrics["retention"])
        shown["retention"] = Grid("What the base could do on other tables", head, lines, texts=2)
    if "drift" in metrics:
        shown["drift"] = f"{metrics['drift']:.3f}"
    return shown


def _show_alpha(alpha: dict[str, Any] | None) -> tuple[Chart, Grid] | None:
    if alpha is None or "curve" not in alpha:  # a number of the recipe's, which the page shows
        return None
    lines = [
        [f"{point['alpha']:g}", *(_percent(point.get(key)) for key in ("target", "retention_loss", "retention_error"))]
        for point in alpha["curve"]
    ]
    return draw_alpha(alpha), Grid("Each alpha", ["alpha", "target", "loss elsewhere", "standard error"], lines)


def _show_calibration(calibration: dict[str, Any] | None) -> tuple[Chart, Grid, Grid] | None:
    if calibration is None:
        return None
    temperature, error = calibration["temperature"], calibration["expected_calibration_error"]
    by_chance = calibration["of_a_calibrated_model"]
    kinds = [
        [kind, f"{temperature[kind]:.4g}", _percent(error[kind]), _percent(by_chance[kind])] for kind in temperature
    ]
    bins = [
        [_percent(one["confidence"]), _percent(one["accuracy"]), _percent(one["share"])]
        for one in calibration["bins"]
        if one["share"]
    ]
    return (
        draw_reliability(calibration),
        Grid("Temperatures", ["temperature", "value", "expected calibration error", "of a calibrated model"], kinds),
        Grid("Points of the diagram", ["confidence", "accuracy", "share of rows"], bins),
    )


def _show_recalls(facts: Facts) -> tuple[Grid, int] | None:
    """The table, and how many classes stand between its halves without being shown."""
    if not facts.is_classified or "before" not in facts.predictions:
        return None
    recalls = find_recalls(facts.predictions)
    hidden = max(0, len(recalls) - MOST_CLASSES)
    if hidden:
        recalls = recalls[: MOST_CLASSES // 2] + recalls[-MOST_CLASSES // 2 :]
    lines = [
        [one.name, f"{one.rows:,}", _percent(one.before), _percent(one.after), f"{100 * one.change:+.1f}"]
        for one in recalls
    ]
    return Grid("Recall, the greatest loss first", ["class", "rows", "before", "after", "change"], lines), hidden


def _show_confusions(predictions: pd.DataFrame) -> dict[str, Any]:
    confusions = find_confusions(predictions)
    rows = predictions["label"].value_counts()
    pairs = [[label, other, f"{count:,}"] for label, other, count in confusions.pairs[:MOST_CONFUSED]]
    return {
        "classes": confusions.classes,
        "lines": [
            [(count, count / rows.get(label, 1)) for count in line]
            for label, line in zip(confusions.classes, confusions.counts, strict=True)
        ],
        "is_cut": confusions.is_cut,
        "pairs": Grid("Most frequent confusions", ["label", "taken for", "rows"], pairs, texts=2),
    }


def _show_queries(predictions: pd.DataFrame, pictures: Pictures) -> dict[str, Any] | None:
    if "retrieved" not in predictions:
        return None
    return {
        direction: {
            which: find_queries(predictions, direction, which == "best", pictures) for which in ("worst", "best")
        }
        for direction in ("text_to_image", "image_to_text")
    }


def _show_proofs(proofs: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    if not proofs:
        return None
    differences: list[list[str]] = []
    hashes: list[list[str]] = []
    kept: list[str] = []
    for folder, proof in proofs.items():
        found = proof.get("max_abs_difference") or proof["max_relative_difference"]
        allowed = f"{proof['tolerance']:.0e}"
        differences += [[f"{folder}: {name}", f"{value:.1e}", allowed] for name, value in found.items()]
        hashes += [[f"{folder}: {name}", digest] for name, digest in proof["sha256"].items()]
        kept += [
            f"The {tower} tower is the base's, byte for byte."
            for tower, is_same in proof.get("identical_to_base", {}).items()
            if is_same
        ]
    return {
        "differences": Grid("Largest difference from the trained model", ["folder", "found", "allowed"], differences),
        "kept": kept,
        "hashes": Grid("Fingerprints", ["of", "SHA-256"], hashes, texts=2),
    }


def _show_origin(environment: dict[str, Any]) -> tuple[Grid, Grid]:
    inputs = [[table["path"], table["sha256"]] for table in environment["table"]]
    inputs.append([environment["checkpoint"]["name"], environment["checkpoint"]["sha256"]])
    machine = [["device", environment["device"]], ["platform", environment["platform"]]]
    return (
        Grid("Inputs", ["input", "SHA-256"], inputs, texts=2),
        Grid("Machine and versions", ["", "value"], [*machine, *map(list, environment["versions"].items())], texts=2),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
