"""The result in sentences."""

from typing import Any

from finetune.report.facts import Facts
from finetune.run.results import format_proof, format_value

_NAMES = {
    "test/accuracy": "accuracy",
    "test/image_to_text/R@1": "R@1 from image to text",
    "test/text_to_image/R@1": "R@1 from text to image",
}
_VERBS = {"higher": "rose", "lower": "fell"}


def judge(facts: Facts) -> str:
    """Whether the model is better than its base, in one sentence.

    Args:
        facts: A run.
    """
    found = {verdict for key in facts.headline if (verdict := _verdict(facts.metrics, key))}
    name = "R@1" if len(facts.headline) == 2 else _name(facts.headline[0])
    if {"higher", "lower"} <= found:
        return f"By {name}, better than the base one way and worse the other."
    if "higher" in found:
        return f"Better than the base by {name}."
    if "lower" in found:
        return f"Worse than the base by {name}."
    return f"No clear difference from the base by {name}." if found else "Measured, without intervals."


def summarise(facts: Facts) -> str:
    """What changed, what would do without fine-tuning, what was lost elsewhere, and the proof.

    Args:
        facts: A run.
    """
    changes = "; ".join(_describe_change(facts.metrics, key) for key in facts.headline)
    told = [f"On {len(facts.predictions):,} test rows {changes}."]
    if facts.is_classified and "floor" in facts.metrics:
        told.append(_describe_floor(facts.metrics))
    if "retention" in facts.metrics:
        told.append(_describe_retention(facts.metrics["retention"]))
    elif "drift" in facts.metrics:
        told.append(
            "No table stood for elsewhere (data.retention), so what the model lost there was not measured; its drift "
            f"is {facts.metrics['drift']:.3f}, where 0 is the base itself and 1 the most."
        )
    told += [
        f"Proof: opened in a fresh process with plain transformers {proof['versions']['transformers']}, {folder} gave "
        f"{format_proof(proof)}."
        for folder, proof in facts.proofs.items()
    ]
    return " ".join(told).replace(" %", "\N{NO-BREAK SPACE}%")


def _name(key: str) -> str:
    return _NAMES.get(key, key.removeprefix("test/"))


def _verdict(metrics: dict[str, Any], key: str) -> str | None:
    difference = metrics.get("difference", {}).get(key)
    return None if difference is None else str(difference["verdict"])


def _describe_change(metrics: dict[str, Any], key: str) -> str:
    name = _name(key)
    before, after = (format_value(key, metrics[model]) for model in ("before", "after"))
    verdict = _verdict(metrics, key)
    if verdict is None:
        return f"{name} went from {before} to {after}"
    value, low, high = (100 * metrics["difference"][key][part] for part in ("value", "low", "high"))
    if verdict not in _VERBS:
        interval = f"95 % interval of the change {low:+.1f} to {high:+.1f} points"
        return f"{name} went from {before} to {after}, no clear difference ({interval})"
    if verdict == "lower":
        value, low, high = -value, -high, -low
    interval = f"95 % interval {low:.1f} to {high:.1f}"
    return f"{name} {_VERBS[verdict]} from {before} to {after}, by {value:.1f} points ({interval})"


def _describe_floor(metrics: dict[str, Any]) -> str:
    key = "test/accuracy"
    sentence = (
        "Without fine-tuning, a logistic regression on the base's frozen embeddings reaches "
        f"{format_value(key, metrics['floor'])}"
    )
    return sentence + (
        ", which is no less than the fine-tuned model." if metrics["floor"][key] >= metrics["after"][key] else "."
    )


def _describe_retention(retention: dict[str, Any]) -> str:
    worst = retention["worst_relative_loss"]
    if worst is None:
        return "Elsewhere the base scored nothing, so nothing could be lost."
    if worst <= 0:
        return "Elsewhere nothing was lost."
    name, table = next(it for it in retention["tables"].items() if it[1]["relative_loss"] == worst)
    values = [format_value(table["metric"], {table["metric"]: table[key]}) for key in ("before", "after")]
    return (
        f"Elsewhere it lost up to {100 * worst:.1f} % of what the base could do ({name}: {values[0]} before, "
        f"{values[1]} after)."
    )
