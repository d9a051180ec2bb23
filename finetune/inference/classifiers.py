"""What classifies images: the text prompts of a checkpoint, or a trained head."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.core.errors import RecipeError
from finetune.core.exchange import restore_folder
from finetune.core.places import show
from finetune.core.types import ClassPrompts
from finetune.data.checks.equal_texts import group_classes
from finetune.data.loading.prompts import encode_prompts
from finetune.data.prepare.texts import PLACE, TextEncoder, write_prompts
from finetune.data.table.labels import read_names
from finetune.inference.checkpoint import find_checkpoint, read_own_words, refuse_misspelt_run
from finetune.inference.models import PlainClassifier, ZeroShot
from finetune.model.base import open_image_processor
from finetune.model.checkpoint_folder import read_object
from finetune.model.towers import AlignTowers
from finetune.run.folder import RunFolder, require_finished

Labels = Sequence[str] | Mapping[str, str] | Path
"""Texts; or the display name of each label, in a mapping or a file."""


class Classifier(NamedTuple):
    """What a model answers with.

    Attributes:
        name: What answers, for a screen.
        classes: Names of the classes.
        image_processor: Prepares the images.
        load: Opens the model on a device, and returns what takes pixels of shape (B, 3, H, W) to logits of shape
            (B, classes).
        is_multilabel: Whether an image may have several of the classes, or none.
        names: The class of each label of a table that is called otherwise.
        label_separator: What separates several labels in a cell of the table that was trained on, where that is known.
    """

    name: str
    classes: tuple[str, ...]
    image_processor: Any
    load: Callable[[torch.device], Callable[[Tensor], Tensor]]
    is_multilabel: bool = False
    names: Mapping[str, str] = MappingProxyType({})
    label_separator: str | None = None

    def require_separator(self, given: str | None) -> str | None:
        """Returns what separates several labels in a cell; None where an image has one.

        Args:
            given: What the user says; None for that of the training.

        Raises:
            RecipeError: If an image may have several and nobody says what separates them, or it may have one alone.
        """
        if not self.is_multilabel:
            if given is not None:
                raise RecipeError(
                    f"Expected no --label_separator for {self.name}, which gives an image one label, but got {given!r}."
                )
            return None
        if separator := given or self.label_separator:
            return separator
        raise RecipeError(
            f"Expected --label_separator, as {self.name} finds several labels an image, but got none. Say what "
            "separates them in a cell, as in --label_separator '|', or name the run, which knows."
        )


def choose_classifier(model: str | Path, labels: Labels = (), templates: Sequence[str] = ()) -> Classifier:
    """Chooses what answers. Weights are loaded when it is asked.

    Args:
        model: As for `classify`.
        labels: Two or more, of which each image has one: the softmax over `logits_per_image`. A sequence of texts,
            worded as the model reads them; a mapping of labels to their display names, or the file that holds it (see
            `finetune.data.table.labels.read_names`), whose names are written into templates. Without any the head of a
            run or of a classifier's folder answers, for its classes; or the prompts of a run that has no head.
        templates: Sentences with `{}` once, where a name goes; a class is embedded as the mean over all. Without any,
            names are written into the run's own, and of a model that is no run they stand alone.

    Raises:
        RecipeError: If there are no labels and the model knows no classes, the model has a head alone and there are
            labels, the head answers and there are templates; a template has no `{}`; or a label is empty, not UTF-8,
            alone, or the same to the model as another.
        CheckpointError: If the model cannot be opened, or is a run that is not finished.
        TableFaultsError: If the file of labels cannot be read.
    """
    head, own = _find_head(Path(model)), read_own_words(model)
    are_names = isinstance(labels, Mapping | Path)
    names = tuple(name_labels(labels).values()) if isinstance(labels, Mapping | Path) else _as_texts(labels)
    if names and head == Path(model):
        raise RecipeError(
            f"Expected {model} to be asked without --label, but got {names[0]!r}: an image classifier of fixed "
            "classes reads no texts. Leave out --label, or name a merged folder."
        )
    if head is not None and not names:
        if templates:
            raise RecipeError(
                f"Expected {model} to be asked without --template, but got {templates[0]!r}: its head reads no texts. "
                "Leave it out, or name the classes, with --labels FILE."
            )
        return _open_head(head)._replace(names=own.names, label_separator=own.label_separator)
    if not names and not own.classes:
        refuse_misspelt_run(model)
        raise RecipeError(
            f"Expected --label for {model}, which has no head that knows classes, but got none. "
            'Name each class, as in --label "a cat" --label "a dog".'
        )
    if not templates and (not names or are_names):
        templates = own.templates
    opened = _open_prompts(model, names or own.classes, tuple(templates) or (PLACE,))
    return opened._replace(names=name_labels(labels) if names else own.names)


def name_labels(labels: Labels) -> Mapping[str, str]:
    """Returns the display name of each label.

    Args:
        labels: As for `choose_classifier`; texts are their own names.
    """
    if isinstance(labels, Path):
        return read_names(labels, "--labels")
    return labels if isinstance(labels, Mapping) else {label: label for label in _as_texts(labels)}


def _as_texts(labels: Sequence[str]) -> tuple[str, ...]:
    return (labels,) if isinstance(labels, str) else tuple(labels)


def _check_labels(labels: Sequence[str]) -> None:
    """Refuses labels whose probabilities would say nothing."""
    if empty := [label for label in labels if not label.strip()]:
        raise RecipeError(f"Expected each --label to be a text, but got {empty[0]!r}. Word it, or leave it out.")
    if strange := [label for label in labels if show(label) != label]:
        raise RecipeError(f"Expected each --label to be UTF-8 text, but got {strange[0]!r}. Type it anew.")
    repeated = [label for label, times in Counter(label.strip() for label in labels).items() if times > 1]
    if repeated:
        raise RecipeError(
            f"Expected each --label once, but got {repeated[0]!r} twice, which would share its probability. "
            "Leave one out."
        )
    if len(labels) == 1:
        raise RecipeError(
            f"Expected two labels or more, which share the probability, but got {labels[0]!r} alone: it would have "
            'all of it for every image. Add what else an image may show, as in --label "something else".'
        )


def _find_head(path: Path) -> Path | None:
    """The classifier's folder that a path names or a finished run has; None where there is none."""
    restore_folder(path)
    run = RunFolder(path)
    if run.recipe.is_file():
        require_finished(run)
    if run.is_finished:
        return run.classifier if run.classifier.is_dir() else None
    config = path / "config.json"
    return path if config.is_file() and read_object(config).get("model_type") == "efficientnet" else None


def _encode_labels(encoder: TextEncoder, names: tuple[str, ...], templates: tuple[str, ...]) -> ClassPrompts:
    """Encodes labels in templates, and refuses those that the model cannot tell apart."""
    for name, *others in group_classes(names, templates, encoder):
        if others:
            (prompt,) = write_prompts([name], templates[:1])
            raise RecipeError(
                f"Expected labels that differ to the model, but got {name!r} and {others[0]!r}, both of which it reads "
                f"as {encoder.decode(encoder.encode(prompt))!r}. Word one of them in another way, or leave it out."
            )
    return encode_prompts(names, encoder, templates)


def _open_prompts(model: str | Path, names: tuple[str, ...], templates: tuple[str, ...]) -> Classifier:
    _check_labels(names)
    base, processor = find_checkpoint(model)
    prompts = _encode_labels(TextEncoder.from_processor(processor), names, templates)

    def load(device: torch.device) -> Callable[[Tensor], Tensor]:
        towers = AlignTowers.of(base).to(device)
        zero_shot = ZeroShot(towers, prompts)
        return lambda pixel_values: zero_shot.scores(towers.image_features(pixel_values))

    how = "" if templates == (PLACE,) else f", in {' | '.join(templates)}"
    return Classifier(f"the text prompts of {base.name} (zero-shot{how})", names, processor.image_processor, load)


def _open_head(folder: Path) -> Classifier:
    processor = open_image_processor(folder)
    classifier = PlainClassifier(folder)

    def load(device: torch.device) -> Callable[[Tensor], Tensor]:
        return classifier.to(device).logits

    return Classifier(f"the head of {folder}", classifier.classes, processor, load, classifier.is_multilabel)
