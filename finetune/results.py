"""What a run writes for readers: metrics, predictions, the table of the screen, the model card."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.files import write_text

Metrics = Mapping[str, float]


def format_table(columns: Mapping[str, Metrics]) -> str:
    """Aligned text: one line per metric, one column per model, in Markdown.

    Args:
        columns: Values by key, such as `test/accuracy`, by column title. Rates are shown in per cent; those of single
            classes (`test/average_precision/NAME`), of which there may be thousands, are not.

    Example:
        >>> print(format_table({"before": {"test/accuracy": 0.1}, "after": {"test/accuracy": 0.975}}))
        | metric        | before | after  |
        | ------------- | ------ | ------ |
        | test/accuracy | 10.0 % | 97.5 % |
    """
    found = dict.fromkeys(key for metrics in columns.values() for key in metrics)
    keys = [key for key in found if "/average_precision/" not in key]
    lines = [["metric", *columns]]
    lines += [[key, *(_format_value(key, metrics) for metrics in columns.values())] for key in keys]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _format_value(key: str, metrics: Metrics) -> str:
    if key not in metrics:
        return "-"
    value = metrics[key]
    return f"{value:.1f}" if key.endswith("rank") else f"{100 * value:.1f} %"


def format_proof(proof: Mapping[str, Any]) -> str:
    """One line: how far a folder is from the trained model on the witness, and how far it may be.

    Args:
        proof: The content of `merge_proof.json`.

    Example:
        >>> format_proof({"max_relative_difference": {"logits": 2e-7}, "tolerance": 1e-5})
        'logits within 2.0e-07 of the trained model, at most 1e-05 allowed'
    """
    differences = proof.get("max_abs_difference") or proof["max_relative_difference"]
    found = ", ".join(f"{name} within {value:.1e}" for name, value in differences.items())
    return f"{found} of the trained model, at most {proof['tolerance']:.0e} allowed"


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


def write_model_card(folder: Path, name: str, columns: Mapping[str, Metrics], proof: Mapping[str, Any]) -> None:
    """Writes `README.md` of a merged folder: what it is, how it did, how to load it.

    Args:
        folder: The merged folder.
        name: The run's name.
        columns: The before/after table, see `format_table`.
        proof: The content of `merge_proof.json`.
    """
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

`{proof["base_model"]}`, fine-tuned with LoRA by align-finetune and merged. Measured on this folder:

{format_table(columns)}

R@K is a hit rate: the share of queries with a correct item among the K best.

A fresh process with plain transformers {proof["versions"]["transformers"]} reproduced the adapted model's
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
