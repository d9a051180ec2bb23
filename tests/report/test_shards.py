"""The page of a run on tar shards, whose rows have keys for numbers: those of img2dataset, and words."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from finetune import read_recipe, run_recipe
from finetune.run.folder import RunFolder

from ..data.shards import SPECIES, sample, write_tar
from .conftest import Element, Page
from .test_page import decode

COUNT = 24


class Shards(NamedTuple):
    """A folder of tars; of each sample the key, the place, and the place as the page shows it."""

    folder: Path
    keys: list[str]
    places: list[str]
    shown: list[str]


@pytest.fixture(scope="module", params=["padded", "words"])
def shards(request, tmp_path_factory) -> Shards:
    """Two tars with padded numbers for keys, of which the whole path is shown; or one with words in a folder."""
    folder = tmp_path_factory.mktemp("shards")
    form, ends = {"padded": ("{:09d}", (11, COUNT)), "words": ("pets/pic:{}", (COUNT,))}[request.param]
    keys = [form.format(number) for number in range(COUNT)]
    splits = ["train", "test", "test", "val"] * (COUNT // 4)
    samples = [sample(number, keys[number], split=splits[number]) for number in range(COUNT)]
    places, start = [], 0
    for end in ends:
        tar = write_tar(folder / f"{end}.tar", *samples[start:end])
        places += [f"{tar}:{key}" for key in keys[start:end]]
        start = end
    return Shards(folder, keys, places, [it.removeprefix(f"{folder}/") for it in places] if len(ends) == 1 else places)


def fit(shards: Shards, tiny: str, **text: str) -> RunFolder:
    table = {"path": str(shards.folder / "*.tar"), "split": "split", **text}
    settings = {
        "model": {"checkpoint": tiny},
        "data": {"class_path": "finetune.ImageTextDataModule", "init_args": {"table": table, "batch_size": 8}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"folder": str(shards.folder / "runs")},
    }
    recipe = shards.folder / f"{'-'.join(text)}.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    run = run_recipe(read_recipe(recipe))
    assert run.is_finished
    return run


def number_shown(img: Element) -> int:
    """The sample that a picture of the page shows: the one whose own pixels are nearest to it."""
    shown = np.asarray(decode(img.attributes["src"]).convert("RGB"), dtype=float)
    images = (Image.open(io.BytesIO(next(iter(sample(number).values())))) for number in range(COUNT))
    return int(np.argmin([np.abs(np.asarray(image, dtype=float) - shown).mean() for image in images]))


@pytest.mark.slow
def test_queries_show_pictures_and_texts_of_captions(shards, tiny):
    run = fit(shards, tiny, caption="txt")
    page = Page(run.report.read_text(encoding="utf-8"))
    predictions = pd.read_csv(run.predictions, dtype=str).set_index("caption")
    by_text = [it for it in page.all("table") if it.attributes.get("class") == "queries"][:2]
    lines = [line for table in by_text for line in page.inside(table, "tr")[1:]]
    assert len(lines) == 12
    for line in lines:
        caption, own, first = (cell.text for cell in page.inside(line, "th", "td"))
        number, other = int(caption.rpartition(" ")[2]), shards.places.index(predictions.loc[caption, "retrieved"])
        assert predictions.loc[caption, "row"] == shards.keys[number]
        assert shards.shown[number] in own
        if number == other:
            assert first == "the same"
            assert [number_shown(img) for img in page.inside(line, "img")] == [number]
        else:
            assert f"a {SPECIES[other % 3]} number {other}{shards.shown[other]}" in first
            assert [number_shown(img) for img in page.inside(line, "img")] == [number, other]


@pytest.mark.slow
def test_mistakes_show_pictures_of_labels(shards, tiny):
    run = fit(shards, tiny, label="species")
    page = Page(run.report.read_text(encoding="utf-8"))
    cards = page.inside(page.section("mistakes"), "li")
    assert cards
    for card in cards:
        (place,) = (it.text for it in page.inside(card, "span"))
        number = shards.shown.index(place)
        assert SPECIES[number % 3] in card.text
        assert [number_shown(img) for img in page.inside(card, "img")] == [number]
