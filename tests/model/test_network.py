"""The real checkpoint, where there is a model hub. `ALIGN_COCO_IMAGE` names a copy of the image that lies here."""

import os
import urllib.request
from pathlib import Path

import pytest
import torch

from finetune.data.prepare.images import ImagePreparation, open_image
from finetune.data.prepare.texts import TextEncoder
from finetune.model.base import Base
from finetune.model.towers import AlignTowers

CHECKPOINT = "kakaobrain/align-base"
IMAGE = "http://images.cocodataset.org/val2017/000000039769.jpg"  # two cats on a sofa, as in transformers' own test
TEXTS = ["a photo of a cat", "a photo of a dog"]
LOGITS = torch.tensor([[9.7093, 3.4679]])

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if own := os.environ.get("ALIGN_COCO_IMAGE"):
        return Path(own)
    path = tmp_path_factory.mktemp("coco") / "000000039769.jpg"
    with urllib.request.urlopen(IMAGE, timeout=60) as response:
        path.write_bytes(response.read())
    return path


@torch.no_grad()
def test_align_base_has_the_logits_that_transformers_publishes(image):
    inputs = Base.open(CHECKPOINT).processor()(images=open_image(image), text=TEXTS, return_tensors="pt")
    logits = Base.open(CHECKPOINT).load()(**inputs).logits_per_image
    torch.testing.assert_close(logits, LOGITS, rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_toolkits_own_way_to_the_towers_has_them_too(image):
    processor = Base.open(CHECKPOINT).processor()
    pixel_values = torch.from_numpy(ImagePreparation.from_processor(processor.image_processor)(open_image(image)))
    texts = TextEncoder.from_processor(processor)
    input_ids, attention_mask = map(torch.as_tensor, texts.pad([texts.encode(text) for text in TEXTS]))
    towers = AlignTowers.of(Base.open(CHECKPOINT))
    image_embeds = torch.nn.functional.normalize(towers.image_features(pixel_values[None]), dim=-1)
    text_embeds = torch.nn.functional.normalize(towers.text_features(input_ids, attention_mask), dim=-1)
    torch.testing.assert_close(image_embeds @ text_embeds.T / towers.temperature, LOGITS, rtol=0, atol=1e-3)
