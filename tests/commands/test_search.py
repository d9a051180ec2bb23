"""`finetune search`: answers are those of plain transformers, and an index that does not fit is refused."""

import base64
import io
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignModel, AlignProcessor

import finetune
from finetune.commands.cli import main

TEXTS = ["a red square", "something blue"]


@pytest.fixture(scope="module")
def index(tiny, colour_table, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("index") / "colours.npy"
    assert main(["embed", tiny, str(colour_table), "--output", str(place)]) == 0
    return place


@pytest.fixture
def search(capsys):
    """Searches, and returns what is said."""

    def run(*words: object) -> list[str]:
        capsys.readouterr()
        assert main(["search", *map(str, words)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


@torch.no_grad()
def plain_cosines(folder: str, texts: list[str], images: list[Path]) -> np.ndarray:
    model, processor = AlignModel.from_pretrained(folder), AlignProcessor.from_pretrained(folder, backend="pil")
    pictures = [Image.open(path).convert("RGB") for path in images]
    inputs = processor(text=texts, images=pictures, truncation=True, max_length=64, return_tensors="pt")
    found = model(**inputs)
    return (found.text_embeds @ found.image_embeds.T).numpy()


def change(folder: Path, part: str) -> None:
    """Changes the weights of a part of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith(part) and name.endswith("weight"))
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})


def test_answers_are_those_of_plain_transformers(search, tiny, index, colour_table, tmp_path):
    output = tmp_path / "answers.parquet"
    words = [word for text in TEXTS for word in ("--text", text)]
    said = search(tiny, "--index", index, *words, "--top", 4, "--output", output)
    images = [colour_table.parent / f"{number}.png" for number in range(36)]
    cosines = plain_cosines(tiny, TEXTS, images)
    best = np.argsort(-cosines, axis=1)[:, :4]
    found = pd.read_parquet(output)
    assert list(found) == ["query_id", "query", "rank", "id", "path", "similarity"]
    assert found["path"].tolist() == [str(images[row]) for row in best.ravel()]
    assert found["id"].tolist() == [str(row + 2) for row in best.ravel()]  # the table's rows, below its header
    np.testing.assert_allclose(found["similarity"], np.take_along_axis(cosines, best, 1).ravel(), atol=1e-5)
    assert found["rank"].tolist() == [1, 2, 3, 4] * 2
    assert said == [f"answers     8 to 2 queries, in {output}", "compared    36 vectors, all exactly"]
    said = search(tiny, "--index", index, *words, "--top", 4)
    assert said[0] == TEXTS[0]
    assert said[1] == f"     1  {found['similarity'][0]:.6f}  {found['path'][0]}"
    assert said[-1] == "compared    36 vectors, all exactly"


def test_python_searches_as_the_command_does(search, tiny, index, colour_table, tmp_path):
    output = tmp_path / "answers.parquet"
    search(tiny, "--index", index, "--text", TEXTS[0], "--filter", "label == 'red'", "--output", output)
    found = finetune.search(tiny, index, [TEXTS[0]], filter="label == 'red'")
    assert (found.compared, found.recall, found.notice) == (12, None, None)
    pd.testing.assert_frame_equal(found.rows, pd.read_parquet(output))
    image = str(colour_table.parent / "7.png")
    assert finetune.search(tiny, index, images=[image], top=1).rows["path"].tolist() == [image]
    with pytest.raises(finetune.RecipeError, match="but got neither"):
        finetune.search(tiny, index)


def test_an_image_finds_itself_and_a_table_is_searched_row_by_row(search, tiny, index, colour_table, tmp_path):
    image, output = colour_table.parent / "7.png", tmp_path / "answers.csv"
    said = search(tiny, "--index", index, "--image", image, "--top", 1)
    assert said[:2] == [str(image), f"     1  1.000000  {image}"]
    search(tiny, "--index", index, "--queries", colour_table, "--top", 1, "--output", output)
    found = pd.read_csv(output)
    assert found["path"].tolist() == found["query"].tolist()
    assert found["query_id"].tolist() == [*range(2, 38)]
    search(tiny, "--index", index, "--queries", colour_table, "--texts", "caption", "--output", output, "--overwrite")
    assert len(pd.read_csv(output)) == 360


def test_a_filter_keeps_rows_of_the_table(search, tiny, index, colour_table, tmp_path):
    table = pd.read_csv(colour_table)
    words = ("--text", "red", "--top", 36, "--filter", "label == 'red' and split != 'test'")
    search(tiny, "--index", index, *words, "--output", tmp_path / "a.csv")
    wanted = table[(table.label == "red") & (table.split != "test")].image
    assert {Path(path).name for path in pd.read_csv(tmp_path / "a.csv")["path"]} == {*wanted}


def test_a_filter_keeps_texts_by_their_rows(search, tiny, colour_table, tmp_path):
    place, output = tmp_path / "texts.parquet", tmp_path / "a.csv"
    assert main(["embed", tiny, str(colour_table), "--texts", "label", "--output", str(place)]) == 0
    words = ("--text", "red", "--top", 36, "--filter", "split == 'val'", "--column", "label")
    said = search(tiny, "--index", place, *words)
    search(tiny, "--index", place, *words, "--output", output)
    rows = pd.read_csv(colour_table).query("split == 'val'").index + 2
    found = pd.read_csv(output)
    assert sorted(found["id"]) == rows.tolist()
    assert (found["rank"].value_counts() > 1).any()  # equal texts share a rank
    assert said[1].endswith(f"  {found['text'][0]}")


def test_where_the_text_tower_alone_differs_the_index_serves_and_it_is_said(
    tiny, index, colour_table, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    change(other, "text_projection")
    capsys.readouterr()
    assert (
        main(["search", str(other), "--index", str(index), "--text", TEXTS[0], "--output", str(tmp_path / "a.csv")])
        == 0
    )
    said = capsys.readouterr().err
    assert "warning: The index is of sha256:" in said
    assert "Their image towers have equal weights" in said
    cosines = plain_cosines(str(other), TEXTS[:1], [colour_table.parent / f"{number}.png" for number in range(36)])
    found = pd.read_csv(tmp_path / "a.csv")["similarity"]
    np.testing.assert_allclose(found, -np.sort(-cosines[0])[:10], atol=1e-5)


def test_an_index_of_another_model_is_refused(refused, tiny, index, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    change(other, "vision_model")
    said = refused("search", other, "--index", index, "--text", "red")
    assert "whose image tower has other weights" in said
    shutil.rmtree(other)
    shutil.copytree(tiny, other)
    for config in other.glob("*processor_config.json"):
        config.write_text(config.read_text().replace("64", "96"))
    assert "but got size [64, 64] there and [96, 96] here" in refused(
        "search", other, "--index", index, "--text", "red"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Expected one of --text, --image and --queries to say what to search for, but got none."),
        (["--text", "a", "--image", "b.png"], "but got --text and --image"),
        (["--text", " "], "Expected each --text to be a text, but got ' '."),
        (["--image", "absent.png"], "Expected absent.png to be an image file, but got none there"),
        (["--text", "a", "--output", "answers.xlsx"], "Expected --output to end in .csv or .parquet"),
        (["--text", "a", "--filter", "label = 'red'"], "Expected --filter to be an expression"),
        (
            ["--text", "a", "--filter", "label == 'pink'"],
            "Expected rows that pass --filter, but got",
        ),
        (["--text", "a", "--filter", "hue > 3"], "hue"),
        (["--text", "a", "--filter", "hue > 3", "--approximate", "Flat"], "Expected --filter without --approximate"),
        (
            ["--text", "a", "--table", "{folder}", "--filter", "a > 1"],
            "Expected a table whose columns --filter compares",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(refused, tiny, index, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused("search", tiny, "--index", index, *(word.format(folder=tmp_path) for word in words))
    assert [*tmp_path.iterdir()] == []


def test_what_is_no_index_is_refused(refused, tiny, colour_table):
    images = colour_table.parent
    found = refused("search", tiny, "--index", images, "--text", "red")
    assert f"Expected {images} to be a file or folder that `finetune embed` wrote, but got a folder without " in found
    assert found.endswith(f"index.json. Make one of its images: finetune embed MODEL {images} --output photos.npy\n")
    found = refused("search", tiny, "--index", "nowhere", "--text", "red")
    assert "but got another. Make one: finetune embed MODEL FOLDER --output photos.npy" in found
    assert "to be a .parquet, .npy or .safetensors file of vectors" in refused(
        "search", tiny, "--index", colour_table, "--text", "red"
    )


class Sheet(HTMLParser):
    """The pictures and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[Image.Image] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            content = base64.b64decode(values["src"].partition("base64,")[2])
            self.pictures.append(Image.open(io.BytesIO(content)))
        self.links += [value for name, value in attributes if name in ("href", "src") and not value.startswith("data:")]
        assert tag != "script"

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_page_shows_the_images_and_loads_nothing(search, tiny, index, colour_table, tmp_path):
    page, output = tmp_path / "results.html", tmp_path / "a.csv"
    text = "a <b>red</b> square & more"
    said = search(tiny, "--index", index, "--text", text, "--top", 3, "--page", page, "--output", output)
    assert said[0] == f"answers     3 to 1 query, in {output} and {page}"
    sheet = Sheet(page.read_text())
    assert sheet.links == []
    assert text in sheet.texts
    paths = pd.read_csv(output)["path"]
    assert len(sheet.pictures) == len(paths) == 3
    for picture, path in zip(sheet.pictures, paths, strict=True):
        shown, image = (np.asarray(one.convert("RGB").resize((8, 8)), float) for one in (picture, Image.open(path)))
        assert abs(shown - image).mean() < 20
    image = colour_table.parent / "7.png"
    search(tiny, "--index", index, "--image", image, "--top", 2, "--page", page, "--overwrite")
    assert len(Sheet(page.read_text()).pictures) == 3  # with that of the query


def test_faiss_says_what_it_misses(search, refused, tiny, index, tmp_path):
    pytest.importorskip("faiss")
    own = tmp_path / "own.npy"
    for file in index.parent.glob(f"{index.name}*"):
        shutil.copy(file, own.with_name(file.name.replace(index.name, own.name)))
    exact = search(tiny, "--index", own, "--text", "red", "--top", 5)
    words = (tiny, "--index", own, "--text", "red", "--top", 5, "--approximate")
    whole = search(*words, "Flat")
    assert whole == [*exact[:-1], "recall      1.000 of the exact answers, measured on 1 query"]
    part = search(*words, "IVF4,Flat")
    found = {line.split()[-1] for line in part[1:-1]} & {line.split()[-1] for line in exact[1:-1]}
    assert part[-1] == f"recall      {len(found) / 5:.3f} of the exact answers, measured on 1 query"
    assert search(*words, "IVF4,Flat", "--parameters", "nprobe=4")[:-1] == exact[:-1]
    assert "such as IVF1,Flat, but got 'IVF4,Round'" in refused("search", *words, "IVF4,Round")
    assert "Expected --parameters such as nprobe=16" in refused("search", *words, "Flat", "--parameters", "deep=1")
