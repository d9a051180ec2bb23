"""How far an adapted model has moved from its base: a meter of forgetting that needs no second table."""

from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.batch import ClassPrompts
from finetune.data.datamodule import ImageTextDataModule
from finetune.data.texts import write_prompts
from finetune.shipped import shipped_folder
from finetune.task import AlignTask

IMAGES = 256
"""Test images that are looked at, evenly spaced."""

_WORDS = "align_mini/imagenet_classes.txt"
_TEMPLATE = "a photo of a {}."
_CHUNK = 64


@torch.inference_mode()
def vocabulary_scores(task: AlignTask, data: ImageTextDataModule) -> Tensor:
    """What a model says of the user's own images in words that are not the user's.

    The words are the thousand class names of ImageNet-1k, written into "a photo of a {}."

    Args:
        task: The model, where it shall run.
        data: The table; its test images are taken.

    Returns:
        Cosine similarities, float32 of shape (images, words), on the CPU.
    """
    words = tuple((shipped_folder("datasets") / _WORDS).read_text(encoding="utf-8").splitlines())
    texts = [data.texts.encode(text) for text in write_prompts(words, [_TEMPLATE])]
    input_ids, attention_mask = map(torch.as_tensor, data.texts.pad(texts))
    text_embeds = task.class_embeds(ClassPrompts(words, input_ids, attention_mask, torch.arange(len(words))))
    dataset = data.dataset("test")
    positions = np.unique(np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(int)).tolist()
    samples = data.samples(dataset, positions)
    parts = []
    while chunk := list(islice(samples, _CHUNK)):
        batch = dataset.collate(chunk)
        features = task.towers.image_features(batch.pixel_values.to(task.device))
        parts.append((normalize(features.float(), dim=-1) @ text_embeds.T).cpu())
    return torch.cat(parts)


def drift(before: Tensor, after: Tensor, temperature: float) -> float:
    """Returns the mean Jensen-Shannon divergence, in bits, of what two models say of the same images.

    With p and q the softmax of an image's scores divided by the temperature, and H the entropy:
    JSD = H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991, IEEE Transactions on Information Theory 37). It is 0 where
    nothing changed and at most 1.

    Args:
        before: Scores of the base, shape (images, words).
        after: Scores of the adapted model, likewise.
        temperature: The base's, for both: a temperature that was trained or fitted changes no ranking.

    Example:
        >>> scores = torch.tensor([[0.3, 0.1], [0.1, 0.3]])
        >>> drift(scores, scores, 0.01), round(drift(scores, scores.flip(0), 0.001), 3)
        (0.0, 1.0)
    """
    p, q = (scores.double() / temperature for scores in (before, after))
    p, q = p.softmax(dim=-1), q.softmax(dim=-1)
    entropy = torch.special.entr
    divergence = (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).sum(dim=-1)
    return float(divergence.mean().clamp(min=0.0)) / float(np.log(2))
