"""The checkpoint that answers for what a user names: itself, or what a finished run exported."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from transformers import AlignProcessor

from finetune.core.exchange import restore_folder
from finetune.core.files import read_json
from finetune.model.base import Base, open_processor
from finetune.model.mini import MINI
from finetune.run.folder import RunFolder, open_run, require_finished


class OwnWords(NamedTuple):
    """The words of a run's classes.

    Attributes:
        classes: Names of the classes that it was trained on; empty where its rows have captions alone.
        templates: Sentences that names are written into.
        names: The name of each label of its table that is called otherwise.
        label_separator: What separates several labels in a cell of its table; None where a row has one.
    """

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    names: Mapping[str, str] = MappingProxyType({})
    label_separator: str | None = None


def read_own_words(model: str | Path) -> OwnWords:
    """Returns the words of a finished run; none of another model.

    Args:
        model: As for `find_checkpoint`.
    """
    run = RunFolder(Path(model))
    if not run.is_finished or not run.environment.is_file():
        return OwnWords()
    described = read_json(run.environment)
    return OwnWords(
        tuple(described.get("classes", ())),
        tuple(described.get("templates", ())),
        described.get("names", {}),
        described.get("label_separator"),
    )


def find_checkpoint(model: str | Path) -> tuple[Base, AlignProcessor]:
    """Opens a checkpoint, and the processor that prepares its inputs.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run, which stands for what it exported, or for its base where
            it trained a head alone.

    Raises:
        CheckpointError: If there is none, or it is a run that is not finished.
        RecipeError: If it looks like a misspelt run.
    """
    path = Path(model)
    restore_folder(path)
    run = RunFolder(path)
    if run.recipe.is_file():
        require_finished(run)
    if not run.is_finished:
        refuse_misspelt_run(model)
        base = Base.open(model)
        return base, base.processor()
    base = Base.open(run.merged if run.merged.is_dir() else read_json(run.environment)["checkpoint"]["name"])
    return base, open_processor(run.processor)


def refuse_misspelt_run(model: str | Path) -> None:
    """Refuses a path at which there is nothing, beside which there are runs.

    Args:
        model: What a user names.

    Raises:
        RecipeError: If there are; names the run that was meant.
    """
    if str(model) != MINI and not Path(model).exists() and any(Path(model).parent.glob("*/recipe.yaml")):
        open_run(model)
