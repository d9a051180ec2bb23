"""What can be wrong with tar shards, all of it at once."""

import gzip
import tarfile
from pathlib import Path

import pytest

from finetune.core.errors import TableError
from finetune.data.checks.check import TableSettings, check_table
from finetune.data.checks.copies import find_copies
from finetune.data.prepare.images import open_image
from finetune.data.table.faults import Fault, TableFaultsError
from finetune.data.table.table import RandomSplit, Table

from ..shards import picture, sample, table, write_tar


def faults(path: Path, **settings: object) -> list[Fault]:
    named = {"caption": "txt", "split": "split"} | settings
    with pytest.raises(TableFaultsError) as error:
        Table(str(path), **named).read(required=())
    found = Table(str(path), **named).inspect().faults
    assert set(found) == set(error.value.faults)
    return list(found)


def test_faults_of_samples_name_tar_and_key(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(9)]
    del samples[1]["000000001.jpg"]
    samples[2]["000000002.png"] = picture(2)
    samples[3]["000000003.json"] = b'{"split": "train"'
    samples[4]["000000004.txt"] = b"caf\xe9"
    samples[5]["000000005.txt"] = b"  "
    del samples[6]["000000006.txt"]
    samples[7]["000000007.json"] = b"[1]"
    samples.append(sample(8, split="trian") | {"000000008.txt": b"again"})
    path = write_tar(tmp_path / "00000.tar", *samples)
    shown = [str(fault).removeprefix(f"{path}:") for fault in faults(path)]
    assert [line.split(" Expected ")[0] for line in shown] == [
        "000000001:", "000000002:", "000000003:", "000000004:", "000000005:txt:", "000000006:txt:", "000000007:",
        *["000000008:"] * 3,
    ]  # fmt: skip
    assert "Expected one picture, such as 000000001.jpg, but got none. Write the sample again" in shown[0]
    assert "but got '000000002.jpg, 000000002.png'" in shown[1]
    assert "Expected an object in .json, and UTF-8 texts, but got \"Expecting ',' delimiter" in shown[2]
    assert "can't decode byte 0xe9" in shown[3]
    assert "Expected a caption, but got '  '" in shown[4]
    assert "Expected a caption, but got ''" in shown[5]
    assert "but got 'a list'" in shown[6]
    assert "Expected each member once, but got '000000008.json'" in shown[8]
    whole = Table(str(path), caption="txt", split="split").inspect().rows
    assert whole is not None
    assert whole.numbers.tolist() == ["000000000"]


def test_a_list_is_no_text_of_a_field(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "00000.tar", *(sample(number, tags=["a", "b"]) for number in range(6)))
    for name in ("caption", "label"):
        found = faults(path, **{"caption": None, name: "tags"})
        assert [fault.row for fault in found] == [f"00000000{number}" for number in range(6)]
        assert str(found[0]).startswith(f'{path}:000000000:tags: Expected a text, but got \'["a", "b"]\'.')


def test_broken_tars_are_reported_all_together(shards: Path) -> None:
    content = (shards / "00000.tar").read_bytes()
    (shards / "00000.tar").write_bytes(content[:20_000])
    middle = bytearray((shards / "00001.tar").read_bytes())
    with tarfile.open(shards / "00001.tar") as tar:
        at = tar.getmembers()[7].offset
    middle[at : at + 100] = b"\xff" * 100
    (shards / "00001.tar").write_bytes(middle)
    (shards / "00003.tar").write_bytes(gzip.compress(content))
    (shards / "00004.tar").write_bytes(b"")
    (shards / "00005.tar").write_bytes(content[: 512 * (len(content.rstrip(b"\0")) // 512 + 1)])
    (shards / "00006.tar").write_bytes(b"no tar at all" * 100)
    found = faults(shards / "*.tar")
    assert [Path(fault.file).name for fault in found] == [f"0000{shard}.tar" for shard in (0, 1, 3, 4, 5, 6)]
    assert all(fault.rule == "a whole tar, not compressed" for fault in found)
    assert [fault.value for fault in found[1:4:2]] == [f"damaged or broken off at byte {at:,}", "empty file"]
    assert all(fault.value for fault in found)


def test_a_tar_without_samples(tmp_path: Path) -> None:
    (fault,) = faults(write_tar(tmp_path / "empty.tar"))
    assert str(fault) == (
        f"{tmp_path / 'empty.tar'}: Expected a tar with samples, but got none. "
        "Write KEY.jpg, KEY.txt and KEY.json for each, or remove the tar."
    )


def test_columns_that_no_sample_has(shards: Path) -> None:
    (fault, *others) = faults(shards / "*.tar", label="speces")
    assert fault.rule == "a column 'speces'"
    assert fault.repair == "Did you mean 'species'?"
    assert len(others) == 2
    for path in shards.glob("*.tar"):
        write_tar(path, {"1.jpg": picture(1)})
    assert faults(shards / "*.tar", caption="txt", split=RandomSplit())[0].rule == "a column 'txt'"


def test_a_pattern_that_names_other_files_too(shards: Path) -> None:
    (fault,) = faults(shards / "*")
    assert str(fault) == (
        f"{shards / '00000_stats.json'}: Expected only tars beside {shards / '00000.tar'}, but got '00000_stats.json'. "
        "Let the pattern end in .tar."
    )


def test_a_picture_that_cannot_be_decoded(shards: Path) -> None:
    half = sample(3)
    half["000000003.jpg"] = half["000000003.jpg"][:300]
    write_tar(shards / "00000.tar", *(sample(number) if number != 3 else half for number in range(10)))
    report = check_table(TableSettings(table(shards), mirrors=False), full=True)
    (fault,) = report.faults
    assert (fault.file, fault.row, fault.column) == (str(shards / "00000.tar"), "000000003", "image")
    assert fault.value == f"{shards}/00000.tar:000000003.jpg"
    assert report.sizes is not None
    assert report.sizes[[0, 3, 24]].tolist() == [[40, 30], [0, 0], [40, 30]]
    rows = table(shards).read()
    with pytest.raises(TableError, match=r"Expected .*/00000\.tar:000000003\.jpg to be a whole image"):
        open_image(rows.images[3])


def test_a_tar_that_became_shorter_or_went_away(shards: Path) -> None:
    rows = table(shards).read()
    content = (shards / "00002.tar").read_bytes()
    (shards / "00002.tar").write_bytes(content[:1500])
    with pytest.raises(TableError, match="the tar ends before 000020000.webp does"):
        open_image(rows.images[20])
    (shards / "00002.tar").unlink()
    with pytest.raises(TableError, match="No such file"):
        open_image(rows.images[24])
    assert table(shards).inspect().faults == ()


def test_pictures_that_stand_in_two_splits_byte_for_byte(shards: Path) -> None:
    again = sample(30, split="test", key="000030000") | {"000030000.jpg": picture(0)}
    write_tar(shards / "00003.tar", again)
    (concern,) = find_copies(table(shards).read())
    assert concern.message == (
        "1 image is in files of more than one split, byte for byte: "
        "'00000.tar:000000000.jpg', '00003.tar:000030000.jpg'."
    )
    assert concern.places == (f"{shards}/00000.tar:000000000", f"{shards}/00003.tar:000030000")
