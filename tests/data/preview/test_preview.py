"""What is shown is what the model gets: the training loader's own pixels, and its token ids read back."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import albumentations
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune.commands.cli import main
from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.dataset import ImageTextDataset
from finetune.data.prepare.images import open_image
from finetune.data.preview.examples import MOST_CLASSES, ROWS, choose_positions, collect_examples
from finetune.data.preview.preview import GAP, LINE, TEXT, TILE, check_preview_name, write_preview
from finetune.data.table.table import Table

TURN = [albumentations.Affine(rotate=(-30, 30), p=1.0)]


def training_rows(table: Table, **options: object) -> ImageTextDataset:
    settings = {"image_size": 64, "augmentations": TURN, "batch_size": 5} | options
    return ImageTextDataModule(table, "align-mini", **settings).dataset("train", training=True)


@pytest.fixture
def dataset(colour_table: Path) -> ImageTextDataset:
    return training_rows(Table(str(colour_table), label="label", split="split"), templates=("a {}.", "one {}"))


@pytest.fixture
def captions(colour_table: Path, tmp_path: Path) -> Path:
    """A table of captions with what is hard to show."""
    frame = pd.read_csv(colour_table)[["image", "caption", "split"]]
    frame["image"] = [str(colour_table.parent / name) for name in frame["image"]]
    (tmp_path / "cut.png").write_bytes((colour_table.parent / "0.png").read_bytes()[:500])
    frame.loc[1, "image"] = str(tmp_path / "cut.png")
    frame.loc[0, "caption"] = "<script>alert('x')</script> & " + "cat " * 48 + "dog " * 120
    frame.loc[2, "caption"] = "ein Käfer 甲虫"
    frame["split"] = ["train"] * 4 + ["test"] * 32
    frame.to_csv(tmp_path / "captions.csv", index=False)
    return tmp_path / "captions.csv"


class Page(HTMLParser):
    """The elements, pictures and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[Image.Image] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            content = (dict(attrs)["src"] or "").removeprefix("data:image/png;base64,")
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- which rows, and what of them


def test_the_views_are_what_the_training_loader_delivers(colour_table: Path) -> None:
    table = Table(str(colour_table), label="label", split="split")
    data = ImageTextDataModule(
        table, "align-mini", templates=("a {}.", "one {}"), augmentations=TURN, image_size=64, batch_size=5, seed=3
    )
    examples = collect_examples(data.dataset("train", training=True))
    assert len(examples) == ROWS
    assert [example.class_name for example in examples] == ["blue"] * 4 + ["green"] * 4 + ["red"] * 4
    for epoch in range(3):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        delivered = {}
        for batch in loader:
            for row, pixels, ids in zip(batch.rows.tolist(), batch.pixel_values, batch.input_ids, strict=True):
                delivered[data.rows.place(row)] = (pixels, data.processor.tokenizer.decode(ids, True))
        for example in examples:
            pixels, text = delivered[example.place]
            shown = example.views[epoch]
            assert np.array_equal(np.asarray(shown.picture), pixels.permute(1, 2, 0))
            assert (shown.text, shown.cut_off) == (text, "")
    assert len({view.text for example in examples for view in example.views}) == 6


def test_the_original_is_the_image_as_it_is_in_the_file(dataset: ImageTextDataset) -> None:
    example = collect_examples(dataset)[0]
    row = next(row for row in range(len(dataset.rows)) if dataset.rows.place(row) == example.place)
    assert isinstance(example.original, Image.Image)
    assert np.array_equal(example.original, open_image(dataset.rows.images[row]))


@pytest.mark.parametrize(("classes", "shown", "each"), [(1, 1, 12), (5, 5, 2), (20, 20, 1), (100, MOST_CLASSES, 1)])
def test_every_class_is_shown_until_there_are_many(classes: int, shown: int, each: int, colour_table: Path) -> None:
    labels = [f"c{at % classes}" for at in range(300)]
    frame = pd.DataFrame({"image": "0.png", "label": labels, "split": ["train"] * 299 + ["test"]})
    rows = training_rows(Table(frame, label="label", split="split", images=str(colour_table.parent)))
    found = [rows.rows.label_ids[position] for position in choose_positions(rows)]
    assert len(set(found)) == shown
    assert len(found) == shown * each


def test_captions_are_evenly_spaced(colour_table: Path) -> None:
    rows = training_rows(Table(str(colour_table), caption="caption", split="split"))
    assert choose_positions(rows) == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16]
    assert {example.class_name for example in collect_examples(rows)} == {""}


def test_what_is_cut_off_follows_what_is_read(captions: Path) -> None:
    rows = training_rows(Table(str(captions), caption="caption", split="split", outside=True))
    long, unreadable, foreign, plain = collect_examples(rows)
    tokenizer = rows.texts.tokenizer
    view = long.views[0]
    whole = tokenizer(rows.rows.captions[0], add_special_tokens=False, verbose=False)["input_ids"]
    read, lost = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (view.text, view.cut_off))
    assert read + lost == whole
    assert len(read) == 62  # and two that frame the text
    assert view.cut_off == " ".join(["dog"] * 120)
    assert unreadable.original is None
    assert unreadable.reason == "The image cannot be read: image file is truncated."
    assert unreadable.views == ()
    assert foreign.views[0].text == "ein kafer [UNK] [UNK]"
    assert plain.views[0].text == "a red square number 3"


# ---- the page and the picture


def test_page(captions: Path, tmp_path: Path) -> None:
    rows = training_rows(Table(str(captions), caption="caption", split="split", outside=True))
    printed = write_preview(tmp_path / "out" / "preview.html", rows)
    assert printed == f"preview: 4 of 4 training rows in {tmp_path / 'out' / 'preview.html'}"
    page, examples = Page(tmp_path / "out" / "preview.html"), collect_examples(rows)
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert len(page.pictures) == 3 * 4
    for at, example in enumerate(example for example in examples if example.views):
        for picture, view in zip(page.pictures[4 * at + 1 :][:3], example.views, strict=True):
            large = view.picture.resize((256, 256), Image.Resampling.NEAREST)  # each of 64 pixels four times
            assert np.array_equal(picture, large)
    assert "< script > alert ( ' x ' ) < / script > & cat cat" in page.text
    assert "cat [cut off: dog dog" in page.text
    assert re.search(r"\[cut off: (dog ){75}…\]", page.text)
    assert f"{captions}:3The image cannot be read: image file is truncated." in page.text
    assert "ein kafer [UNK] [UNK]" in page.text
    source = (tmp_path / "out" / "preview.html").read_text(encoding="utf-8")
    assert "http" not in source.replace("http-equiv", "")
    assert 'content="width=device-width' in source
    assert "prefers-color-scheme: dark" in source


def test_texts_that_differ_are_shown_epoch_by_epoch(dataset: ImageTextDataset, tmp_path: Path) -> None:
    write_preview(tmp_path / "preview.html", dataset)
    text = Page(tmp_path / "preview.html").text
    for example in collect_examples(dataset):
        found = [view.text for view in example.views]
        if len(set(found)) > 1:
            assert "".join(f"epoch {epoch}: {seen}" for epoch, seen in enumerate(found)) in text
        else:
            assert f"{example.place}{found[0]}original" in re.sub(r"\s*\n\s*", "", text)
    assert "augmented" in text


def test_picture(dataset: ImageTextDataset, tmp_path: Path) -> None:
    write_preview(tmp_path / "preview.PNG", dataset)
    with Image.open(tmp_path / "preview.PNG") as file:
        assert file.format == "PNG"
        sheet = np.asarray(file.convert("RGB"))
    left, tops = 2 * GAP + TEXT + GAP + TILE, []
    column = sheet[:, left : left + 128]
    for example in collect_examples(dataset):
        picture = np.asarray(example.views[0].picture.resize((128, 128), Image.Resampling.NEAREST))
        begins = np.flatnonzero((column == picture[0]).all(axis=(1, 2)))
        tops += [int(top) for top in begins if np.array_equal(column[top : top + 128], picture)]
    assert np.diff(tops).tolist() == [LINE + TILE + GAP] * (ROWS - 1)
    texts = sheet[tops[0] - LINE : tops[0] + TILE, GAP : GAP + TEXT]
    assert (texts < 128).any()  # something is written


def test_without_augmentation_it_says_so(colour_table: Path, tmp_path: Path) -> None:
    rows = training_rows(Table(str(colour_table), caption="caption", split="split"), augmentations=None)
    write_preview(tmp_path / "preview.html", rows)
    assert "without augmentation" in Page(tmp_path / "preview.html").text


@pytest.mark.parametrize("name", ["preview", "preview.jpg", "preview.png.txt"])
def test_other_extensions_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"--preview to be a file that ends in .png or .html, but got '{name}'"):
        check_preview_name(Path(name))


# ---- the command


def test_command(captions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(captions.parent)
    Path("recipe.yaml").write_text(
        "model: {checkpoint: align-mini}\ndata:\n  image_size: 32\n"
        "  table: {path: captions.csv, caption: caption, split: split, outside: true}\ntrainer: {max_epochs: 1}\n"
    )
    words = ["check", "--config", "recipe.yaml", "--preview"]
    assert main([*words, "look.jpg"]) == 2
    assert "ends in .png or .html, but got 'look.jpg'" in capsys.readouterr().err
    assert main([*words, "look.png"]) == 0
    assert "preview: 4 of 4 training rows in look.png" in capsys.readouterr().out
    assert Image.open("look.png").format == "PNG"

    frame = pd.read_csv("captions.csv")
    frame.loc[0, "caption"] = ""
    frame.to_csv("captions.csv", index=False)
    assert main([*words, "look.html"]) == 2  # a fault, and the rows without one
    assert "preview: 3 of 3 training rows in look.html" in capsys.readouterr().out
    frame["caption"] = ""
    frame.to_csv("captions.csv", index=False)
    assert main([*words, "none.html"]) == 2  # nothing is left to show
    assert "preview" not in capsys.readouterr().out
    assert not Path("none.html").exists()
