"""The rows of tar shards, against what plain tarfile finds in them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.prepare.images import open_image
from finetune.data.prepare.members import Member
from finetune.data.table.table import CaptionList, RandomSplit, Table

from ..shards import ENDINGS, SPECIES, picture, sample, table, write_tar


def test_a_row_for_each_sample(shards: Path) -> None:
    rows = table(shards, label="species", weight="score").read()
    assert len(rows) == 25
    assert rows.captions.tolist() == [f"a {SPECIES[number % 3]} number {number}" for number in range(25)]
    assert rows.classes == SPECIES
    assert rows.label_ids.tolist() == [number % 3 for number in range(25)]
    assert rows.weights == pytest.approx([number / 20 for number in range(25)])
    assert rows.place(13) == f"{shards}/00001.tar:000010003"
    assert rows.number(13) == "000010003"
    assert rows.indices("test").tolist() == [12, 13, 14]
    assert rows.files == tuple(str(shards / f"0000{shard}.tar") for shard in range(3))
    assert len(set(rows.image_ids.tolist())) == 25


def test_pictures_are_the_members_bytes(shards: Path) -> None:
    rows = table(shards).read()
    for row, address in enumerate(rows.images.tolist()):
        member = Member.parse(address)
        assert member is not None
        with tarfile.open(member.tar) as tar:
            file = tar.extractfile(member.name)
            assert file is not None
            content = file.read()
        assert member.read() == content
        assert member.read(7) == content[:7]
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(np.asarray(open_image(address)), expected)
        assert member.name.startswith(str(rows.number(row)))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("names", ["{}", "folder/{}", "long" * 30 + "/{}", "日本/{}"])
def test_members_are_found_where_tarfile_finds_them(tmp_path: Path, kind: int, names: str) -> None:
    with tarfile.open(tmp_path / "one.tar", "w", format=kind) as tar:
        for name, content in sample(1).items():
            header = tarfile.TarInfo(names.format(name))
            header.size, header.mtime, header.uname = len(content), 0.5, "größe"
            tar.addfile(header, io.BytesIO(content))
    rows = Table(str(tmp_path / "one.tar"), caption="txt", label="species", split="split").read(required=())
    member = Member.parse(rows.images[0])
    assert member is not None
    with tarfile.open(tmp_path / "one.tar") as tar:
        found = tar.getmember(names.format("000000001.jpg"))
    assert (member.name, member.offset, member.size) == (found.name, found.offset_data, found.size)
    assert (rows.captions[0], rows.classes) == ("a dog number 1", ("dog",))


def test_captions_come_from_the_text_or_a_field(shards: Path, tmp_path: Path) -> None:
    assert table(shards, caption="caption").read().captions.tolist() == table(shards).read().captions.tolist()
    write_tar(tmp_path / "lists.tar", *(sample(number, texts=["one", f"two {number}"]) for number in range(15)))
    rows = Table(str(tmp_path / "lists.tar"), caption=CaptionList("texts"), split="split").read()
    assert rows.captions[:4].tolist() == ["one", "two 0", "one", "two 1"]
    both = Table(str(tmp_path / "lists.tar"), caption=("txt", "species"), split="split").read()
    assert both.captions[:2].tolist() == ["a cat number 0", "cat"]


def test_filters_go_by_the_fields(shards: Path) -> None:
    rows = table(shards, filter="score >= 0.3 and species != 'dog'", split=RandomSplit(val=0, test=0.2)).read()
    expected = [number for number in range(25) if number / 20 >= 0.3 and number % 3 != 1]
    assert [int(str(key)[-4:]) + 10 * int(str(key)[:5]) for key in rows.numbers] == expected
    assert [(removed.condition, removed.rows) for removed in rows.removed] == [
        ("score >= 0.3", 6),
        ("species != 'dog'", sum(number % 3 == 1 for number in range(6, 25))),
    ]


def test_drawn_splits_depend_on_shard_and_key_alone(shards: Path, tmp_path: Path) -> None:
    before = table(shards, split=RandomSplit(val=0.2, test=0.2)).read()
    (tmp_path / "other").mkdir()
    for shard, ending in enumerate(ENDINGS):
        numbers = range(shard * 10, min(shard * 10 + 10, 25))
        samples = [sample(number, ending=ending, more="y" * 900) for number in numbers]
        write_tar(tmp_path / "other" / f"{shard:05d}.tar", *(dict(reversed(one.items())) for one in samples))
    after = table(tmp_path / "other", split=RandomSplit(val=0.2, test=0.2)).read()
    assert after.images.tolist() != before.images.tolist()
    assert after.splits.tolist() == before.splits.tolist()


def test_each_split_may_have_its_own_shards(shards: Path) -> None:
    files = RandomSplit(val=str(shards / "00001.tar"), test=str(shards / "*2.tar"))
    rows = Table(str(shards / "00000.tar"), caption="txt", split=files).read()
    assert [len(rows.indices(split)) for split in ("train", "val", "test")] == [10, 10, 5]


def test_what_is_no_member_of_a_sample_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("cats", tarfile.DIRTYPE), ("cats/1.png", tarfile.SYMTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "cats/1.jpg"
            tar.addfile(header)
        members = {
            "cats/.hidden.jpg": b"no picture",
            "cats/1.JPG": picture(1),
            "cats/1.seg.png": b"no picture",
            "cats/1.txt": "\ufeff  a cat ".encode(),
            f"{'long' * 60}/2.jpg": picture(2),  # more than a tar's header holds
            f"{'long' * 60}/2.txt": "日本の猫".encode(),
        }
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    rows = Table(str(path), caption="txt", split=RandomSplit(val=0, test=0.5)).read()
    assert rows.captions.tolist() == ["a cat", "日本の猫"]
    assert rows.numbers.tolist() == ["cats/1", f"{'long' * 60}/2"]
    assert open_image(rows.images[1]).size == (40, 30)
