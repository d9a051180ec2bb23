"""What a user names, in parts of stated names that change with what they hold and with nothing else."""

import io
import os
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from finetune.core.errors import FileError, RecipeError, TableError
from finetune.data.prepare.images import open_image
from finetune.inference.list_parts import Found, list_images, list_texts, open_table, read_images
from finetune.inference.true_labels import read_true_labels

from ..data.remote.servers import needs_nginx, run_nginx
from ..data.shards import sample, write_tar


def pixels(path) -> np.ndarray:
    return np.asarray(open_image(path))


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "deep/c.png", "._a.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path, "PNG")
    return tmp_path / "photos"


def ids(found: Found) -> dict[str, list[str]]:
    return {part.name: list(part.read().ids) for part in found.parts}


def stamps(found: Found) -> dict[str, str]:
    return {part.name: part.stamp() for part in found.parts}


def test_a_folder_is_divided_in_order(folder):
    found = list_images([str(folder)], rows=2)
    assert ids(found) == {"photos-00000": ["a.jpg", "b.png"], "photos-00001": ["deep/c.png"]}
    assert found.parts[1].read().values == [str(folder / "deep" / "c.png")]
    assert found.hidden == [str(folder / "._a.jpg")]


def test_files_are_known_by_the_words_that_name_them(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (part,) = list_images(["b.png", "deep/c.png"]).parts
    assert (part.name, part.read().ids) == ("images-00000", ["b.png", "deep/c.png"])
    assert part.read().values == [str(folder / "b.png"), str(folder / "deep" / "c.png")]
    with pytest.raises(TableError, match=r"Expected bb\.png to be an image file, but got none there"):
        list_images(["bb.png"])


@pytest.mark.parametrize(("separator", "spelt"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_of_another_separator(folder, separator, spelt):
    path = str(folder / "more.csv")
    frame = pd.DataFrame({"picture": ["b.png", "a.jpg"], "text": ["one, two", "three"], "label": ["cat", "dog"]})
    frame.to_csv(path, index=False, sep=separator)
    (images,) = list_images([path], "picture", separator=separator).parts
    assert images.read().values == [str(folder / "b.png"), str(folder / "a.jpg")]
    (texts,) = list_texts([path], "text", separator=separator).parts
    assert texts.read().values == ["one, two", "three"]
    listed = read_images([path], "picture", separator).images
    assert read_true_labels([path], "picture", "label", listed, cells=separator).labels == [("cat",), ("dog",)]
    assert open_table(path, "picture", "label == 'dog'", separator)[0].images.tolist() == [str(folder / "a.jpg")]
    repair = f"separated by {spelt}: pass --separator, or save the file with commas"
    for read in (lambda: list_images([path], "picture"), lambda: list_texts([path], "text")):
        with pytest.raises(TableError, match=repair):
            read()
    for read in (lambda: list_images([path], separator=";;"), lambda: list_texts([path], "text", separator="")):
        with pytest.raises(RecipeError, match="Expected the separator to be one character, but got"):
            read()


def test_a_table_names_each_image_once_and_rows_with_a_fault_are_listed(folder):
    images = ["b.png", "a.jpg", "b.png", "absent.png", "deep/c.png"]
    pd.DataFrame({"picture": images}).to_csv(folder / "more.csv", index=False)
    found = list_images([str(folder / "more.csv")], "picture", rows=2)
    assert ids(found) == {"more-00000": ["2", "3"], "more-00001": ["6"]}
    assert found.parts[0].read().values == [str(folder / "b.png"), str(folder / "a.jpg")]
    assert found.parts[0].read().skipped == ((f"{folder}/more.csv:5", "expected an image file"),)
    assert not found.parts[1].read().skipped
    with pytest.raises(TableError, match="Did you mean 'picture'"):
        list_images([str(folder / "more.csv")], "pictures")


def test_a_tar_is_one_part_and_read_when_its_turn_comes(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", *(sample(10 * number + at) for at in range(2)))
    (tmp_path / "00001.tar").write_bytes(b"no tar")
    found = list_images([str(tmp_path / "*.tar")])
    assert [part.name for part in found.parts] == ["00000", "00001", "00002"]
    entries = found.parts[2].read()
    assert entries.ids == ["000020000", "000020001"]
    assert [pixels(value).shape for value in entries.values] == [(30, 40, 3)] * 2
    with pytest.raises(TableError, match=r"00001\.tar: Expected a whole tar, not compressed"):
        found.parts[1].read()
    texts = list_texts([str(tmp_path / "00000.tar")], "txt")
    assert texts.parts[0].read().values == ["a cat number 0", "a dog number 1"]


def test_a_sample_with_a_fault_is_listed(tmp_path):
    twice = sample(1) | {"000000001.png": sample(1, ending="png")["000000001.png"]}
    write_tar(tmp_path / "a.tar", sample(0), twice)
    (part,) = list_images([str(tmp_path / "a.tar")]).parts
    assert part.read().ids == ["000000000"]
    assert part.read().skipped == ((f"{tmp_path}/a.tar:000000001", "expected one picture, such as 000000001.jpg"),)


def test_texts_keep_every_row_that_has_one(tmp_path):
    pd.DataFrame({"caption": ["a cat", " ", "None", "a cat"]}).to_csv(tmp_path / "texts.csv", index=False)
    (part,) = list_texts([str(tmp_path / "texts.csv")], "caption").parts
    ids, values, skipped = part.read()
    assert (part.name, ids, values) == ("texts-00000", ["2", "4", "5"], ["a cat", "None", "a cat"])
    assert skipped == ((f"{tmp_path}/texts.csv:3", "an empty text"),)
    with pytest.raises(TableError, match=r"a\.png to be a table or tars of texts"):
        list_texts(["a.png"], "caption")


def test_lines_of_standard_input(folder, monkeypatch):
    def type_in(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    type_in(f"{folder}/b.png\r\n\nabsent.png\n".encode())
    assert ids(list_images(["-"])) == {"stdin-00000": [f"{folder}/b.png", "absent.png"]}
    type_in("a cat\n\nKäse".encode())
    (part,) = list_texts(["-"], "text").parts
    assert part.read()[:2] == (["1", "3"], ["a cat", "Käse"])
    type_in(b"\n")
    with pytest.raises(RecipeError, match="Expected lines on standard input, but got none"):
        list_images(["-"])
    type_in(b"K\xe4se\n")
    with pytest.raises(RecipeError, match="Expected UTF-8 on standard input"):
        list_images(["-"])


def test_equal_names_are_told_apart(folder):
    (folder / "deep" / "photos").mkdir()
    (folder / "deep" / "c.png").rename(folder / "deep" / "photos" / "c.png")
    both = [str(folder / "deep" / "photos"), str(folder)]
    one, other = (part.name for part in list_images(both).parts)
    assert one != other
    assert one.startswith("photos-")
    assert {part.name for part in list_images(both[::-1]).parts} == {one, other}


def test_files_named_one_by_one_join_those_of_the_working_directory(folder, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    monkeypatch.chdir(folder)
    for here in (".", str(folder)):
        loose, *others = list_images([str(tmp_path / "loose.png"), here]).parts
        assert loose.read().values == [str(tmp_path / "loose.png")]
        assert [part.read().ids for part in others] == [part.read().ids for part in list_images([here]).parts]


def test_a_tar_that_two_words_name_is_one_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, sample(0))
    found = list_images(["a.tar", str(tmp_path / "*.tar"), "./b.tar"])
    assert [part.name for part in found.parts] == ["a", "b"]
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "1.png")
    write_tar(tmp_path / "a-00000.tar", sample(0))
    with pytest.raises(RecipeError, match="parts of different names, but got 'a-00000' twice"):
        list_images(["a", "a-00000.tar"])


@needs_nginx
def test_a_tar_on_a_server_is_a_part_too(tmp_path, monkeypatch):
    """One that cannot be fetched is an error of its own; its pictures are not called damaged."""
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / "cache"))
    for name in ("1.tar", "2.tar"):
        write_tar(tmp_path / name, sample(0))
    with run_nginx(tmp_path, tmp_path / "state") as nginx:
        one, other = list_images([f"{nginx.url}/{{1..2}}.tar"]).parts
        assert (one.name, other.name) == ("1", "2")
        assert one.stamp() != other.stamp()
        (address,) = one.read().values
        assert pixels(address).shape == (30, 40, 3)
        (tmp_path / "2.tar").unlink()
        with pytest.raises(FileError, match=r"2\.tar"):
            other.read()
    with pytest.raises(RecipeError, match="Expected INPUT to hold no user, password, or signature"):
        list_images(["https://me:secret@host/a.tar"])


def test_names_that_are_not_utf8_are_listed(folder):
    os.rename(os.fsencode(folder / "b.png"), os.fsencode(folder) + b"/b\xe9.png")  # noqa: PTH104
    (part,) = list_images([str(folder)]).parts
    assert part.read().ids == ["a.jpg", "deep/c.png"]
    assert part.read().skipped == ((f"{folder}/b\\udce9.png", "its name is not UTF-8"),)


def test_a_stamp_changes_with_its_part_alone(folder):
    before = stamps(list_images([str(folder)], rows=2))
    assert stamps(list_images([str(folder)], rows=2)) == before
    Image.new("RGB", (9, 9), "blue").save(folder / "b.png")
    after = stamps(list_images([str(folder)], rows=2))
    assert after["photos-00000"] != before["photos-00000"]
    assert after["photos-00001"] == before["photos-00001"]
    Image.new("RGB", (9, 9), "blue").save(folder / "z.png")
    assert stamps(list_images([str(folder)], rows=2))["photos-00000"] == after["photos-00000"]


def test_a_stamp_of_texts_and_tars(tmp_path):
    for texts in (["a", "b"], ["a", "c"]):
        pd.DataFrame({"caption": texts, "other": texts}).to_csv(tmp_path / f"{texts[1]}.csv", index=False)
    one, other = (list_texts([str(tmp_path / f"{name}.csv")], "caption", rows=1).parts for name in "bc")
    assert one[0].stamp() == other[0].stamp()
    assert one[1].stamp() != other[1].stamp()
    tar = write_tar(tmp_path / "a.tar", sample(0))
    (part,) = list_images([str(tar)]).parts
    before = part.stamp()
    assert list_texts([str(tar)], "txt").parts[0].stamp() != before
    write_tar(tar, sample(0), sample(1))
    assert part.stamp() != before
