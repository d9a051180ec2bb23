"""Files, folders and tables as users name them, and the images in them."""

import io
import sys

import pytest
from PIL import Image

from finetune.core.errors import TableError
from finetune.inference.list_parts import read_images

from ..data.shards import sample, write_tar


def touch(folder, *names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_of_images_are_listed_in_the_order_of_names(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", "deep/er/c.webp", "notes.txt", "sub.png/d.gif")
    single = tmp_path / "notes.txt"  # named, it is taken for an image
    names = ("a.JPG", "b.png", "deep/er/c.webp", "sub.png/d.gif")
    assert read_images([single, tmp_path]).images == [str(single), *(str(tmp_path / name) for name in names)]


def test_hidden_files_are_left_out_and_listed_unless_they_are_named(tmp_path):
    touch(tmp_path, ".photos/._x.jpg", ".photos/x.jpg", ".photos/.trash/y.png", ".photos/.notes.txt")
    found = read_images([tmp_path / ".photos"])
    assert found.images == [str(tmp_path / ".photos/x.jpg")]
    assert found.hidden == [str(tmp_path / ".photos" / name) for name in ("._x.jpg", ".trash/y.png")]
    named = tmp_path / ".photos/._x.jpg"
    assert read_images([named]) == ([str(named)], [], [])


def test_what_is_named_twice_is_listed_once_where_it_came_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "f/a.png", "f/b.png", "c.png")
    named = ["f/b.png", "c.png", "./f", tmp_path / "f", "c.png", "f/../c.png"]
    assert read_images(named).images == ["f/b.png", "c.png", "f/a.png"]


def test_a_path_through_a_link_is_what_the_system_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "1.png", "other/1.png", "other/sub/2.png")
    (tmp_path / "link").symlink_to(tmp_path / "other" / "sub")
    assert read_images(["1.png", "link/../1.png", "other/1.png"]).images == ["1.png", "link/../1.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"empty to hold images \(\.bmp, .*\), but it holds none\."),
        (("a.txt", "deep/b.csv", "folder.png/c.txt"), r"but it holds none\."),
        (("._x.jpg", ".deep/y.png"), r"but it holds 2 hidden ones alone\."),
    ],
)
def test_a_folder_without_images_is_refused(tmp_path, names, message):
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "empty", *names)
    with pytest.raises(TableError, match=message):
        read_images([tmp_path / "empty"])


def test_paths_without_a_file_are_refused_with_the_nearest(tmp_path):
    touch(tmp_path, "photo.png", "photo.txt")
    with pytest.raises(TableError, match=r"photo\.pgn to be an image file, but got none there\. Did .*photo\.png'\?"):
        read_images([tmp_path / "photo.pgn"])
    message = r"x\.png to be an image file, but got none there, nor at 1 more path\. .* holds no image\."
    with pytest.raises(TableError, match=message):
        read_images([tmp_path / "photo.png", tmp_path / "absent" / "x.png", tmp_path / "y.png"])


@pytest.mark.parametrize("name", ["t.csv", "t.TSV", "t.jsonl"])
def test_a_table_names_the_images_of_its_rows(tmp_path, name):
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    lines = {"t.csv": "kind,photo\n,{}\n,{}\n,{}", "t.TSV": "photo\tkind\n{}\t\n{}\t\n{}\t"}
    text = lines.get(name, '{{"photo": "{}"}}\n{{"photo": "{}"}}\n{{"photo": "{}"}}')
    (tmp_path / name).write_text(text.format("2.png", "0.png", "2.png") + "\n")
    assert read_images([tmp_path / name], "photo").images == [str(tmp_path / "2.png"), str(tmp_path / "0.png")]
    with pytest.raises(TableError, match=rf"{name}:1: Expected a column 'image'|Expected .*'image'"):
        read_images([tmp_path / name])
    (tmp_path / "0.png").unlink()
    found = read_images([tmp_path / name], "photo")
    assert found.images == [str(tmp_path / "2.png")]
    (skipped,) = found.skipped
    assert (skipped.place.rpartition(":")[0], skipped.reason) == (str(tmp_path / name), "expected an image file")


def test_where_no_row_names_an_image_the_first_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("image\nabsent.png\n")
    with pytest.raises(
        TableError, match=r"Expected an image file, but got 'absent.png'|t\.csv:2: expected an image file"
    ):
        read_images([tmp_path / "t.csv"])


def test_lines_of_standard_input_are_paths(tmp_path, monkeypatch):
    touch(tmp_path, "a.png")
    given = io.TextIOWrapper(io.BytesIO(b"a.png\r\n\nabsent.png\n./a.png\n"))
    monkeypatch.setattr(sys, "stdin", given)
    monkeypatch.chdir(tmp_path)
    assert read_images(["-"]).images == ["a.png", "absent.png"]  # what is absent is told when it is opened


def test_tars_are_tables(tmp_path):
    write_tar(tmp_path / "0.tar", sample(0), sample(1))
    write_tar(tmp_path / "1.tar", sample(2))
    found = read_images([tmp_path / "*.tar"]).images
    assert [address.partition("@")[0] for address in found] == [
        f"{tmp_path}/{tar}:00000000{number}.jpg" for tar, number in (("0.tar", 0), ("0.tar", 1), ("1.tar", 2))
    ]


def test_images_outside_of_their_tables_folder_are_refused_with_a_repair_that_is_there(tmp_path):
    (tmp_path / "tables").mkdir()
    touch(tmp_path, "0.png")
    table = tmp_path / "tables" / "t.csv"
    table.write_text("image\n../0.png\n")
    with pytest.raises(TableError, match=r"pass the images in place of the table: - reads their paths") as caught:
        read_images([table])
    assert "--data.table" not in str(caught.value)
