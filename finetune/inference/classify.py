"""Images classified by any model: by class prompts, or by a trained head."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AlignProcessor

from finetune.core.errors import RecipeError, TableError
from finetune.core.exchange import restore_folder
from finetune.core.places import show
from finetune.core.types import Texts
from finetune.data.prepare.images import ImagePreparation
from finetune.data.prepare.members import place_of
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.checkpoint import find_checkpoint, refuse_misspelt_run
from finetune.inference.embed import embed, embed_texts, find_device
from finetune.inference.listing import require_files
from finetune.inference.models import PlainClassifier
from finetune.inference.pictures import Pictures, PixelBatch, SkippedImage
from finetune.model.base import Base, open_image_processor
from finetune.model.checkpoint_folder import read_object
from finetune.model.towers import AlignTowers
from finetune.objectives import cosine_logits
from finetune.run.folder import RunFolder, require_finished


class Classified(NamedTuple):
    """What a model says of images.

    Attributes:
        answered_by: What answered: the head of a folder, or the prompts of a checkpoint, for a screen.
        rows: Columns `image`, `label`, `probability`; one line per image and label.
        skipped: The images that cannot be read, of which there are no rows.
    """

    answered_by: str
    rows: pd.DataFrame
    skipped: tuple[SkippedImage, ...]


def classify(
    model: str | Path, images: Sequence[str | Path], labels: Sequence[str] = (), device: torch.device | None = None
) -> Classified:
    """Returns the probabilities of labels for images. Images that cannot be read are left out and listed.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run.
        images: Image files.
        labels: Two labels or more, worded as the model reads them, of which each image has one: the softmax over
            `logits_per_image`. Without any the head of a run or of a classifier's folder answers, for its classes.
        device: Where the model runs; None for the fastest.

    Raises:
        RecipeError: If there are no labels and the model has no head, the model has a head alone and there are labels,
            or a label is empty, not UTF-8, alone, or the same to the model as another.
        CheckpointError: If the model cannot be opened, or is a run that is not finished.
        TableError: If no image is given, one does not exist, or none can be read.
    """
    labels = (labels,) if isinstance(labels, str) else labels
    paths = [str(path) for path in ((images,) if isinstance(images, str | Path) else images)]
    if not paths:
        raise TableError("Expected at least one image, but got none.")
    require_files(paths)
    return classify_listed(model, paths, labels, device or find_device())


def classify_listed(model: str | Path, paths: Sequence[str], labels: Sequence[str], device: torch.device) -> Classified:
    """Classifies one or more images, of which those that are not there are left out like damaged ones.

    The arguments and errors are those of `classify`.
    """
    head = _find_head(Path(model))
    if labels:
        if head == Path(model):
            raise RecipeError(
                f"Expected {model} to be asked without --label, but got {labels[0]!r}: an image classifier of fixed "
                "classes reads no texts. Leave out --label, or name a merged folder."
            )
        _check_labels(labels)
        return _ask_prompts(*find_checkpoint(model), paths, labels, device)
    if head is None:
        refuse_misspelt_run(model)
        raise RecipeError(
            f"Expected --label for {model}, which has no head that knows classes, but got none. "
            'Name each class, as in --label "a cat" --label "a dog".'
        )
    return _ask_head(head, paths, device)


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


def _encode_labels(encoder: TextEncoder, labels: Sequence[str]) -> Texts:
    """Encodes labels, and refuses those that the model cannot tell apart."""
    encoded = [encoder.encode(label) for label in labels]
    first: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, encoded, strict=True):
        other = first.setdefault(tuple(ids), label)
        if other != label:
            raise RecipeError(
                f"Expected labels that differ to the model, but got {other!r} and {label!r}, both of which it reads "
                f"as {encoder.decode(ids)!r}. Word one of them in another way, or leave it out."
            )
    return Texts(*map(torch.as_tensor, encoder.pad(encoded)))


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


def _ask_prompts(
    base: Base, processor: AlignProcessor, images: Sequence[str], labels: Sequence[str], device: torch.device
) -> Classified:
    texts = _encode_labels(TextEncoder.from_processor(processor), labels)
    pictures = _open_pictures(images, processor.image_processor)
    towers = AlignTowers(base.load(), levels=base.levels).to(device)
    text_embeds = embed_texts(towers, texts, device).to(device)

    def encode(batch: PixelBatch) -> _Scores:
        features = towers.image_features(batch.pixel_values)
        return _Scores(cosine_logits(features, text_embeds, towers.temperature))

    scores = embed(encode, pictures, device).class_scores
    answered_by = f"the text prompts of {base.name} (zero-shot)"
    return _tabulate(answered_by, images, pictures, labels, scores.softmax(dim=-1))


def _ask_head(folder: Path, images: Sequence[str], device: torch.device) -> Classified:
    pictures = _open_pictures(images, open_image_processor(folder))
    classifier = PlainClassifier(folder).to(device)

    def encode(batch: PixelBatch) -> _Scores:
        return _Scores(classifier.logits(batch.pixel_values))

    scores = embed(encode, pictures, device).class_scores
    probabilities = scores.sigmoid() if classifier.is_multilabel else scores.softmax(dim=-1)
    return _tabulate(f"the head of {folder}", images, pictures, classifier.classes, probabilities)


class _Scores(NamedTuple):
    class_scores: Tensor


def _open_pictures(images: Sequence[str], image_processor: Any) -> Pictures:
    """Refuses images of which none can be read, before a model is opened."""
    pictures = Pictures(images, ImagePreparation.from_processor(image_processor))
    pictures.require_any()
    return pictures


def _tabulate(
    answered_by: str, images: Sequence[str], pictures: Pictures, labels: Sequence[str], probabilities: Tensor
) -> Classified:
    """Puts the probabilities, of shape (images that were read, labels), beside images and labels."""
    rows = pd.DataFrame(
        {
            "image": np.repeat([show(place_of(images[at])) for at in pictures.read], len(labels)),
            "label": np.tile(np.array(labels, dtype=object), len(pictures.read)),
            "probability": probabilities.flatten().numpy(),
        }
    )
    return Classified(answered_by, rows, tuple(pictures.skipped))
