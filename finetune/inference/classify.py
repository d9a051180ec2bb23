"""Images classified by any model: by class prompts, or by a trained head."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AlignProcessor, AutoImageProcessor

from finetune.core.errors import RecipeError, TableError
from finetune.core.files import read_json
from finetune.core.types import Texts
from finetune.data.prepare.images import EXTENSIONS, ImagePreparation, open_image
from finetune.data.prepare.texts import TextEncoder
from finetune.inference.embed import embed, embed_texts, find_device
from finetune.inference.models import PlainClassifier
from finetune.model.base import Base, open_processor
from finetune.model.checkpoint_folder import read_object
from finetune.model.pretrained import opening
from finetune.model.towers import AlignTowers
from finetune.objectives import cosine_logits
from finetune.run.folder import RunFolder

IMAGES = 32
"""Images that are asked about at a time."""


class Classified(NamedTuple):
    """What a model says of images.

    Attributes:
        answered_by: What answered: the head of a folder, or the prompts of a checkpoint, for a screen.
        rows: Columns `image`, `label`, `probability`; one line per image and label.
    """

    answered_by: str
    rows: pd.DataFrame


def list_images(paths: Iterable[Path]) -> list[Path]:
    """Returns image files: those given, and those in the folders given, in the order of their names.

    Args:
        paths: Image files and folders.

    Raises:
        TableError: If a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
            if not found:
                raise TableError(f"Expected {path} to hold images ({', '.join(EXTENSIONS)}), but it holds none.")
            images += found
        else:
            images.append(path)
    return images


class _Images(NamedTuple):
    pixel_values: Tensor


class _Scores(NamedTuple):
    class_scores: Tensor


def classify(
    model: str | Path, images: Sequence[Path], labels: Sequence[str] = (), device: torch.device | None = None
) -> Classified:
    """Returns the probabilities of labels for images.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run.
        images: Image files.
        labels: Labels, worded as the model reads them, of which each image has one: the softmax over
            `logits_per_image`. Without any the head of a run or of a classifier's folder answers, for its classes.
        device: Where the model runs; None for the fastest.

    Raises:
        RecipeError: If there are no labels and the model has no head, or the model has a head alone and there are
            labels.
        CheckpointError: If the model cannot be opened.
        TableError: If an image cannot be read.
    """
    device = device or find_device()
    head = _find_head(Path(model))
    if labels:
        if head == Path(model):
            raise RecipeError(
                f"Expected {model} to be asked without --label, but got {labels[0]!r}: an image classifier of fixed "
                "classes reads no texts. Leave out --label, or name a merged folder."
            )
        return _ask_prompts(*_find_towers(model), images, labels, device)
    if head is None:
        raise RecipeError(
            f"Expected --label for {model}, which has no head that knows classes, but got none. "
            'Name each class, as in --label "a cat" --label "a dog".'
        )
    return _ask_head(head, images, device)


def _find_head(path: Path) -> Path | None:
    """The classifier's folder that a path names or a finished run has; None where there is none."""
    run = RunFolder(path)
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
    base: Base, processor: AlignProcessor, images: Sequence[Path], labels: Sequence[str], device: torch.device
) -> Classified:
    towers = AlignTowers(base.load()).to(device)
    encoder = TextEncoder.from_processor(processor)
    texts = Texts(*map(torch.as_tensor, encoder.pad([encoder.encode(label) for label in labels])))
    text_embeds = embed_texts(towers, texts, device).to(device)

    def encode(batch: _Images) -> _Scores:
        features = towers.image_features(batch.pixel_values)
        return _Scores(cosine_logits(features, text_embeds, towers.temperature))

    scores = embed(encode, _read(images, processor.image_processor), device).class_scores
    return Classified(f"the text prompts of {base.name} (zero-shot)", _tabulate(images, labels, scores.softmax(dim=-1)))


def _ask_head(folder: Path, images: Sequence[Path], device: torch.device) -> Classified:
    classifier = PlainClassifier(folder).to(device)
    with opening(folder, "AutoImageProcessor"):
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)

    def encode(batch: _Images) -> _Scores:
        return _Scores(classifier.model(batch.pixel_values).logits)

    scores = embed(encode, _read(images, processor), device).class_scores
    probabilities = scores.sigmoid() if classifier.is_multilabel else scores.softmax(dim=-1)
    return Classified(f"the head of {folder}", _tabulate(images, classifier.classes, probabilities))


def _read(images: Sequence[Path], image_processor: Any) -> Iterator[_Images]:
    """Yields batches of prepared images."""
    prepare = ImagePreparation.from_processor(image_processor)
    for start in range(0, len(images), IMAGES):
        pixels = [prepare(open_image(path)) for path in images[start : start + IMAGES]]
        yield _Images(torch.from_numpy(np.stack(pixels)))


def _tabulate(images: Sequence[Path], labels: Sequence[str], probabilities: Tensor) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": np.repeat([str(path) for path in images], len(labels)),
            "label": np.tile(np.array(labels, dtype=object), len(images)),
            "probability": probabilities.flatten().numpy(),
        }
    )
