"""Zero-shot classification with any checkpoint, as the model card does it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch

from finetune.core.errors import TableError
from finetune.data.prepare.images import EXTENSIONS, open_image
from finetune.model.base import load_model, load_processor
from finetune.run.folder import RunFolder


def list_images(paths: Iterable[Path]) -> list[Path]:
    """Image files: those given, and those in the folders given, in the order of their names.

    Args:
        paths: Image files and folders.

    Raises:
        TableError: If a path does not exist or a folder holds no image.
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


@torch.inference_mode()
def classify(model: str, images: Sequence[Path], labels: Sequence[str]) -> pd.DataFrame:
    """Probabilities of labels for images: the softmax over `logits_per_image`.

    Args:
        model: Hub id, folder, `align-mini`, or a run, whose merged checkpoint is taken.
        images: Image files.
        labels: Labels, worded as the model reads them.

    Returns:
        Columns `image`, `label`, `probability`; one line per image and label.
    """
    run = RunFolder(Path(model))
    checkpoint = str(run.merged) if run.is_finished else model
    align, processor = load_model(checkpoint), load_processor(checkpoint)
    text = processor(text=list(labels), truncation=True, return_tensors="pt")
    parts = []
    for path in images:
        inputs = processor(images=open_image(path), return_tensors="pt")
        probabilities = align(**inputs, **text).logits_per_image.softmax(dim=1)[0]
        parts.append(pd.DataFrame({"image": str(path), "label": labels, "probability": probabilities.numpy()}))
    return pd.concat(parts, ignore_index=True)
