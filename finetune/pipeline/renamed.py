"""Recipe keys, classes and options that have another name now: refused with the new one."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from finetune.core.errors import RecipeError
from finetune.core.yaml_text import read_yaml

_KEY, _CLASS = "Rename the key.", "Rename the class."
_TASK = (
    "model.class_path finetune.ClassificationTask",
    "lr_scale is now its head_lr_scale, and head_start stays its own; class_weights and label_smoothing belong to its "
    "objective, finetune.CrossEntropy. It has no text_lora, train_temperature or min_temperature: leave them out.",
)
_TARS = ("data finetune.ImageTextDataModule", "It is the default and reads tars too: leave data.class_path out.")

RENAMED: Mapping[str, tuple[str, str]] = {
    "run.alpha": ("run.interpolation", _KEY),
    "run.floor": ("run.linear_probe", _KEY),
    "model.image_checkpointing": ("model.image_recompute", _KEY),
    "model.image_fused": ("model.fused", _KEY),
    "model.preserve": ("model.text_preservation", _KEY),
    "model.objective Classification": _TASK,
    "model.objective finetune.Classification": _TASK,
    "model.objective finetune.objectives.Classification": _TASK,
    "model.objective.lr_scale": ("model.head_lr_scale", _KEY),
    "model.objective.head_start": ("model.head_start", _KEY),
    "model.head_start finetune.objectives.FromProbe": ("model.head_start finetune.FromProbe", _CLASS),
    "model.head_start finetune.objectives.FromPrompts": ("model.head_start finetune.FromPrompts", _CLASS),
    "data ShardedImageText": _TARS,
    "data finetune.ShardedImageText": _TARS,
}
"""By the old name, a recipe key with or without a class: the new name, and what to do."""

_OF_HEADS = {
    "model.lr_scale": ("model.head_lr_scale", _KEY),
    "model.class_weights": ("model.objective.class_weights", "Its class is finetune.CrossEntropy."),
    "model.label_smoothing": ("model.objective.label_smoothing", "Its class is finetune.CrossEntropy."),
    "model.text_lora": ("no key of finetune.ClassificationTask", "Leave it out: texts are not trained."),
    "model.train_temperature": ("no key of finetune.ClassificationTask", "Leave it out."),
    "model.min_temperature": ("no key of finetune.ClassificationTask", "Leave it out."),
}
"""What recipes of heads once said elsewhere, likewise."""

_HEADS = (("model", "finetune.ClassificationTask"), ("model", "ClassificationTask"))

OPTIONS = {"--alpha": "--interpolation"}
"""By the old name of a command's option: the new name."""


def refuse_renamed(recipe: Path, words: Sequence[str] = ()) -> None:
    """Refuses a recipe that uses old names.

    Args:
        recipe: The recipe's file.
        words: Values that replace the file's, as `["--data.batch_size", "32"]`.

    Raises:
        RecipeError: With all old names, where they stand, and the new ones.
    """
    sources = [(f"{recipe}: ", "", list(_flatten(_read(recipe))))]
    for key, value in _pair(words):
        if key != "config":
            sources.append(("", "--", list(_flatten({key: _parse(value)}))))
        elif Path(value).is_file():
            sources.append((f"{value}: ", "", list(_flatten(_read(Path(value))))))
        else:
            sources.append(("--config: ", "", list(_flatten(_parse(value)))))
    every = [entry for _, _, entries in sources for entry in entries]
    own = any(_names_own_objective(*entry) for entry in every)
    found = [
        where + " ".join(f"{dashes}{old} is now {dashes}{new}. {repair}" for old, new, repair in faults)
        for where, dashes, entries in sources
        if (faults := list(_find(entries, _know(every if dashes else entries), ["model.objective"] if own else [])))
    ]
    if found:
        raise RecipeError(" ".join(found))


def refuse_renamed_option(option: str, known: Collection[str]) -> None:
    """Refuses an option that has another name now.

    Args:
        option: What the command does not know.
        known: The command's own options.

    Raises:
        RecipeError: With the new name, where that is one of them.
    """
    if OPTIONS.get(option) in known:
        raise RecipeError(f"{option} is now {OPTIONS[option]}. Rename the option.")


def _know(entries: Sequence[tuple[str, Any]]) -> Mapping[str, tuple[str, str]]:
    """The old names where these entries stand; a file's keys are dropped where an option names another class."""
    return {**RENAMED, **_OF_HEADS} if any(head in entries for head in _HEADS) else RENAMED


def _find(
    entries: Iterable[tuple[str, Any]], known: Mapping[str, tuple[str, str]], skipped: list[str]
) -> Iterator[tuple[str, str, str]]:
    """Yields old name, new name and repair; what lies inside of something renamed, or skipped, is not looked at."""
    for key, value in entries:
        if any(f"{key}.".startswith(f"{outer}.") for outer in skipped):
            continue
        old = key if key in known else f"{key} {value}" if isinstance(value, str) else ""
        if old in known:
            skipped.append(key)
            yield old, *known[old]


def _names_own_objective(key: str, value: Any) -> bool:
    """Whether the objective is a class of the user's, whose arguments may have any name."""
    return key == "model.objective" and isinstance(value, str) and "." in value and not value.startswith("finetune.")


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key of nested values with what it holds, a class by its name, the outer ones first."""
    inside = value if isinstance(value, dict) else {}
    yield key, inside.get("class_path", value)
    for part, inner in inside.items():
        name, _, rest = str(part).partition(".")  # of a dotted key its parents are keys as well
        where = key if name in ("class_path", "init_args") else f"{key}.{name}".lstrip(".")
        yield from _flatten({rest: inner} if rest else inner, where)


def _pair(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the key and the value of each option, in either of the two forms."""
    for word, following in pairwise([*words, "--"]):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            yield key, value if equals or following.startswith("--") else following


def _read(path: Path) -> Any:
    try:
        return read_yaml(path)
    except RecipeError:  # which reading the recipe reports
        return None


def _parse(text: str) -> Any:
    """The values of a YAML text; the text itself where it is none, which reading the recipe reports."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError of a date that there is none
        return text
