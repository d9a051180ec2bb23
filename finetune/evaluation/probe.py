"""What the drift meter looks at: the user's own images, and words that are not the user's."""

import numpy as np
import torch

from finetune.core.shipped import shipped_folder
from finetune.core.types import Texts
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.prepare.texts import write_prompts
from finetune.inference.embed import embed, embed_texts
from finetune.model.towers import AlignTowers
from finetune.run.measurement import Probe

IMAGES = 256
"""Test images that are embedded, evenly spaced."""

WORDS = "align_mini/imagenet_classes.txt"
TEMPLATE = "a photo of a {}."


def probe(towers: AlignTowers, data: ImageTextDataModule, device: torch.device) -> Probe:
    """Embeds up to `IMAGES` test images and a fixed vocabulary.

    The words are the thousand class names of ImageNet-1k, written into "a photo of a {}."

    Args:
        towers: The model, on `device`.
        data: The table; its test images are taken.
        device: Where the model runs.
    """
    words = (shipped_folder("datasets") / WORDS).read_text(encoding="utf-8").splitlines()
    texts = [data.texts.encode(text) for text in write_prompts(words, [TEMPLATE])]
    text_embeds = embed_texts(towers, Texts(*map(torch.as_tensor, data.texts.pad(texts))), device)
    rows = data.rows.indices("test")
    spaced = np.unique(np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).astype(int))
    images = embed(towers.image_embeddings, data.loader(rows[spaced]), device, shared=True)
    return Probe(images.image_embeds, text_embeds)
