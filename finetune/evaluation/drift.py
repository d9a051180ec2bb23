"""How far an adapted model has moved from its base: a meter of forgetting that needs no second table."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from finetune.core.shipped import shipped_folder
from finetune.core.types import Texts
from finetune.data.prepare.texts import write_prompts
from finetune.inference.embed import embed, embed_texts
from finetune.model.towers import AlignTowers
from finetune.run.measurement import Probe

if TYPE_CHECKING:
    from finetune.data.loading.datamodule import ImageTextDataModule  # brings Lightning, which takes seconds

IMAGES = 256
"""Test images that are embedded, evenly spaced."""

_WORDS = "align_mini/imagenet_classes.txt"
_TEMPLATE = "a photo of a {}."


def probe(towers: AlignTowers, data: "ImageTextDataModule", device: torch.device) -> Probe:
    """Embeds up to `IMAGES` test images and a fixed vocabulary.

    The words are the thousand class names of ImageNet-1k, written into "a photo of a {}."

    Args:
        towers: The model, on `device`.
        data: The table; its test images are taken.
        device: Where the model runs.
    """
    words = (shipped_folder("datasets") / _WORDS).read_text(encoding="utf-8").splitlines()
    texts = [data.texts.encode(text) for text in write_prompts(words, [_TEMPLATE])]
    text_embeds = embed_texts(towers, Texts(*map(torch.as_tensor, data.texts.pad(texts))), device)
    rows = data.rows.indices("test")
    spaced = np.unique(np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).astype(int))
    images = embed(towers.image_embeddings, data.loader(rows[spaced]), device)
    return Probe(images.image_embeds, text_embeds)


def drift(before: Probe, after: Probe) -> float:
    """Returns how far an adapted model's scores of the words on the images have moved from its base's.

    With S the cosine similarities of images and words, centred over both, so that what counts is which words are said
    of which images more than of others:

        drift = |S_before - S_after|^2 / (|S_before|^2 + |S_after|^2)

    which is 1 - 2 cov / (var + var), the complement of the concordance coefficient (Lin 1989, Biometrics 45) of centred
    scores. It is 0 where nothing changed; 1 where the model says the same of every image or of every word, as one that
    has collapsed does, or something unrelated; and bounded there. Of a single image there is nothing to say: 0.

    Args:
        before: What the base makes of images and words.
        after: What the adapted model makes of the same.

    Example:
        >>> model = Probe(torch.eye(2), torch.eye(2))
        >>> collapsed = Probe(torch.ones(2, 2) / 2**0.5, torch.eye(2))
        >>> drift(model, model), drift(model, collapsed)
        (0.0, 1.0)
    """
    base, adapted = (_centred_scores(each) for each in (before, after))
    size = float(base.square().sum() + adapted.square().sum())
    return min(1.0, float((base - adapted).square().sum()) / size) if size else 0.0


def _centred_scores(seen: Probe) -> Tensor:
    scores = seen.image_embeds.double() @ seen.text_embeds.double().T
    return scores - scores.mean(dim=0) - scores.mean(dim=1, keepdim=True) + scores.mean()
