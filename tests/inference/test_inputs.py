"""Images in memory are seen as their files are, DataFrames as tables; what is neither is refused in words."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune import classify, embed, embed_images, embed_texts, read_vectors, search
from finetune.core.errors import RecipeError, TableError
from finetune.data.prepare.images import open_image, view_image
from finetune.run.folder import RunFolder

LABELS = ["a red square", "a green square", "something blue"]
ORIENTATION = 0x0112


def draw_kinds(folder: Path) -> None:
    """A file of each kind that is seen otherwise than its plain pixels say."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (30, 44, 3), dtype=np.uint8))
    grey = random.integers(0, 65536, (30, 44), dtype=np.uint16)
    see_through = rgb.convert("RGBA")
    see_through.putalpha(Image.fromarray(random.integers(0, 256, (30, 44), dtype=np.uint8)))
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    rgb.save(folder / "plain.png")
    see_through.save(folder / "transparent.png")
    rgb.quantize(16).save(folder / "palette.png", transparency=3)
    rgb.convert("L").save(folder / "one_level.png", transparency=100)
    Image.fromarray(grey).save(folder / "grey16.png")
    Image.fromarray(grey).save(folder / "grey16_turned.png", exif=turned)
    Image.fromarray(grey).save(folder / "from_white.tif", tiffinfo={262: 0})
    Image.fromarray(grey).save(folder / "turned.tif", tiffinfo={262: 0, 274: 6})
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.save(folder / "turned.jpg", exif=turned)
    see_through.save(folder / "turned.webp", exif=turned, lossless=True)
    rgb.save(folder / "moving.gif", save_all=True, append_images=[rgb.rotate(180)])


@pytest.fixture(scope="module")
def kinds(build_once) -> list[Path]:
    return sorted(build_once("kinds of images", draw_kinds).iterdir())


def test_an_open_image_is_seen_as_its_file_is_and_stays_as_it_is(kinds):
    for path in kinds:
        with Image.open(path) as image:
            before, size, info = image.tobytes(), image.size, dict(image.info)
            np.testing.assert_array_equal(
                np.asarray(view_image(image)), np.asarray(open_image(path)), err_msg=path.name
            )
            assert (image.tobytes(), image.size, dict(image.info)) == (before, size, info), path.name
    assert open_image(kinds[-1]).size == (30, 44)  # turned.webp, which was 44 wide


@pytest.fixture
def frame(colour_table) -> pd.DataFrame:
    """The colours, with paths that any folder finds."""
    rows = pd.read_csv(colour_table)
    return rows.assign(image=[colour_table.parent / name for name in rows["image"]])


# ---- classify


def test_open_images_are_classified_as_their_files_are(tiny, kinds):
    by_path = classify(tiny, kinds, LABELS).rows
    opened = [Image.open(path) for path in kinds]
    by_image = classify(tiny, opened, LABELS).rows
    assert by_image["image"].tolist() == [f"image {at}" for at in range(1, len(kinds) + 1) for _ in LABELS]
    np.testing.assert_array_equal(by_image["probability"], by_path["probability"])
    mixed = classify(tiny, [kinds[0], np.asarray(open_image(kinds[1])), *opened[2:]], LABELS).rows
    assert mixed["image"].tolist()[:4] == [*[str(kinds[0])] * 3, "image 2"]
    np.testing.assert_array_equal(mixed["probability"], by_path["probability"])


def test_a_run_stands_where_its_path_does(two_towers, kinds, tmp_path):
    run = RunFolder(two_towers.path)
    by_run, by_path = (classify(model, kinds[:2]) for model in (run, two_towers.path))
    pd.testing.assert_frame_equal(by_run.rows, by_path.rows)
    place = embed(run, kinds[:2], tmp_path / "x.npy").place
    assert len(search(run, place, texts="red").rows) == 2
    np.testing.assert_array_equal(embed_images(run, kinds[:2]).vectors, read_vectors(place).vectors)


def test_one_image_and_an_array_of_several_are_taken(tiny, kinds):
    array = np.asarray(open_image(kinds[0]))
    (expected,) = {tuple(classify(tiny, one, LABELS).rows["probability"]) for one in (kinds[0], str(kinds[0]), array)}
    several = classify(tiny, np.stack([array, array]), LABELS).rows
    assert several["probability"].tolist() == pytest.approx([*expected, *expected])
    image = Image.open(kinds[0])  # not decoded yet, and handed over many times
    again = classify(tiny, [image] * 40, LABELS).rows["probability"]
    assert again.tolist() == pytest.approx([*expected] * 40)


def test_a_frame_a_table_and_a_folder_are_the_same_images(tiny, colour_table, frame, tmp_path):
    for name in frame["image"]:
        shutil.copy(name, tmp_path)
    by_table = classify(tiny, colour_table, LABELS).rows
    by_frame = classify(tiny, frame.rename(columns={"image": "file"}), LABELS, column="file").rows
    pd.testing.assert_frame_equal(by_frame, by_table)
    by_folder = classify(tiny, [tmp_path], LABELS).rows
    key = by_folder["image"].map(lambda path: Path(path).name)
    together = by_table.assign(image=by_table["image"].map(lambda path: Path(path).name)).merge(
        by_folder.assign(image=key), on=["image", "label"]
    )
    np.testing.assert_allclose(together["probability_x"], together["probability_y"], rtol=1e-5)
    assert len(together) == 36 * 3


def test_the_truth_may_be_a_column(tiny, colour_table, frame):
    names = {"red": "a red square", "green": "a green square", "blue": "something blue"}
    listed = classify(tiny, frame["image"], names, truth=frame["label"].tolist())
    assert listed.measured == 36
    assert classify(tiny, frame, names, truth="label").metrics == listed.metrics
    assert classify(tiny, str(colour_table), names, truth="label").metrics == listed.metrics
    with pytest.raises(RecipeError, match="Expected a table or tars with the column"):
        classify(tiny, Image.new("RGB", (9, 9)), names, truth="label")


def test_an_open_image_that_cannot_be_read_is_left_out(tiny, kinds):
    broken = Image.open(io.BytesIO(kinds[0].read_bytes()[:600]))
    found = classify(tiny, [kinds[1], broken, Image.new("F", (8, 8))], LABELS)
    assert set(found.rows["image"]) == {str(kinds[1])}
    assert [left_out.image for left_out in found.skipped] == ["image 2", "image 3"]
    assert "truncated" in found.skipped[0].reason or "broken" in found.skipped[0].reason
    with pytest.raises(TableError, match="Expected image 1 to be a whole image"):
        classify(tiny, broken, LABELS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (7, "Expected image 1 to be a path.*but got a int"),
        ([None], "Expected image 1 to be .*but got a NoneType"),
        (["a.png", b"png"], "Expected image 2 to be .*but got a bytes"),
        (np.zeros((4, 4, 3)), r"but got an array of float64 of shape \(4, 4, 3\)\. Image\.fromarray makes"),
        ([np.zeros((4, 4, 4), np.uint8)], r"but got an array of uint8 of shape \(4, 4, 4\)"),
        ([], "Expected at least one image, but got none"),
        ("absent.png", "Expected absent.png to be an image file, but got none there"),
    ],
)
@pytest.mark.parametrize("call", ["classify", "search", "embed_images"])
def test_what_is_no_image_is_refused_before_a_model_is_opened(given, said, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Callable[[], object]] = {
        "classify": lambda: classify("absent", given, LABELS),
        "search": lambda: search("absent", "absent.npy", images=given),
        "embed_images": lambda: embed_images("absent", given),
    }
    if call == "search" and isinstance(given, list) and not given:
        said = "Expected texts or images to search for, but got neither"
    with pytest.raises((RecipeError, TableError), match=said):
        asked[call]()


# ---- embed and search


def test_images_in_memory_have_the_vectors_of_their_files(tiny, kinds, tmp_path):
    made = embed(tiny, kinds, tmp_path / "kinds.npy")
    assert (made.facts.rows, made.parts, made.tally.rows) == (len(kinds), 1, len(kinds))
    written = read_vectors(made.place)
    found = embed_images(tiny, [Image.open(path) for path in kinds])
    np.testing.assert_array_equal(found.vectors, written.vectors)
    assert found.values == [f"image {at}" for at in range(1, len(kinds) + 1)]
    assert embed_images(tiny, kinds).values == written.values == [str(path) for path in kinds]
    assert found.facts.space == written.facts.space
    raw = embed_images(tiny, kinds, raw=True).vectors
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), found.vectors, atol=1e-6)


def test_a_frame_is_embedded_and_searched_as_its_table_is(tiny, colour_table, frame, tmp_path):
    by_table = read_vectors(embed(tiny, str(colour_table), tmp_path / "table.parquet").place)
    by_frame = read_vectors(embed(tiny, frame, tmp_path / "frame.parquet").place)
    assert by_frame.values == by_table.values
    assert by_frame.ids == [*map(str, range(36))]  # as iloc counts
    np.testing.assert_array_equal(by_frame.vectors, by_table.vectors)
    assert by_frame.facts.source == ("DataFrame",)
    assert embed(tiny, frame, tmp_path / "frame.parquet").tally.parts == 0  # it is there already
    texts = read_vectors(embed(tiny, frame, tmp_path / "texts.npy", texts="caption").place)
    np.testing.assert_allclose(texts.vectors, embed_texts(tiny, frame["caption"]).vectors, atol=1e-6)
    assert texts.values == frame["caption"].tolist()

    place = tmp_path / "frame.parquet"
    kept = search(tiny, place, texts=frame["caption"][:2], filter="label == 'red'", table=frame).rows
    assert kept["query"].unique().tolist() == frame["caption"][:2].tolist()
    assert set(kept["path"]) <= {str(path) for path in frame["image"][frame["label"] == "red"]}
    with pytest.raises(RecipeError, match="Expected a table whose columns --filter compares, but got an index of Data"):
        search(tiny, place, texts="red", filter="label == 'red'")


def test_images_in_memory_find_what_their_files_find(tiny, frame, tmp_path):
    place = embed(tiny, frame, tmp_path / "colours.npy").place
    by_path = search(tiny, place, images=frame["image"][:3], top=2).rows
    by_image = search(tiny, place, images=[Image.open(path) for path in frame["image"][:3]], top=2).rows
    assert by_path["path"].tolist()[::2] == [str(path) for path in frame["image"][:3]]
    pd.testing.assert_frame_equal(by_image.drop(columns="query"), by_path.drop(columns="query"))
    assert by_image["query"].unique().tolist() == ["image 1", "image 2", "image 3"]
    by_frame = search(tiny, place, images=frame[:3], top=2).rows
    pd.testing.assert_frame_equal(by_frame, by_path)
    with pytest.raises(RecipeError, match="Expected texts or images to search for, but got both"):
        search(tiny, place, texts="red", images=frame["image"])


def test_faiss_is_asked_in_python_too(tiny, kinds, tmp_path):
    place = embed(tiny, kinds, tmp_path / "kinds.npy").place
    found = search(tiny, place, images=kinds[0], top=3, approximate="Flat")
    assert (found.recall, found.asked) == (1.0, 1)
    assert found.rows["path"].tolist() == search(tiny, place, images=kinds[0], top=3).rows["path"].tolist()
    with pytest.raises(RecipeError, match="Expected --filter without --approximate"):
        search(tiny, place, images=kinds[0], filter="label == 'red'", approximate="Flat")


def test_what_no_file_can_name_is_refused(tiny, tmp_path):
    with pytest.raises(
        TableError, match="but got a Image, which a file of vectors cannot name. Save it, or call embed_im"
    ):
        embed(tiny, [Image.new("RGB", (9, 9))], tmp_path / "x.npy")
    with pytest.raises(TableError, match="Expected at least one file, folder, table or tar, but got none"):
        embed(tiny, [], tmp_path / "x.npy")
    for texts, but in ((["a", ""], "''"), ([3], "a int"), (pd.Series(["a", None], dtype=object), "a NoneType")):
        with pytest.raises(TableError, match=f"to be a text, but got {but}"):
            embed_texts(tiny, texts)
    with pytest.raises(TableError, match="Expected at least one text, but got none"):
        embed_texts(tiny, [])
    assert not [*tmp_path.iterdir()]
