"""One measurement for all methods: features of pictures and texts, then the toolkit's own metrics."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transfer_data import Pictures, TaskData, load_base, tokens
from transformers import AlignModel

from finetune.inference.embed import class_embeddings
from finetune.metrics.accuracy import ClassAccuracy
from finetune.metrics.retrieval import Retrieval


class Trained(NamedTuple):
    """What a method leaves.

    Attributes:
        model: The towers, None where they are the base's.
        class_scores: From unnormalised image features (B, D) to logits (B, C); None to compare with class prompts.
        at: The model at an interpolation between the base, 0, and this one, 1; None where the toolkit did not train it.
    """

    model: AlignModel | None
    class_scores: Callable[[Tensor], Tensor] | None = None
    at: "Callable[[float], Trained] | None" = None


@torch.no_grad()
def image_features(model: AlignModel, pictures: Pictures) -> Tensor:
    """Computes unnormalised image features in float32, shape (N, D)."""
    model.eval()
    parts = []
    for start in range(0, len(pictures), 64):
        pixel_values = pictures.pixel_values(pictures.pixels[start : start + 64])
        parts.append(model.get_image_features(pixel_values=pixel_values).pooler_output.float())
    return torch.cat(parts)


@torch.no_grad()
def text_features(model: AlignModel, texts: list[str]) -> Tensor:
    """Computes unnormalised text features in float32, shape (N, D)."""
    model.eval()
    parts = []
    for start in range(0, len(texts), 64):
        ids, mask = tokens(texts[start : start + 64])
        parts.append(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output.float())
    return torch.cat(parts)


@cache
def _base() -> AlignModel:
    return load_base()


@cache
def base_image_features(pictures: Pictures) -> Tensor:
    """Computes image features of the base, once."""
    return image_features(_base(), pictures)


@cache
def base_text_features(pictures: Pictures) -> Tensor:
    """Computes text features of the base, once; of the classes where there are some."""
    return text_features(_base(), list(pictures.classes or pictures.texts))


def base_class_embeds(pictures: Pictures) -> Tensor:
    """Computes normalised class embeddings of the base, shape (C, D)."""
    return class_embeddings(base_text_features(pictures), torch.arange(len(pictures.classes)))


@torch.no_grad()
def class_scores(trained: Trained, pictures: Pictures, uses_scores: bool = True) -> Tensor:
    """Computes logits of a gallery's classes for its pictures, shape (N, C).

    Args:
        trained: What a method left.
        pictures: The gallery.
        uses_scores: Whether its classes are those of `trained.class_scores`.
    """
    model = trained.model
    images = base_image_features(pictures) if model is None else image_features(model, pictures)
    if uses_scores and trained.class_scores is not None:
        return trained.class_scores(images)
    if model is None:
        classes, temperature = base_class_embeds(pictures), _base().temperature
    else:
        classes = class_embeddings(text_features(model, list(pictures.classes)), torch.arange(len(pictures.classes)))
        temperature = model.temperature
    return normalize(images, dim=-1) @ classes.T / temperature


@torch.no_grad()
def measure_place(trained: Trained, pictures: Pictures, uses_scores: bool) -> dict[str, float]:
    """Computes the metrics of one gallery.

    Args:
        trained: What a method left.
        pictures: The gallery.
        uses_scores: Whether its classes are those of `trained.class_scores`.

    Returns:
        The toolkit's metrics, and `hit@10`, the mean of both directions, in retrieval.
    """
    if pictures.classes:
        return _accuracy(class_scores(trained, pictures, uses_scores), pictures)
    metric = measure_retrieval(trained, pictures)
    return {"hit@10": hit_rate(metric), **{name: float(value) for name, value in metric.compute().items()}}


def hit_rate(metric: Retrieval) -> float:
    """Takes the hit rate at 10, mean of both directions."""
    found = metric.compute()
    return float(found["image_to_text/R@10"] + found["text_to_image/R@10"]) / 2


@torch.no_grad()
def measure_retrieval(trained: Trained, pictures: Pictures) -> Retrieval:
    """Computes the toolkit's metric of a gallery of captions.

    Args:
        trained: What a method left.
        pictures: The gallery.
    """
    model = trained.model
    images = base_image_features(pictures) if model is None else image_features(model, pictures)
    texts = base_text_features(pictures) if model is None else text_features(model, list(pictures.texts))
    metric = Retrieval()
    metric.update(images, texts, pictures.image_ids, pictures.caption_ids)
    return metric


def main_figure(metrics: Mapping[str, float]) -> float:
    """Takes the accuracy of a table of labels, and the hit rate at 10 of a table of captions."""
    return metrics["accuracy"] if "accuracy" in metrics else metrics["hit@10"]


def _accuracy(scores: Tensor, pictures: Pictures) -> dict[str, float]:
    metric = ClassAccuracy()
    metric.update(scores, pictures.label_ids)
    return {name: float(value) for name, value in metric.compute().items()}


def measure(trained: Trained, data: TaskData) -> dict[str, dict[str, float]]:
    """Computes the metrics of the validation rows, the target, the shift and the other domains.

    Args:
        trained: What a method left.
        data: The task.
    """
    places = {"val": data.val, **data.galleries}
    own = ("val", "target", "shift")
    found = {name: measure_place(trained, pictures, name in own) for name, pictures in places.items()}
    return {name: {key: round(value, 5) for key, value in metrics.items()} for name, metrics in found.items()}
