"""The content of `metrics.json` and of proofs for readers: the tables and sentences of screen, report and card."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from finetune.core.interpolation import Interpolation, name_interpolation, parse_interpolation

Metrics = Mapping[str, float]
DIFFERENCE = "difference, 95 % interval"
MODELS = ("before", "linear probe", "zero-shot after", "after")
"""The keys of `metrics.json` that hold a model's metrics, in the order of a table's columns."""

LOWER_IS_BETTER = ("median_rank", "expected_calibration_error")
"""The metrics of which less is better, without what stands before their names."""
FEW = 50
"""Rows below which a fitted temperature may do harm."""

PROOF_FILE = "merge_proof.json"
"""The proof in an exported folder."""


def grade(key: str, verdict: str) -> str:
    """What a difference means: `better` or `worse`, or the verdict itself where there is no clear one.

    Args:
        key: The metric's name in `metrics.json`.
        verdict: `higher`, `lower` or `no clear difference`, see `finetune.metrics.bootstrap.Difference`.

    Example:
        >>> grade("test/accuracy", "lower"), grade("test/image_to_text/median_rank", "lower")
        ('worse', 'better')
    """
    if verdict not in ("higher", "lower"):
        return verdict
    good = "lower" if key.rpartition("/")[2] in LOWER_IS_BETTER else "higher"
    return "better" if verdict == good else "worse"


def format_results(metrics: Mapping[str, Any]) -> str:
    """The content of `metrics.json` for a reader: tables of metrics and of retention, and what else a run found.

    Args:
        metrics: The content of `metrics.json`.
    """
    parts = [_format_lines(list_results(metrics))] if any(name in metrics for name in MODELS) else []
    if "interpolation" in metrics:
        parts.append(format_interpolation(metrics["interpolation"]))
    if "calibration" in metrics:
        parts.append(_format_calibration(metrics["calibration"]))
    if "retention" in metrics:
        parts.append(_format_lines(list_retention(metrics["retention"])))
    if "drift" in metrics:
        parts.append(format_drift(metrics["drift"]))
    parts += [f"Training: {notice['message']}" for notice in metrics.get("notices", [])]
    return "\n\n".join(parts)


def format_interpolation(interpolation: Mapping[str, Any]) -> str:
    """Where the exported model lies between the base and the trained model, and why there.

    Args:
        interpolation: `interpolation` of `metrics.json`; without `curve` the recipe or the user chose it, and without
            `profiles` both towers are alike in all that was tried.

    Example:
        >>> format_interpolation({"chosen": 0.25})
        'Interpolation 0.25: the weights lie 25 % of the way from the base to the trained model.'
    """
    chosen = interpolation["chosen"]
    line = f"Interpolation {name_interpolation(chosen)}: {_say_where(chosen)}."
    tried = list_tried(interpolation)
    point = next((point for point in tried if point["interpolation"] == chosen), None)
    if point is None:
        return line
    line += f" On the validation rows this model scores {format_share(point['target'])}"
    if point["retention_loss"] is not None:
        loss, limit = format_share(point["retention_loss"]), format_share(interpolation["max_retention_loss"])
        error = point.get("retention_error") or 0.0
        around = f" (± {100 * error:.1f})" if error else ""
        line += f"; on the rows by which it was chosen, its largest retention loss is {loss}{around}, the limit {limit}"
        if error > interpolation["max_retention_loss"]:
            line += ": too few rows to hold this limit"
    if not chosen:
        line += ". This is the base: every other point exceeds the limit or scores hardly better"
    elif "target_error" in point:  # which earlier releases did not take into account
        line += f". Of {len(tried)} models, it loses least among those that score about as well as any within the limit"
    return f"{line}."


def list_tried(interpolation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points that were measured: the line on which both towers are alike, then the profiles.

    Args:
        interpolation: `interpolation` of `metrics.json`.
    """
    return [*interpolation.get("curve", ()), *interpolation.get("profiles", ())]


def _say_where(chosen: Any) -> str:
    """Where the weights of an interpolation lie, in words."""
    way = "of the way from the base to the trained model"
    found = parse_interpolation(chosen)
    if not isinstance(found, Interpolation):
        return f"the weights lie {100 * found:.0f} % {way}"
    image, text = map(_format_weights, found.by_tower().values())
    return f"the weights of the image tower lie {image} {way}, those of the text tower {text}"


def _format_weights(weights: tuple[float, float]) -> str:
    first, last = (f"{100 * weight:.0f} %" for weight in weights)
    return first if first == last else f"{first} (first block) to {last} (last block)"


def _format_calibration(calibration: Mapping[str, Any]) -> str:
    temperature, error = calibration["temperature"], calibration["expected_calibration_error"]
    return (
        f"Calibration: fitted on the validation rows, the temperature went from {temperature['trained']:.4g} to "
        f"{temperature['fitted']:.4g}; on the test rows, the expected calibration error went from "
        f"{format_share(error['trained'])} to {format_share(error['fitted'])}. A perfectly calibrated model would show "
        f"{format_share(calibration['of_a_calibrated_model']['fitted'])} on as many rows.{_warn_of_few(calibration)}"
    )


def _warn_of_few(calibration: Mapping[str, Any]) -> str:
    """A sentence where the temperature was fitted on few rows; runs of an earlier release do not say on how many."""
    rows = calibration.get("fitted_on", FEW)
    counted = "1 row" if rows == 1 else f"{rows} rows"
    return f" It was fitted on {counted}, which may do harm: --run.calibrate false" if rows < FEW else ""


def format_drift(drift: float) -> str:
    """The drift with its meaning.

    Args:
        drift: `drift` of `metrics.json`.
    """
    return (
        f"Drift {drift:.3f}: the scores of your test images for the 1,000 ImageNet class names have moved this far "
        "from the base's (0: not at all, 1: completely)."
    )


def list_results(metrics: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of each model's metrics and their difference, its head first.

    Args:
        metrics: The content of `metrics.json`.
    """
    columns = {name: metrics[name] for name in MODELS if name in metrics}
    return _list_columns(columns, metrics.get("difference", {}))


def list_retention(retention: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of what each retention table shows, its head first.

    Args:
        retention: `retention` of `metrics.json`.
    """
    lines = [["retention table", "metric", "before", "after", "relative loss", DIFFERENCE]]
    for name, table in retention["tables"].items():
        metric, change = table["metric"], _format_difference(table["metric"], table.get("difference"))
        shares = [format_share(table[key]) for key in ("before", "after", "relative_loss")]
        lines.append([name, metric, *shares, change])
    if len(retention["tables"]) > 1:
        overall = {title: retention[f"{title}_relative_loss"] for title in ("mean", "worst")}
        lines += [[title, "", "", "", format_share(loss), ""] for title, loss in overall.items()]
    return lines


def format_share(share: float | None) -> str:
    """A share of 1 in per cent, a dash where there is none.

    Example:
        >>> format_share(0.975), format_share(None)
        ('97.5 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def format_table(columns: Mapping[str, Metrics], differences: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Aligned text: one line per metric, one column per model, in Markdown.

    Args:
        columns: Values by key, such as `test/accuracy`, by column title. Rates are shown in per cent; those of single
            classes (`test/average_precision/NAME`), of which there may be thousands, are not.
        differences: By key, last column less first with its interval, see `finetune.metrics.Difference`.

    Example:
        >>> print(format_table({"before": {"test/accuracy": 0.1}, "after": {"test/accuracy": 0.975}}))
        | metric        | before | after  |
        | ------------- | ------ | ------ |
        | test/accuracy | 10.0 % | 97.5 % |
    """
    return _format_lines(_list_columns(columns, differences or {}))


def _list_columns(columns: Mapping[str, Metrics], differences: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    found = dict.fromkeys(key for metrics in columns.values() for key in metrics)
    keys = [key for key in found if "/average_precision/" not in key]
    lines = [["metric", *columns]]
    lines += [[key, *(format_value(key, metrics) for metrics in columns.values())] for key in keys]
    if differences:
        lines[0].append(DIFFERENCE)
        for line in lines[1:]:
            line.append(_format_difference(line[0], differences.get(line[0])))
    return lines


def _format_lines(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = lines
    ruled = [head, ["-" * width for width in widths], *body]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in ruled]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _format_difference(key: str, difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "-"
    scale = 1 if _is_rank(key) else 100
    value, low, high = (scale * difference[part] for part in ("value", "low", "high"))
    unclear = difference["verdict"] if difference["verdict"] == "no clear difference" else ""
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}) {unclear}".strip()


def format_value(key: str, metrics: Metrics) -> str:
    """A metric as it is shown: rates in per cent, ranks as they are, a dash where there is none.

    Example:
        >>> format_value("test/accuracy", {"test/accuracy": 0.5})
        '50.0 %'
    """
    if key not in metrics:
        return "-"
    return f"{metrics[key]:.1f}" if _is_rank(key) else format_share(metrics[key])


def _is_rank(key: str) -> bool:
    return key.endswith("rank")


def format_proof(proof: Mapping[str, Any]) -> str:
    """How closely an exported folder reproduces the model in memory on the witness, and how closely it must.

    Args:
        proof: The content of `merge_proof.json`.

    Example:
        >>> format_proof({"max_relative_difference": {"logits": 2e-7}, "tolerance": 1e-5})
        'reproduces the trained model within 2.0e-07 (logits); the tolerance is 1e-05'
    """
    found = ", ".join(f"{difference:.1e} ({name})" for name, difference in largest_differences(proof).items())
    model = "trained" if proof.get("interpolation", 1) == 1 else "interpolated"
    files = proof.get("onnx", {}).get("differences", {})
    onnx = "".join(f"; onnx/{name}.onnx within {max(measures.values()):.1e}" for name, measures in files.items())
    return f"reproduces the {model} model within {found}; the tolerance is {proof['tolerance']:.0e}{onnx}"


def largest_differences(proof: Mapping[str, Any]) -> Mapping[str, float]:
    """The largest difference of each output that a proof compared, by its name.

    Args:
        proof: The content of `merge_proof.json`, of a merged folder or of a classifier.
    """
    found: Mapping[str, float] = proof.get("max_abs_difference") or proof["max_relative_difference"]
    return found


def list_unchanged_towers(proof: Mapping[str, Any]) -> list[str]:
    """A sentence for each tower whose weights are still the base's.

    Args:
        proof: The content of `merge_proof.json`.
    """
    unchanged = [tower for tower, is_unchanged in proof.get("identical_to_base", {}).items() if is_unchanged]
    return [f"The {tower} tower is the base's, byte for byte." for tower in unchanged]


def installed_versions() -> dict[str, str]:
    """Versions of this package and of those that decide its numbers."""
    names = (
        "align-finetune",
        "torch",
        "transformers",
        "peft",
        "lightning",
        "albumentations",
        "Pillow",
        "numpy",
    )
    return {name: version(name) for name in names}
