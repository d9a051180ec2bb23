"""Paths of images as the system reads them, and what is said of those that lead nowhere."""

import re
import tarfile
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pandas as pd
import pytest

from finetune.core.errors import TableError
from finetune.data.table.faults import TableFaultsError
from finetune.data.table.image_files import ImageSearch
from finetune.data.table.paths import plain_folder, plain_paths
from finetune.data.table.table import Table

from ..shards import sample, write_tar
from ..tables import GOOD, HEADER, Write, captions, faults_of

NFC, NFD = normalize("NFC", "caf\u00e9"), normalize("NFD", "caf\u00e9")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A table's folder with links into itself and out of it: `inside` -> deep/er, `outside` -> ../else/where."""
    root = tmp_path / "table"
    for folder in ("table/deep/er", "table/deep/img", "table/img", "else/where", "else/img"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for path in ("table/img", "table/deep/img", "else/img"):
        (tmp_path / path / "a.png").write_text(path)
    (root / "inside").symlink_to("deep/er")
    (root / "outside").symlink_to(tmp_path / "else" / "where")
    (root / "img" / "up").symlink_to("..")
    (tmp_path / "alias").symlink_to("table")
    return root


SPELLINGS = [
    "img/a.png",
    "./img//a.png",
    "deep/../img/a.png",
    "inside/../img/a.png",
    "inside/../../img/a.png",
    "inside/./../img/../img/a.png",
    "outside/../img/a.png",
    "outside/../../table/img/a.png",
    "img/up/img/a.png",
    "img/up/../table/img/a.png",
]


@pytest.mark.parametrize("root", ["table", "alias", "else/../table", "alias/../alias"])
def test_the_file_that_the_system_opens_is_the_image(tree: Path, root: str) -> None:
    folder = tree.parent / root
    pd.DataFrame({"image": SPELLINGS, "caption": "x"}).to_csv(folder / "t.csv", index=False)
    rows = Table(str(folder / "t.csv"), caption="caption", outside=True).read(required=())
    for image, spelling in zip(rows.images.tolist(), SPELLINGS, strict=True):
        assert Path(image).samefile(folder / spelling)
        assert ".." not in Path(image).parts


@pytest.mark.parametrize("root", ["table", "alias", "else/../table"])
def test_an_image_that_lies_outside_is_refused(tree: Path, root: str) -> None:
    """By `..`, as an absolute path, through a link to a file or to a folder, and inside of a tar."""
    folder, secret = tree.parent / root, tree.parent / "else" / "img" / "a.png"
    (tree / "link.png").symlink_to(secret)
    (tree / "inner.png").symlink_to("img/a.png")
    with tarfile.open(secret.parent / "a.tar", "w") as tar:
        tar.add(secret, "a.png")
    member = "../else/img/a.tar:a.png@512+8"
    outside = ["../else/img/a.png", str(secret), "link.png", "outside/../img/a.png", "img/../../else/img/a.png", member]
    inside = [
        "img/a.png",
        "inner.png",
        str(tree / "img" / "a.png"),
        "inside/../img/a.png",
        "outside/../../table/img/a.png",
    ]
    pd.DataFrame({"image": inside + outside, "caption": "x"}).to_csv(folder / "t.csv", index=False)
    table = Table(str(folder / "t.csv"), caption="caption")
    with pytest.raises(TableFaultsError, match="pass --data.table.outside true") as found:
        table.read(required=())
    assert [(fault.row, fault.column, fault.value) for fault in found.value.faults] == [
        (row, "image", value) for row, value in enumerate(outside, start=2 + len(inside))
    ]
    assert f"Expected an image in {tree.parent / root}".replace("else/../", "") in str(found.value)
    for allowed in (replace(table, outside=True), replace(table, images=str(folder), outside=True)):
        assert len(allowed.read(required=())) == len(inside) + len(outside)
    pd.DataFrame({"image": [str(secret), str(tree / "img" / "a.png")], "caption": "x"}).to_csv(folder / "t.csv")
    assert len(replace(table, images=str(tree.parent)).read(required=())) == 2  # the folder that holds them all


def test_a_frame_may_name_any_file_unless_it_names_a_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    frame = pd.DataFrame({"image": [tree.parent / "else" / "img" / "a.png", "img/a.png"], "caption": "x"})
    assert len(Table(frame, caption="caption").read(required=())) == 2
    with pytest.raises(TableFaultsError, match="DataFrame:0:image: Expected an image in"):
        Table(frame, caption="caption", images=tree).read(required=())


def test_shards_may_be_links(tree: Path) -> None:
    with tarfile.open(tree.parent / "else" / "a.tar", "w") as tar:
        tar.add(tree / "img" / "a.png", "0.png")
    (tree / "0.tar").symlink_to(tree.parent / "else" / "a.tar")
    shards = Table(str(tree / "*.tar"), caption="caption").inspect()
    assert "a column 'caption'" in str(shards.faults[0])


def test_spellings_with_dots_are_one_image_with_one_split(tree: Path) -> None:
    ways = ["img/a.png", "deep/../img/a.png", "inside/../../img/a.png", f"{tree}/inside/../../img/a.png"]
    for folder in (tree, tree.parent / "alias", tree.parent / "else" / ".." / "alias"):
        for way in ways:
            pd.DataFrame({"image": ["img/a.png", way], "caption": "x"}).to_csv(folder / "t.csv", index=False)
            rows = Table(str(folder / "t.csv"), caption="caption").read(required=())
            assert len(set(rows.image_ids.tolist())) == 1, (folder, way)
            assert len(set(rows.splits.tolist())) == 1, (folder, way)


def test_a_split_does_not_depend_on_how_the_table_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{name}.png" for name in range(40)]
    for name in names:
        (tree / name).touch()
    pd.DataFrame({"image": names, "caption": "x"}).to_csv(tree / "t.csv", index=False)
    monkeypatch.chdir(tree / "deep")
    ways = [str(tree / "t.csv"), "../t.csv", "../inside/../../t.csv", "../t*.csv", "er/../../t.csv"]
    drawn = [Table(way, caption="caption").read(required=()).splits.tolist() for way in ways]
    drawn.append(Table("../t.csv", caption="caption", images="../img/..").read(required=()).splits.tolist())
    assert len(set(drawn[0])) == 3
    assert all(splits == drawn[0] for splits in drawn)


def test_dots_before_a_tar_and_in_the_names_of_its_members(tree: Path) -> None:
    write_tar(tree / "deep" / "0.tar", {**sample(1)})
    (found,) = Table(str(tree / "inside" / ".." / "0.tar"), caption="txt").read(required=()).images.tolist()
    assert found.startswith(f"{tree}/deep/0.tar:")
    values = [f"{tree}/inside/../0.tar:x/../y.jpg@512+10"]
    assert [*plain_paths(values, str(tree))] == [f"{tree}/deep/0.tar:x/../y.jpg@512+10"]


def test_plain_folders_against_the_system(tree: Path) -> None:
    for way in ["inside/..", "outside/..", "deep/er/../..", ".", "img/up/..", "../alias/inside/..", "..", "/../.."]:
        assert Path(plain_folder(str(tree / way))).samefile(tree / way)


# ---- names that are nearly right


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a%20b.png", "a b.png"),
        ("a+b.png", "a b.png"),
        ("a%20b.jpg", "a b.png"),
        ("caf%C3%A9.png", "caf\u00e9.png"),
        ("a b.png", "a%20b.png"),
        ("A%20B.PNG", "a b.png"),
        ("\uff41.png", "a.png"),
    ],
)
def test_a_name_as_the_web_writes_it_is_offered_the_files(tmp_path: Path, value: str, name: str) -> None:
    (tmp_path / name).touch()
    _, refused = ImageSearch(str(tmp_path)).find(pd.Series([value]).to_numpy())
    assert f"Did you mean {name!r}?" in refused[value].repair


@pytest.mark.parametrize(
    ("value", "name"), [("My%20Photos/a.png", "My Photos"), ("my photos/a.png", "My Photos"), ("x/IMG/a.png", "x/img")]
)
def test_a_folder_that_is_nearly_right_is_offered(tmp_path: Path, value: str, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    _, refused = ImageSearch(str(tmp_path)).find(pd.Series([value]).to_numpy())
    assert refused[value].repair.endswith(f"is no folder that can be listed. Did you mean '{tmp_path / name}'?")


@pytest.mark.parametrize(("got", "meant"), [(NFC, NFD), (NFD, NFC), ("\u212bngstr\u00f6m", "\u00c5ngstr\u00f6m")])
def test_names_that_only_look_the_same_are_shown_by_their_characters(
    write: Write, tmp_path: Path, got: str, meant: str
) -> None:
    """In image paths, their folders, columns, and the table's own."""
    rest = ("c", "l", "train")
    write(HEADER, images=["a.png", f"{meant}.png", f"{meant}/a.png"])
    for image in (f"{got}.png", f"{got}/a.png"):
        check_shown(captions(write(HEADER, (image, *rest))), got, meant)
    path = write(("image", meant, "split"), ("a.png", "c", "train"))
    check_shown(Table(str(path), caption=got, split="split"), got, meant)
    (tmp_path / "table.csv").rename(tmp_path / f"{meant}.csv")
    check_shown(captions(tmp_path / f"{got}.csv"), got, meant)


def check_shown(table: Table, got: str, meant: str) -> None:
    (fault,) = faults_of(table)
    escaped, others = (ascii(name).strip("'") for name in (meant, got))
    assert re.search(rf"Did you mean '[^']*{re.escape(escaped)}[^']*'\? '[^']*{re.escape(others)}", fault.repair)
    assert fault.repair.endswith(
        "only looks the same: Unicode can write it in several ways (NFC, NFD). Write both alike."
    )


# ---- brackets


@pytest.mark.parametrize("name", ["[2024] set", "set [a-z]", "what?", "**"])
def test_a_folder_whose_name_looks_like_a_pattern_holds_tables(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "more"
    folder.mkdir(parents=True)
    for image, *_ in GOOD:
        (folder / image).touch()
    for part in range(2):
        pd.DataFrame(GOOD[2 * part : 2 * part + 2], columns=HEADER).to_csv(folder / f"t{part}.csv", index=False)
    rows = captions(folder / "t*.csv").read()
    assert rows.images.tolist() == [str(folder / image) for image, *_ in GOOD]
    with pytest.raises(TableError, match=r"Expected files that match the pattern, but got none\. No file matches"):
        captions(folder / "u*.csv").read()


@pytest.mark.parametrize("name", ["t[1]*.csv", "[x] set/*.csv", "part[ab].csv"])
def test_brackets_that_match_nothing_are_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / "t[1]2.csv").touch()
    with pytest.raises(TableError, match=r"one of the characters between the brackets: write \[\[\] for a bracket"):
        captions(tmp_path / name).read()
    with pytest.raises(TableError, match=r"Expected files that match the pattern, but got none") as caught:
        captions(tmp_path / "u*.csv").read()
    assert "between the brackets" not in str(caught.value)


def test_rows_sorted_twice_over(tmp_path: Path) -> None:
    """NumPy's default sort of strings ends the process on this order."""
    (tmp_path / "img").mkdir()
    names = sorted(f"img/{number}.png" for number in range(300))
    for name in names:
        (tmp_path / name).touch()
    label = [f"class {number:03}" for number in range(300)]
    columns = {"image": names * 2, "caption": label * 2, "label": label * 2, "split": ["train", "test"] * 300}
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    rows = Table(str(tmp_path / "t.csv"), caption="caption", label="label", split="split").read()
    assert rows.image_ids.tolist() == rows.caption_ids.tolist() == rows.label_ids.tolist() == [*range(300)] * 2
    shown, faults = Table(str(tmp_path / "t.csv"), caption="caption", images=str(tmp_path / "img")).inspect()
    assert shown is None
    assert len(faults) == 600
