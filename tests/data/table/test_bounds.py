"""Tables that are larger than any table: refused with file and row, and not with the machine's memory."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.prepare.images import MOST_BYTES, open_image
from finetune.data.prepare.members import Member
from finetune.data.table.bounds import MOST_CHARACTERS, MOST_COLUMNS
from finetune.data.table.table import CaptionList, Table

MOST_MEMORY = 300_000_000
Damage = Callable[[bytearray], None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(name: str, column: str = "label") -> str:
    """The first fault of a table, found in little memory."""
    table = Table(name, label=column) if column == "label" else Table(name, caption=column)
    tracemalloc.start()
    try:
        faults = table.inspect().faults
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    return str(faults[0]) if faults else ""


def test_a_header_of_a_million_columns(folder: Path) -> None:
    (folder / "t.csv").write_text(f"image,label{',c' * 1_000_000}\n")
    assert "t.csv:1: Expected at most 20,000 columns, but got '1,000,002 columns'." in read("t.csv")
    names = ["image", "label", *map(str, range(MOST_COLUMNS))]
    pq.write_table(pa.table({name: ["a.png"] for name in names}), "t.parquet")
    assert "t.parquet: Expected at most 20,000 columns, but got '20,002 columns'." in read("t.parquet")


def test_an_object_of_many_keys(folder: Path) -> None:
    record = {f"k{at}": 1 for at in range(100_000)} | {"image": "a.png", "lable": "x"}
    (folder / "t.jsonl").write_text(json.dumps(record))
    assert read("t.jsonl").startswith("t.jsonl: Expected a column 'label'")


def test_a_line_longer_than_any(folder: Path) -> None:
    (folder / "t.jsonl").write_text(f'{{"image": "a.png", "label": "{"x" * 20_000_000}"}}\n')
    assert read("t.jsonl").startswith("t.jsonl:1: Expected at most 16,777,216 characters, but got '20,000,0")


def test_a_cell_longer_than_any(folder: Path) -> None:
    (folder / "t.csv").write_text(f"image,label\na.png,x\na.png,{'y' * (MOST_CHARACTERS + 1)}\n")
    assert read("t.csv").startswith("t.csv:3:label: Expected at most 10,000,000 characters, but got '10,000,001 chara")


def test_a_file_that_becomes_far_larger(folder: Path) -> None:
    with gzip.open(folder / "t.csv.gz", "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(b"\n" * 1_000_000)
    assert "t.csv.gz: Expected a table that is at most 100 times as large when it is decompressed" in read("t.csv.gz")


@pytest.mark.parametrize("label", ["9" * 10_000, "1" + "0" * 5000 + "x"])
def test_numbers_of_many_digits_are_labels_like_any_other(folder: Path, label: str) -> None:
    (folder / "t.csv").write_text(
        f"image,label,split\na.png,{label},train\na.png,10,train\na.png,9,test\na.png,009,test\n"
    )
    rows = Table("t.csv", label="label", split="split").read()
    assert rows.classes == ("009", "9", "10", label)


def test_captions_of_json_hold_no_halves_of_characters(folder: Path) -> None:
    (folder / "t.csv").write_text('image,label\na.png,"[""\\ud800""]"\na.png,"[""\\u0000""]"\n')
    faults = Table("t.csv", caption=CaptionList("label")).inspect().faults
    assert [fault.row for fault in faults] == [2, 3]


def make_tar(*names: str, **options: object) -> bytearray:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            data = Path("a.png").read_bytes() if name.endswith("png") else b"a text"
            member.size = len(data)
            for key, value in options.items() if name == names[0] else ():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return bytearray(content.getvalue())


def alter(at: int, field: bytes) -> Damage:
    """Writes over bytes of the first header, and mends its checksum."""

    def change(tar: bytearray) -> None:
        tar[at : at + len(field)] = field
        tar[148:156] = b" " * 8
        tar[148:156] = b"%06o\0 " % sum(tar[:512])

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ([alter(124, b"77777777777\0")], "'1.png' of 8,589,934,591 bytes in a tar of 10,240"),
        ([alter(124, b"\x80" + b"\x7f" * 11)], "'1.png' of 154,135,671,558,081,661,678,616,447 bytes"),
        ([alter(124, b"\xff" * 12)], "a header of -1 bytes"),
        ([alter(156, b"x"), alter(124, b"77777777777\0")], "a header of 8,589,934,591 bytes"),
        ([alter(156, b"L"), alter(124, b"77777777777\0")], "a header of 8,589,934,591 bytes"),
    ],
)
def test_a_tar_that_claims_more_than_it_holds(folder: Path, damage: list[Damage], message: str) -> None:
    tar = make_tar("1.png", "1.txt")
    for change in damage:
        change(tar)
    (folder / "t.tar").write_bytes(tar)
    assert message in read("t.tar", "txt")


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "99999999999999999999"},
        {"size": "-512"},
        {"size": "-1536"},
        {"size": "9" * 5000},
        {"GNU.sparse.map": f"0,{'9' * 5000}"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 12},
    ],
)
def test_extended_headers_of_a_tar(folder: Path, headers: dict[str, str]) -> None:
    (folder / "t.tar").write_bytes(make_tar("1.png", "1.txt", pax_headers=headers))
    assert "t.tar: Expected a whole tar" in read("t.tar", "txt")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_in_a_tar_are_no_pictures(folder: Path, kind: bytes) -> None:
    (folder / "t.tar").write_bytes(make_tar("1.png", "1.txt", type=kind, size=0, linkname="/etc/hostname"))
    assert "t.tar:1: Expected one picture, such as 1.jpg, but got none." in read("t.tar", "txt")


@pytest.mark.parametrize("name", ["/etc/1", "../../1"])
def test_names_in_a_tar_lead_nowhere(folder: Path, name: str) -> None:
    """They are names and no paths: pictures are read from the tar, and nothing is unpacked."""
    (folder / "t.tar").write_bytes(make_tar(f"{name}.png", f"{name}.txt"))
    (image,) = Table("t.tar", caption="txt").read(required=()).images.tolist()
    assert Member.parse(image).tar == str(folder / "t.tar")
    assert open_image(image).size == (8, 8)


@pytest.mark.parametrize("place", ["0+99999999999999", "99999999999999+5"])
def test_an_address_beyond_its_tar(folder: Path, place: str) -> None:
    (folder / "t.tar").write_bytes(make_tar("1.png"))
    with pytest.raises((ValueError, OSError), match="the tar ends before 1.png does|bytes, more than"):
        open_image(f"{folder}/t.tar:1.png@{place}")


def test_an_image_file_larger_than_any(folder: Path) -> None:
    with (folder / "a.png").open("ab") as file:
        file.truncate(MOST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match="1,073,741,825 bytes, more than"):
        open_image(folder / "a.png")


HOSTILE = """
import resource
import pyarrow
from finetune.data.table.table import CaptionList, Table
from finetune.data.prepare.images import try_image
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
print(Table("t.tar", caption="txt").inspect().faults[0])
print(try_image("bomb.png"))
print(Table("t.csv.gz", label="label").inspect().faults[0])
"""


@pytest.mark.slow
def test_a_process_with_little_memory_survives(folder: Path) -> None:
    tar = make_tar("1.png", "1.txt")
    for change in (alter(156, b"x"), alter(124, b"77777777777\0")):
        change(tar)
    (folder / "t.tar").write_bytes(tar)
    Image.new("1", (30_000, 30_000)).save("bomb.png")
    with gzip.open("t.csv.gz", "wb", compresslevel=1) as file:
        for _ in range(4000):
            file.write(b"\n" * 1_000_000)
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, check=True)
    tar_line, image_line, text_line = done.stdout.splitlines()
    assert tar_line.startswith("t.tar: Expected a whole tar")
    assert "(900000000 pixels) exceeds limit" in image_line
    assert text_line.startswith("t.csv.gz: Expected a table that is at most 100 times")
