"""What a run writes for readers: metrics, predictions, the table of the screen, the model card."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.core.files import write_text

Metrics = Mapping[str, float]
DIFFERENCE = "difference, 95 % interval"
MODELS = ("before", "floor", "zero-shot after", "after")
"""The keys of `metrics.json` that hold a model's metrics, in the order of a table's columns."""


def format_results(metrics: Mapping[str, Any]) -> str:
    """The content of `metrics.json` for a reader: each model's metrics, what changed, what it cost
    elsewhere, and what went wrong in training.

    Args:
        metrics: The content of `metrics.json`.
    """
    parts = [_format_lines(list_results(metrics))] if any(name in metrics for name in MODELS) else []
    if "alpha" in metrics:
        parts.append(_format_alpha(metrics["alpha"]))
    if "calibration" in metrics:
        parts.append(_format_calibration(metrics["calibration"]))
    if "retention" in metrics:
        parts.append(_format_lines(list_retention(metrics["retention"])))
    if "drift" in metrics:
        parts.append(
            f"Drift {metrics['drift']:.3f}: how far what the model says of your test images in a thousand other words "
            "has moved from the base, 0 for not at all, 1 for completely."
        )
    parts += [f"Training: {notice['message']}" for notice in metrics.get("notices", [])]
    return "\n\n".join(parts)


def _format_alpha(alpha: Mapping[str, Any]) -> str:
    chosen = alpha["chosen"]
    line = f"Alpha {chosen:g}: the weights lie {100 * chosen:.0f} % of the way from the base to what was trained."
    for point in alpha.get("curve", []):
        if point["alpha"] == chosen:
            line += (
                f" Chosen on validation rows: {100 * point['target']:.1f} % there, "
                f"{_format_loss(point['retention_loss'])} lost elsewhere at worst, "
                f"{_format_loss(alpha['max_retention_loss'])} allowed."
            )
            if not chosen:
                line += " That is the base: any other loses more than allowed, or is not better on these rows."
    return line


def _format_calibration(calibration: Mapping[str, Any]) -> str:
    trained, fitted = (
        f"temperature {calibration['temperature'][name]:.4g}, expected calibration error "
        f"{100 * calibration['expected_calibration_error'][name]:.1f} %"
        for name in ("trained", "fitted")
    )
    by_chance = f"{100 * calibration['of_a_calibrated_model']['fitted']:.1f} %"
    return (
        f"Calibration: as trained {trained}; fitted on validation rows {fitted}. "
        f"On so many rows a calibrated model would show {by_chance}."
    )


def list_results(metrics: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of each model's metrics and their difference, its head first.

    Args:
        metrics: The content of `metrics.json`.
    """
    columns = {name: metrics[name] for name in MODELS if name in metrics}
    return _list_columns(columns, metrics.get("difference", {}))


def list_retention(retention: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of what was lost elsewhere, its head first.

    Args:
        retention: `retention` of `metrics.json`.
    """
    lines = [["elsewhere", "metric", "before", "after", "lost", DIFFERENCE]]
    for name, table in retention["tables"].items():
        values = [f"{100 * table[key]:.1f} %" for key in ("before", "after")]
        change = _format_difference(table["metric"], table.get("difference"))
        lines.append([name, table["metric"], *values, _format_loss(table["relative_loss"]), change])
    if len(retention["tables"]) > 1:
        overall = {title: retention[f"{title}_relative_loss"] for title in ("mean", "worst")}
        lines += [[title, "", "", "", _format_loss(loss), ""] for title, loss in overall.items()]
    return lines


def _format_loss(loss: float | None) -> str:
    return "-" if loss is None else f"{100 * loss:.1f} %"


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
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
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
    value = metrics[key]
    return f"{value:.1f}" if _is_rank(key) else f"{100 * value:.1f} %"


def _is_rank(key: str) -> bool:
    return key.endswith("rank")


def format_proof(proof: Mapping[str, Any]) -> str:
    """One line: how far a folder is from the model in memory on the witness, and how far it may be.

    Args:
        proof: The content of `merge_proof.json`.

    Example:
        >>> format_proof({"max_relative_difference": {"logits": 2e-7}, "tolerance": 1e-5})
        'logits within 2.0e-07 of the trained model, at most 1e-05 allowed'
    """
    differences = proof.get("max_abs_difference") or proof["max_relative_difference"]
    found = ", ".join(f"{name} within {value:.1e}" for name, value in differences.items())
    model = "trained" if proof.get("alpha", 1) == 1 else "interpolated"
    return f"{found} of the {model} model, at most {proof['tolerance']:.0e} allowed"


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


def format_measured(metrics: Mapping[str, Any]) -> str:
    """What a card says of the figures of its folder.

    Args:
        metrics: The content of `metrics.json`, or its `alpha` alone for a folder that was not measured on test rows.
    """
    if any(name in metrics for name in MODELS):
        return f"Measured on this folder:\n\n{format_results(metrics)}"
    return f"Not measured: this is not what its run handed out.\n\n{format_results(metrics)}".strip()


def write_model_card(folder: Path, name: str, metrics: Mapping[str, Any], proof: Mapping[str, Any]) -> None:
    """Writes `README.md` of a merged folder: what it is, how it did, how to load it.

    Args:
        folder: The merged folder.
        name: The run's name.
        metrics: The content of `metrics.json`.
        proof: The content of `merge_proof.json`.
    """
    if "zero-shot after" in metrics:  # "after" is that of the head's classifier, and so is what follows from it
        of_head = ("zero-shot after", "difference", "calibration")
        metrics = {key: part for key, part in metrics.items() if key not in of_head} | {
            "after": metrics["zero-shot after"]
        }
    difference = max(proof["max_abs_difference"].values())
    kept = [
        f"The {tower} tower is the base's, byte for byte." for tower, same in proof["identical_to_base"].items() if same
    ]
    write_text(
        folder / "README.md",
        f"""---
base_model: {proof["base_model"]}
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [align]
---

# {name}

`{proof["base_model"]}`, fine-tuned with LoRA by align-finetune and merged. {format_measured(metrics)}

R@K is a hit rate: the share of queries with a correct item among the K best.

A fresh process with plain transformers {proof["versions"]["transformers"]} reproduced this model's
embeddings within {difference:.1e} (`merge_proof.json`); `finetune verify` repeats that on any machine. {" ".join(kept)}

```python
from PIL import Image
from transformers import AlignModel, AlignProcessor

processor = AlignProcessor.from_pretrained("{folder.name}")
model = AlignModel.from_pretrained("{folder.name}")
labels = ["an image of a cat", "an image of a dog"]
image = Image.open("photo.png").convert("RGB")
inputs = processor(images=image, text=labels, return_tensors="pt")
probabilities = model(**inputs).logits_per_image.softmax(dim=1)
```
""",
    )
