"""What `predictions.csv` says of each caption's row, against plain transformers and NumPy."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AlignModel, AlignProcessor

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table


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


@pytest.mark.parametrize("merged", [True, False])
def test_ranks_and_what_was_retrieved_are_those_of_plain_transformers(tiny, ask, shared_table, merged):
    path, images, captions = shared_table
    table = Table(str(path), caption="caption", split="split", outside=True)
    data = ImageTextDataModule(table, tiny, batch_size=4, merge_equal_captions=merged)
    _, found = ask(data)

    model, processor = AlignModel.from_pretrained(tiny), AlignProcessor.from_pretrained(tiny)
    with torch.no_grad():
        pictures = [Image.open(path.parent / name).convert("RGB") for name in images]
        made = model(**processor(images=pictures, text=captions, padding=True, return_tensors="pt"))
    similarity = (made.image_embeds @ made.text_embeds.T).numpy()

    queries = captions if merged else list(range(len(captions)))  # what a row's caption is told by
    distinct_images, distinct_captions = sorted(set(images)), sorted(set(queries))
    of_images = similarity[[images.index(name) for name in distinct_images]]
    of_pairs = of_images[:, [queries.index(query) for query in distinct_captions]]
    rows = list(zip(images, queries, strict=True))
    correct = np.array([[(name, query) in rows for query in distinct_captions] for name in distinct_images])

    def rank(scores, is_correct):
        others, best = scores[~is_correct], scores[is_correct].max()
        equal = np.isclose(others, best, rtol=0, atol=1e-6)  # a caption that stands in another row once more
        return 1 + (others[~equal] > best).sum() + equal.sum() / 2

    by_image = {name: rank(of_pairs[at], correct[at]) for at, name in enumerate(distinct_images)}
    by_caption = {query: rank(of_pairs[:, at], correct[:, at]) for at, query in enumerate(distinct_captions)}
    assert found["image_to_text_rank"].tolist() == [by_image[name] for name in images]
    assert found["text_to_image_rank"].tolist() == [by_caption[query] for query in queries]
    assert len({*by_image.values(), *by_caption.values()}) > 2
    assert found["similarity"].tolist() == pytest.approx(similarity.diagonal().tolist(), abs=1e-5)
    assert found["prediction"].tolist() == [captions[at] for at in similarity.argmax(axis=1)]
    retrieved = [images[int(place.removeprefix(f"{path}:")) - 3] for place in found["retrieved"]]
    assert retrieved == [images[at] for at in similarity.argmax(axis=0)]


def test_tables_with_labels_have_no_ranks(ask, labels):
    assert list(ask(labels)[1]) == ["row", "label", "prediction", "score"]
