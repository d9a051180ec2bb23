"""The sections of the page in their order, each only where the run has its facts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from finetune.core.interpolation import name_interpolation
from finetune.report.charts import Chart
from finetune.report.classes import MOST_CONFUSED, find_confusions, find_recalls
from finetune.report.curves import draw_interpolation, draw_profiles, draw_reliability, draw_training, find_unbeaten
from finetune.report.examples import find_mistakes, find_queries
from finetune.report.facts import Facts
from finetune.report.thumbnails import Thumbnails
from finetune.run.results import (
    format_drift,
    format_interpolation,
    format_share,
    largest_differences,
    list_results,
    list_retention,
    list_unchanged_towers,
)

MOST_RECALLS = 40
"""Classes in the table of recalls; of more, it shows those that lost most and those that gained most."""


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


def build_sections(facts: Facts, thumbnails: Thumbnails) -> dict[str, Section]:
    """The sections by their anchors.

    Args:
        facts: The run.
        thumbnails: Of its table.
    """
    metrics = facts.metrics
    head, *lines = list_results(metrics)
    training = f"Training (mean of {facts.trainings})" if facts.trainings > 1 else "Training"
    sections = {
        "results": Section("Before and after", Grid("On the test rows", head, lines)),
        "retention": Section("Retention", _show_retention(metrics)),
        "training": Section(training, draw_training(facts)),
        "interpolation": Section("Interpolation", _show_interpolation(metrics.get("interpolation"))),
        "calibration": Section("Calibration", _show_calibration(metrics.get("calibration"))),
        **(_classes(facts.predictions, thumbnails) if facts.is_classified else {}),
        **(_queries(facts.predictions, thumbnails) if facts.is_retrieved else {}),
        "proof": Section("Proof", _show_proofs(facts.proofs)),
        "use": Section("Use it", facts.cards),
        "origin": Section("Provenance", _show_origin(facts.environment)),
    }
    return {anchor: section for anchor, section in sections.items() if section.content}


def _classes(predictions: pd.DataFrame, thumbnails: Thumbnails) -> dict[str, Section]:
    """The sections of a table with one label a row."""
    is_wrong = (predictions["label"] != predictions["prediction"]).any()
    return {
        "classes": Section("Classes", _show_recalls(predictions) if "before" in predictions else None),
        "confusions": Section("Confusions", _show_confusions(predictions) if is_wrong else None),
        "mistakes": Section("Mistakes", find_mistakes(predictions, thumbnails) if is_wrong else None),
    }


def _queries(predictions: pd.DataFrame, thumbnails: Thumbnails) -> dict[str, Section]:
    """The section of a table with captions."""
    found = {
        direction: {
            title: find_queries(predictions, direction, title == "Best", thumbnails) for title in ("Worst", "Best")
        }
        for direction in ("text_to_image", "image_to_text")
    }
    return {"queries": Section("Queries", found)}


def _show_retention(metrics: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if "retention" in metrics:
        head, *lines = list_retention(metrics["retention"])
        shown["tables"] = Grid("Performance on other domains", head, lines, texts=2)
    if "drift" in metrics:
        shown["drift"] = format_drift(metrics["drift"])
    return shown


def _show_interpolation(interpolation: dict[str, Any] | None) -> tuple[str, list[Chart], list[Grid]] | None:
    if interpolation is None or "curve" not in interpolation:  # the recipe's number, which the page shows
        return None
    charts, grids = [draw_interpolation(interpolation)], [_list_points("Interpolations tried", interpolation["curve"])]
    if "profiles" in interpolation:
        charts.append(draw_profiles(interpolation))
        grids.append(_list_points("Models that no other one beats in both", find_unbeaten(interpolation)))
    return format_interpolation(interpolation), charts, grids


def _list_points(title: str, points: Sequence[Mapping[str, Any]]) -> Grid:
    keys = ("target", "target_error", "retention_loss", "retention_error")
    lines = [
        [name_interpolation(point["interpolation"]), *(format_share(point.get(key)) for key in keys)]
        for point in points
    ]
    return Grid(title, ["interpolation", "target", "standard error", "retention loss", "standard error"], lines)


def _show_calibration(calibration: dict[str, Any] | None) -> tuple[Chart, Grid, Grid] | None:
    if calibration is None:
        return None
    temperature = calibration["temperature"]
    errors = [calibration[key] for key in ("expected_calibration_error", "of_a_calibrated_model")]
    kinds = [
        [kind, f"{temperature[kind]:.4g}", *(format_share(error[kind]) for error in errors)] for kind in temperature
    ]
    bins = [
        [format_share(one[key]) for key in ("confidence", "accuracy", "share")]
        for one in calibration["bins"]
        if one["share"]
    ]
    head = ["temperature", "value", "expected calibration error", "error of a calibrated model"]
    return (
        draw_reliability(calibration),
        Grid("Temperatures", head, kinds),
        Grid("Points of the diagram", ["confidence", "accuracy", "share of rows"], bins),
    )


def _show_recalls(predictions: pd.DataFrame) -> tuple[Grid, int]:
    """The table, and how many classes between its halves it leaves out."""
    recalls = find_recalls(predictions)
    hidden = max(0, len(recalls) - MOST_RECALLS)
    if hidden:
        recalls = recalls[: MOST_RECALLS // 2] + recalls[-MOST_RECALLS // 2 :]
    lines = [
        [one.name, f"{one.rows:,}", format_share(one.before), format_share(one.after), f"{100 * one.change:+.1f}"]
        for one in recalls
    ]
    return Grid("Recall, the largest loss first", ["class", "rows", "before", "after", "change"], lines), hidden


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
        "pairs": Grid("Most frequent confusions", ["label", "prediction", "rows"], pairs, texts=2),
    }


def _show_proofs(proofs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if not proofs:
        return {}
    differences, hashes = [], []
    for folder, proof in proofs.items():
        allowed = f"{proof['tolerance']:.0e}"
        differences += [[f"{folder}: {name}", f"{it:.1e}", allowed] for name, it in largest_differences(proof).items()]
        hashes += [[f"{folder}: {name}", digest] for name, digest in proof["sha256"].items()]
    return {
        "differences": Grid("Largest differences", ["output", "difference", "tolerance"], differences),
        "unchanged": [line for proof in proofs.values() for line in list_unchanged_towers(proof)],
        "hashes": Grid("Fingerprints", ["part", "SHA-256"], hashes, texts=2),
    }


def _show_origin(environment: dict[str, Any]) -> tuple[Grid, Grid]:
    inputs = [[table["path"], table.get("sha256") or table["version"]] for table in environment["table"]]
    inputs.append([environment["checkpoint"]["name"], environment["checkpoint"]["sha256"]])
    machine = [[name, environment[name]] for name in ("device", "platform")]
    machine += map(list, environment["versions"].items())
    return (
        Grid("Inputs", ["input", "SHA-256"], inputs, texts=2),
        Grid("Machine and versions", ["name", "value"], machine, texts=2),
    )
