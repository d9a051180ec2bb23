"""The model card of an exported folder."""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from finetune.core.console import make_harmless
from finetune.core.files import write_text
from finetune.export.proof import CARD_FILE
from finetune.model.base import HUB_ID
from finetune.run.results import MODELS, format_results

OPEN_IMAGE = """def open_image(path):  # as in training: upright, transparent pixels on white, 16-bit grey in 8 bits
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda level: level / 257 + 0.5).convert("L")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
"""
"""What `finetune.data.prepare.images.open_image` does, in Pillow alone: for cards, README and guides."""


class Card(NamedTuple):
    """What a card says of one kind of folder.

    Attributes:
        base_model: Name of the base. The card's metadata name a base of the hub alone, as the hub takes any name for
            one of its own.
        pipeline_tag: The hub's word for what the model does.
        tags: The hub's tags.
        summary: What the folder holds, a sentence.
        proof: What was proven of it, sentences.
        code: Python that opens the folder and asks it.
        more: Markdown that follows.
    """

    base_model: str
    pipeline_tag: str
    tags: tuple[str, ...]
    summary: str
    proof: str
    code: str
    more: str = ""


def write_card(folder: Path, card: Card, title: str, metrics: Mapping[str, Any]) -> None:
    """Writes `README.md`: what a folder is, how it did, how to load it.

    Args:
        folder: The folder.
        card: What its kind says.
        title: The heading, a run's name.
        metrics: The content of `metrics.json` that is about this folder. A folder that was not measured has none, or
            that of its interpolation alone.
    """
    results = format_results(_name_plainly(metrics))
    measured = "Measured on this folder:"
    if not any(name in metrics for name in MODELS):
        measured = "Not measured: this is not the model that its run measured."
    explained = "R@K is a hit rate: the share of queries with a correct item among the K best."
    hub_id = HUB_ID.fullmatch(card.base_model)
    parts = [
        "---",
        *([f"base_model: {hub_id['name']}"] if hub_id else []),
        "library_name: transformers",
        f"pipeline_tag: {card.pipeline_tag}",
        f"tags: [{', '.join(card.tags)}]",
        f"---\n\n# {as_markdown(title)}\n",
        f"{card.summary} {measured}\n",
        *([f"{results}\n"] if results else []),
        *([f"{explained}\n"] if "R@" in results else []),
        f"{card.proof}\n",
        f"```python\n{card.code}```\n",
        *([card.more] if card.more else []),
    ]
    write_text(folder / CARD_FILE, "\n".join(parts))


def as_markdown(text: str) -> str:
    r"""Returns a text that Markdown shows as it is, on one line: no link, no picture, no HTML.

    Args:
        text: Any text.

    Example:
        >>> as_markdown("a_b [c](d) <img>")
        'a_b \\[c\\](d) &lt;img&gt;'
    """
    plain = make_harmless(" ".join(text.split()))
    return re.sub(r"[\\`*\[\]|~#]", r"\\\g<0>", escape(plain, quote=False))


def _name_plainly(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Escapes the names that the user gave to retention tables."""
    if "retention" not in metrics:
        return metrics
    tables = {as_markdown(name): table for name, table in metrics["retention"]["tables"].items()}
    return {**metrics, "retention": {**metrics["retention"], "tables": tables}}


def select_metrics(by_head: bool, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a run's `metrics.json` that is about one of its artifacts.

    Args:
        by_head: Whether the head answers in it, see `Artifact`.
        metrics: The content of `metrics.json`.
    """
    if by_head or "zero-shot after" not in metrics:
        return dict(metrics)
    of_classifier = ("zero-shot after", "difference", "calibration")  # "after" is the classifier's, and so are these
    kept = {key: part for key, part in metrics.items() if key not in of_classifier}
    return kept | {"after": metrics["zero-shot after"]}
