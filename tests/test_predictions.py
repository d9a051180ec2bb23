"""What `predictions.csv` says of each caption's row, against plain transformers and NumPy."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AlignModel, AlignProcessor

from finetune.data.datamodule import ImageTextDataModule
from finetune.data.table import Table
from finetune.evaluation import evaluate
from finetune.task import AlignTask


@pytest.fixture
def shared_table(colour_table, tmp_path):
    """Images with two captions, and a caption of two images."""
    images = [0, 1, 2, 3, 4, 4, 5, 5, 6]
    captions = ["a red square", "a green square", "blue", "red", "green", "a field", "blue", "sky", "fire"]
    lines = [["image", "caption", "split"], ["7.png", "nothing", "train"]]
    lines += [[f"{image}.png", text, "test"] for image, text in zip(images, captions, strict=True)]
    for name in {line[0] for line in lines[1:]}:
        (tmp_path / name).symlink_to(colour_table.parent / name)
    with (tmp_path / "shared.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return tmp_path / "shared.csv", [f"{image}.png" for image in images], captions


def test_ranks_and_what_was_retrieved_are_those_of_plain_transformers(tiny, shared_table):
    path, images, captions = shared_table
    data = ImageTextDataModule(Table(str(path), caption="caption", split="split"), tiny, batch_size=4)
    found = evaluate("cpu", AlignTask(tiny, image_lora=None, text_lora=None), data).predictions

    model, processor = AlignModel.from_pretrained(tiny), AlignProcessor.from_pretrained(tiny)
    with torch.no_grad():
        pictures = [Image.open(path.parent / name).convert("RGB") for name in images]
        made = model(**processor(images=pictures, text=captions, padding=True, return_tensors="pt"))
    similarity = (made.image_embeds @ made.text_embeds.T).numpy()

    distinct_images, distinct_captions = sorted(set(images)), sorted(set(captions))
    of_images = similarity[[images.index(name) for name in distinct_images]]
    of_pairs = of_images[:, [captions.index(text) for text in distinct_captions]]
    rows = list(zip(images, captions, strict=True))
    correct = np.array([[(name, text) in rows for text in distinct_captions] for name in distinct_images])

    def rank(scores, is_correct):
        return 1 + (scores > scores[is_correct].max()).sum()

    by_image = {name: rank(of_pairs[at], correct[at]) for at, name in enumerate(distinct_images)}
    by_caption = {text: rank(of_pairs[:, at], correct[:, at]) for at, text in enumerate(distinct_captions)}
    assert found["image_to_text_rank"].tolist() == [by_image[name] for name in images]
    assert found["text_to_image_rank"].tolist() == [by_caption[text] for text in captions]
    assert len({*by_image.values(), *by_caption.values()}) > 2
    assert found["similarity"].tolist() == pytest.approx(similarity.diagonal().tolist(), abs=1e-5)
    assert found["prediction"].tolist() == [captions[at] for at in similarity.argmax(axis=1)]
    retrieved = [images[int(place.removeprefix(f"{path}:")) - 3] for place in found["retrieved"]]
    assert retrieved == [images[at] for at in similarity.argmax(axis=0)]


def test_tables_with_labels_have_no_ranks(tiny, labels):
    found = evaluate("cpu", AlignTask(tiny, image_lora=None, text_lora=None), labels).predictions
    assert list(found) == ["row", "label", "prediction", "score"]
