"""The model card of an exported folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from finetune.core.console import make_harmless
from finetune.core.files import write_text
from finetune.export.facts import Facts, describe_licence, describe_training
from finetune.export.markdown import as_markdown
from finetune.model.base import CARD_FILE, HUB_ID
from finetune.run.results import MODELS, format_results

OPEN_IMAGE = """def open_image(path):  # as in training: upright, transparent pixels on white, 16-bit grey in 8 bits
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda level: level / 257 + 0.5).convert("L")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
"""
"""What `finetune.data.prepare.images.open_image` does, in Pillow alone: for cards, README and guides."""

KEPT = ("retention", "drift")
"""The parts of `metrics.json` that speak of other domains."""

_COLUMNS = {
    "before": "is the base",
    "linear probe": "logistic regression on the base's frozen embeddings",
    "zero-shot after": "the merged checkpoint, asked by text prompts",
    "after": "this model",
}
_LIMITS = (
    "The figures are those of rows of the same table: other cameras, places, languages or times may do worse.",
    "Biases of the base and of the data remain. Nothing was tested for decisions about people.",
)


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
        use: What it is meant for, sentences.
        limits: What it cannot do, sentences.
        library: The hub's name of the library that opens it.
        relation: The hub's word for what it is to its base.
        more: Markdown that follows.
    """

    base_model: str
    pipeline_tag: str
    tags: tuple[str, ...]
    summary: str
    proof: str
    code: str
    use: str = ""
    limits: tuple[str, ...] = ()
    library: str = "transformers"
    relation: str = "finetune"
    more: str = ""


def write_card(folder: Path, card: Card, title: str, metrics: Mapping[str, Any], facts: Facts | None = None) -> None:
    """Writes `README.md`: what a folder is, how to load it, how it did, what it is made of and may be used for.

    Args:
        folder: The folder.
        card: What its kind says.
        title: The heading, a run's name.
        metrics: The content of `metrics.json` that is about this folder. A folder that was not measured has none, or
            that of its interpolation alone.
        facts: What is known of its training.
    """
    named = _name_plainly(metrics)
    sections = {
        "Code": f"```python\n{card.code}```",
        "Results": _describe_results({key: part for key, part in named.items() if key not in KEPT}),
        "What it kept": _describe_kept({key: part for key, part in named.items() if key in KEPT}),
        "Training": describe_training(card.base_model, facts) if facts else "",
        "Intended use": card.use,
        "Limits": "\n".join(f"- {limit}" for limit in (*card.limits, *_LIMITS)),
        "Licence": describe_licence(facts.licence) if facts else "",
        "Proof": card.proof,
    }
    written = [f"## {heading}\n\n{text}\n" for heading, text in sections.items() if text]
    more = [card.more] if card.more else []
    head = [f"---\n{_format_metadata(card, facts)}---\n", f"# {as_markdown(title)}\n", f"{card.summary}\n"]
    write_text(folder / CARD_FILE, "\n".join([*head, *written, *more]))


def _format_metadata(card: Card, facts: Facts | None) -> str:
    """What the hub reads. Results have no place there: it compares them by data sets of its own."""
    hub_id = HUB_ID.fullmatch(card.base_model)
    licence = facts.licence if facts else None
    values = {
        "license": licence and licence.identifier,
        "license_name": licence and licence.name and make_harmless(licence.name),
        "license_link": licence and licence.link and make_harmless(licence.link),
        "base_model": hub_id and hub_id["name"],
        "base_model_relation": hub_id and card.relation,
        "datasets": list(facts.datasets) if facts else [],
        "library_name": card.library,
        "pipeline_tag": card.pipeline_tag,
        "tags": [*card.tags, "align-finetune"],
    }
    given = {key: value for key, value in values.items() if value}
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=1000)


def _describe_results(metrics: Mapping[str, Any]) -> str:
    results = format_results(metrics)
    if not any(name in metrics for name in MODELS):
        return _join("Not measured: this is not the model that its run measured.", results)
    columns = [f"*{name}* {meaning}" for name, meaning in _COLUMNS.items() if name in metrics]
    explained = [
        f"{', '.join(columns)}.",
        "R@K is a hit rate: the share of queries with a correct item among the K best." if "R@" in results else "",
        "Intervals are those of a paired bootstrap over the test rows." if "difference" in metrics else "",
    ]
    return _join("Measured on this folder, on the test rows:", results, " ".join(filter(None, explained)))


def _describe_kept(metrics: Mapping[str, Any]) -> str:
    lost = "" if "retention" in metrics else "What was lost on other domains was not measured."
    return _join(lost, format_results(metrics))


def _join(*parts: str) -> str:
    return "\n\n".join(filter(None, parts))


def name_folder(folder: str) -> str:
    """Returns the line of a card's code that says what is opened.

    Args:
        folder: The folder's name.
    """
    return f"folder = {json.dumps(folder)}  # or OWNER/NAME, where it lies on the model hub"


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
    if "interpolation" in kept:  # chosen by what the head scored
        kept["interpolation"] = {"chosen": kept["interpolation"]["chosen"]}
    return kept | {"after": metrics["zero-shot after"]}
