"""Images classified by any model: by class prompts, or by a trained head."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AlignProcessor

from finetune.core.cores import count_cores
from finetune.core.errors import RecipeError, TableError
from finetune.core.exchange import restore_folder
from finetune.core.files import read_json
from finetune.core.places import show
from finetune.core.types import Texts
from finetune.data.prepare.images import FORMATS, ImagePreparation, Pixels, try_image
from finetune.data.prepare.members import place_of
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.ahead import work_ahead
from finetune.inference.embed import embed, embed_texts, find_device
from finetune.inference.listing import require_files
from finetune.inference.models import PlainClassifier
from finetune.model.base import Base, open_image_processor, open_processor
from finetune.model.checkpoint_folder import read_object
from finetune.model.mini import MINI
from finetune.model.towers import AlignTowers
from finetune.objectives import cosine_logits
from finetune.run.folder import RunFolder, open_run, require_finished

IMAGES = 32
"""Images that are asked about at a time."""


class SkippedImage(NamedTuple):
    """An image that was left out.

    Attributes:
        image: Its path.
        reason: Why it cannot be read, in a few words.
    """

    image: str
    reason: str


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
    device = device or find_device()
    head = _find_head(Path(model))
    if labels:
        if head == Path(model):
            raise RecipeError(
                f"Expected {model} to be asked without --label, but got {labels[0]!r}: an image classifier of fixed "
                "classes reads no texts. Leave out --label, or name a merged folder."
            )
        _check_labels(labels)
        return _ask_prompts(*_find_towers(model), paths, labels, device)
    if head is None:
        if not Path(model).exists() and str(model) != MINI and any(Path(model).parent.glob("*/recipe.yaml")):
            open_run(model)  # names the run that was meant
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


def _find_towers(model: str | Path) -> tuple[Base, AlignProcessor]:
    """The checkpoint whose prompts answer: what a finished run exported, or its base where it trained a head alone."""
    run = RunFolder(Path(model))
    if not run.is_finished:
        base = Base.open(model)
        return base, base.processor()
    base = Base.open(run.merged if run.merged.is_dir() else read_json(run.environment)["checkpoint"]["name"])
    return base, open_processor(run.processor)


def _ask_prompts(
    base: Base, processor: AlignProcessor, images: Sequence[str], labels: Sequence[str], device: torch.device
) -> Classified:
    texts = _encode_labels(TextEncoder.from_processor(processor), labels)
    pictures = _Pictures(images, processor.image_processor)
    towers = AlignTowers(base.load(), levels=base.levels).to(device)
    text_embeds = embed_texts(towers, texts, device).to(device)

    def encode(batch: _Images) -> _Scores:
        features = towers.image_features(batch.pixel_values)
        return _Scores(cosine_logits(features, text_embeds, towers.temperature))

    scores = embed(encode, pictures, device).class_scores
    return pictures.tabulate(f"the text prompts of {base.name} (zero-shot)", labels, scores.softmax(dim=-1))


def _ask_head(folder: Path, images: Sequence[str], device: torch.device) -> Classified:
    pictures = _Pictures(images, open_image_processor(folder))
    classifier = PlainClassifier(folder).to(device)

    def encode(batch: _Images) -> _Scores:
        return _Scores(classifier.logits(batch.pixel_values))

    scores = embed(encode, pictures, device).class_scores
    probabilities = scores.sigmoid() if classifier.is_multilabel else scores.softmax(dim=-1)
    return pictures.tabulate(f"the head of {folder}", classifier.classes, probabilities)


class _Images(NamedTuple):
    pixel_values: Tensor


class _Scores(NamedTuple):
    class_scores: Tensor


class _Pictures:
    """Prepared images in batches, to be gone through once; threads open the next while a model is asked about these.

    Images that cannot be read are left out and noted.

    Args:
        images: Paths and addresses.
        image_processor: The processor of the model.

    Raises:
        TableError: If no image can be read, before a model is opened.
    """

    def __init__(self, images: Sequence[str], image_processor: Any) -> None:
        self.read: list[str] = []
        self.skipped: list[SkippedImage] = []
        self._batches = self._prepare(images, ImagePreparation.from_processor(image_processor))
        self._first = next(self._batches, None)
        if self._first is None:
            first = self.skipped[0]
            others = f"; nor can the others be read, {len(images)} in all" if len(images) > 1 else ""
            raise TableError(
                f"Expected {first.image} to be a whole image ({', '.join(FORMATS)}), but got: {first.reason}{others}. "
                "Save it again as a PNG or JPEG of ordinary size."
            )

    def __iter__(self) -> Iterator[_Images]:
        assert self._first is not None
        yield self._first
        yield from self._batches

    def _prepare(self, images: Sequence[str], prepare: ImagePreparation) -> Iterator[_Images]:
        def open_one(path: str) -> Pixels | str:
            image = try_image(path)
            return image if isinstance(image, str) else prepare(image)

        opened = work_ahead(open_one, images, threads=count_cores(), most_ahead=2 * IMAGES)
        for start in range(0, len(images), IMAGES):
            pixels = []
            for path, found in zip(images[start : start + IMAGES], opened, strict=False):
                if isinstance(found, str):
                    self.skipped.append(SkippedImage(place_of(path), found))
                else:
                    self.read.append(place_of(path))
                    pixels.append(found)
            if pixels:
                yield _Images(torch.from_numpy(np.stack(pixels)))

    def tabulate(self, answered_by: str, labels: Sequence[str], probabilities: Tensor) -> Classified:
        """Puts the probabilities, of shape (images that were read, labels), beside images and labels."""
        rows = pd.DataFrame(
            {
                "image": np.repeat([show(image) for image in self.read], len(labels)),
                "label": np.tile(np.array(labels, dtype=object), len(self.read)),
                "probability": probabilities.flatten().numpy(),
            }
        )
        return Classified(answered_by, rows, tuple(self.skipped))
