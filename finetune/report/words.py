"""The result in sentences."""

from typing import Any

from finetune.report.facts import Facts
from finetune.run.results import format_proof, format_share, format_value

_NAMES = {"test/image_to_text/R@1": "image-to-text R@1", "test/text_to_image/R@1": "text-to-image R@1"}
_VERBS = {"higher": "rose", "lower": "fell"}
_GRADES = {"higher": "better", "lower": "worse"}
_REPAIR = (
    "To keep more, set run.interpolation to auto in the run's recipe.yaml: finetune resume then chooses a model "
    "between the base and this one, without training again."
)


def describe_verdict(facts: Facts) -> str:
    """Whether the model is better than its base, in one sentence.

    Args:
        facts: A run.
    """
    found = {verdict for key in facts.headline if (verdict := _verdict(facts.metrics, key))}
    name = "R@1" if len(facts.headline) == 2 else _name(facts.headline[0])
    if not found:
        return "The run has no confidence intervals, so it does not say whether the model is better than the base."
    if found >= _GRADES.keys():
        return f"The model is better than the base on {name} in one direction and worse in the other."
    for verdict, grade in _GRADES.items():
        if verdict in found:
            return f"The model is {grade} than the base on {name}."
    return f"The model shows no clear difference from the base on {name}."


def summarise(facts: Facts) -> str:
    """What changed, what a linear probe would reach, what was lost on other domains and how to keep it, and the proof.

    Args:
        facts: A run.
    """
    metrics = facts.metrics
    changes = "; ".join(_describe_change(metrics, key) for key in facts.headline)
    sentences = [f"On {len(facts.predictions):,} test rows, {changes}."]
    if facts.headline[0] in metrics.get("linear probe", {}):
        sentences.append(_describe_probe(metrics, facts.headline[0]))
    if "retention" in metrics:
        sentences.append(_describe_retention(metrics["retention"]))
        if "interpolation" not in metrics and _clearly_lost(metrics["retention"]):
            sentences.append(_REPAIR)
    elif "drift" in metrics:
        sentences.append(
            "The recipe names no retention tables (data.retention), so what the model lost on other domains was not "
            f"measured. Its drift is {metrics['drift']:.3f} on a scale from 0 (the base) to 1."
        )
    sentences += [
        f"A fresh process with plain transformers {proof['versions']['transformers']} opened the folder {folder}, "
        f"which {format_proof(proof)}."
        for folder, proof in facts.proofs.items()
    ]
    return " ".join(sentences).replace(" %", "\N{NO-BREAK SPACE}%")


def _name(key: str) -> str:
    return _NAMES.get(key, key.removeprefix("test/").replace("_", " "))


def _verdict(metrics: dict[str, Any], key: str) -> str | None:
    difference = metrics.get("difference", {}).get(key)
    return None if difference is None else str(difference["verdict"])


def _describe_change(metrics: dict[str, Any], key: str) -> str:
    before, after = (format_value(key, metrics[model]) for model in ("before", "after"))
    verdict = _verdict(metrics, key)
    ends = f"from {before} to {after}"
    if verdict is None:
        return f"{_name(key)} went {ends}"
    change, low, high = (100 * metrics["difference"][key][part] for part in ("value", "low", "high"))
    if verdict not in _VERBS:
        interval = f"95 % interval of the change: {low:+.1f} to {high:+.1f} points"
        return f"{_name(key)} went {ends}, which is no clear difference ({interval})"
    if verdict == "lower":
        change, low, high = -change, -high, -low
    return f"{_name(key)} {_VERBS[verdict]} {ends}, by {change:.1f} points (95 % interval: {low:.1f} to {high:.1f})"


def _describe_probe(metrics: dict[str, Any], key: str) -> str:
    probe, after = metrics["linear probe"], metrics["after"]
    sentence = f"A linear probe of the base's frozen embeddings reaches {format_value(key, probe)} without fine-tuning"
    return f"{sentence}; the model does not beat that." if probe[key] >= after[key] else f"{sentence}."


def _clearly_lost(retention: dict[str, Any]) -> bool:
    """Whether the worst loss is one, by its interval where it has one."""
    worst = retention["worst_relative_loss"]
    tables = [table for table in retention["tables"].values() if table["relative_loss"] == worst]
    verdicts = {(table.get("difference") or {}).get("verdict", "lower") for table in tables}
    return worst is not None and worst > 0 and "lower" in verdicts


def _describe_retention(retention: dict[str, Any]) -> str:
    worst = retention["worst_relative_loss"]
    if worst is None:
        return "On the retention tables the base scored 0, so there was nothing to lose."
    if worst <= 0:
        return "On the retention tables the model lost nothing."
    name, table = next(it for it in retention["tables"].items() if it[1]["relative_loss"] == worst)
    before, after = (format_share(table[key]) for key in ("before", "after"))
    return (
        f"On the retention tables the model lost up to {format_share(worst)} of the base's performance "
        f"({name}: {before} before, {after} after)."
    )
