"""A table written as shards, and read back: the same batches."""

import csv
import hashlib
import json
import runpy
import tarfile
from collections.abc import Callable
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch
from PIL import Image

from finetune.core.shipped import shipped_folder
from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.splits import SPLITS
from finetune.data.table.table import Table


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    script: Callable[[list[str]], int] = runpy.run_path(str(shipped_folder("datasets") / "shard.py"))["main"]
    return script


@pytest.fixture
def shard(main, tmp_path, capsys) -> Callable[..., Path]:
    """Runs the script on a table; returns the folder it wrote."""

    def run(table: Path | str, *words: str, output: str = "shards") -> Path:
        folder = tmp_path / output
        code = main(["--table", str(table), "--output", str(folder), "--samples", "10", *words])
        assert code == 0, capsys.readouterr().err
        return folder

    return run


def epoch(module: ImageTextDataModule) -> list[Batch]:
    loader = module.train_dataloader()
    loader.batch_sampler.set_epoch(1)
    return [*loader, *module.val_dataloader(), *module.test_dataloader()]


def renumber(ids: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Image ids counted in the order of the rows; the numbers themselves say nothing."""
    first = {int(image): at for at, image in reversed(list(enumerate(of.tolist())))}
    return torch.tensor([first[int(image)] for image in ids])


def assert_same_batches(plain: ImageTextDataModule, sharded: ImageTextDataModule) -> None:
    ids = [torch.as_tensor(module.rows.image_ids) for module in (plain, sharded)]
    for one, two in zip(epoch(plain), epoch(sharded), strict=True):
        one, two = (
            part._replace(image_ids=renumber(part.image_ids, of)) for part, of in zip((one, two), ids, strict=True)
        )
        assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))


OPTIONS = {
    "checkpoint": "align-mini",
    "image_size": 64,
    "batch_size": 5,
    "templates": ("a {}.", "one {}"),
    "augmentations": [albumentations.Affine(rotate=(-30, 30), p=1.0)],
    "seed": 2,
}


@pytest.mark.parametrize("kind", [{"caption": "caption"}, {"label": "label"}, {"caption": "caption", "label": "label"}])
def test_round_trip_gives_the_same_batches(colour_table, shard, kind):
    words = [word for name, column in kind.items() for word in (f"--{name}", column)]
    folder = shard(colour_table, *words, "--split", "split")
    assert sorted(path.name for path in folder.iterdir()) == [f"0000{number}.tar" for number in range(4)]
    plain = ImageTextDataModule(Table(str(colour_table), split="split", **kind), **OPTIONS)
    kind = kind | ({"caption": "txt"} if "caption" in kind else {})
    sharded = ImageTextDataModule(Table(str(folder / "*.tar"), split="split", **kind), num_workers=2, **OPTIONS)
    assert plain.rows.classes == sharded.rows.classes
    assert_same_batches(plain, sharded)


def test_layout_is_img2datasets(colour_table, shard):
    scores = ["clip_similarity_vitb32", "width", "text_length"]
    folder = shard(colour_table, "--caption", "caption", "--split", "split", "--columns", *scores)
    with colour_table.open() as file:
        table = list(csv.DictReader(file))
    for number in range(4):
        with tarfile.open(folder / f"0000{number}.tar") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
            assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}
        rows = table[number * 10 : number * 10 + 10]
        keys = [f"{number:05d}{at:04d}" for at in range(len(rows))]
        assert list(members) == [f"{key}.{ending}" for key in keys for ending in ("png", "json", "txt")]
        for key, row in zip(keys, rows, strict=True):
            assert members[f"{key}.png"] == (colour_table.parent / row["image"]).read_bytes()
            assert members[f"{key}.txt"].decode() == row["caption"]
            record = json.loads(members[f"{key}.json"])
            assert record.pop("key") == key
            assert record.pop("sha256") == hashlib.sha256(members[f"{key}.png"]).hexdigest()
            assert record == {name: row[name] for name in ("caption", "split", *scores)}
    filtered = Table(str(folder / "*.tar"), caption="txt", filter="clip_similarity_vitb32 > 0.3 and width < 700")
    assert len(filtered.read()) == 36


def test_drawn_splits_are_those_of_the_table(colour_table, shard):
    folder = shard(colour_table, "--label", "label")
    expected = Table(str(colour_table), label="label").read().splits
    found = Table(str(folder / "*.tar"), label="label", split="split").read().splits
    assert found.tolist() == expected.tolist()
    assert len(np.unique(found)) == len(SPLITS)
    with tarfile.open(folder / "00000.tar") as tar:
        assert not [name for name in tar.getnames() if name.endswith(".txt")]


def test_rows_that_share_a_picture_share_its_hash(colour_table, shard, tmp_path):
    lines = colour_table.read_text().splitlines()
    again = [line.replace("a red", "the same red") for line in lines[1:] if "a red" in line]
    (tmp_path / "again.csv").write_text("\n".join([*lines, *again]) + "\n")
    images = str(colour_table.parent)
    folder = shard(tmp_path / "again.csv", "--caption", "caption", "--split", "split", "--images", images)
    table = Table(str(tmp_path / "again.csv"), caption="caption", split="split", images=images, image_id="image")
    plain = ImageTextDataModule(table, **OPTIONS)
    shards = Table(str(folder / "*.tar"), caption="txt", split="split", image_id="sha256")
    assert len(np.unique(shards.read().image_ids)) == 36
    assert_same_batches(plain, ImageTextDataModule(shards, **OPTIONS))


def test_every_run_writes_the_same_bytes_and_shards_can_be_sharded_again(colour_table, shard):
    words = ["--caption", "caption", "--split", "split"]
    before = {path.name: path.read_bytes() for path in shard(colour_table, *words).iterdir()}
    assert {path.name: path.read_bytes() for path in shard(colour_table, *words).iterdir()} == before
    fewer = shard(colour_table, *words, "--samples", "30")
    assert len(list(fewer.iterdir())) == 2
    words = ["--caption", "txt", "--split", "split", "--columns", "caption"]
    again = shard(fewer / "*.tar", *words, output="again")
    rows = [Table(str(folder / "*.tar"), caption="txt", split="split").read() for folder in (fewer, again)]
    assert rows[0].captions.tolist() == rows[1].captions.tolist()
    assert rows[0].splits.tolist() == rows[1].splits.tolist()


def test_pictures_whose_names_do_not_say_what_they_are(shard, tmp_path):
    for name, kind in (("photo", "JPEG"), ("hash.0f3a", "PNG"), ("scan.jfif", "JPEG"), ("SHOUT.PNG", "PNG")):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name, kind)
    (tmp_path / "names.csv").write_text("image,caption\nphoto,a\nhash.0f3a,b\nscan.jfif,c\nSHOUT.PNG,d\n")
    folder = shard(tmp_path / "names.csv", "--caption", "caption")
    with tarfile.open(folder / "00000.tar") as tar:
        assert [name for name in tar.getnames() if name.endswith("g")] == [
            f"00000000{at}.{ending}" for at, ending in enumerate(("jpg", "png", "jpg", "png"))
        ]
    assert Table(str(folder / "*.tar"), caption="txt").read(()).captions.tolist() == ["a", "b", "c", "d"]


def test_what_is_wrong(colour_table, main, tmp_path, capsys):
    words = ["--table", str(colour_table), "--output", str(tmp_path / "shards")]
    assert main([*words, "--caption", "captoin"]) == 2
    assert "Did you mean 'caption'?" in capsys.readouterr().err
    assert main([*words, "--caption", "caption", "--columns", "wdth"]) == 2
    assert "Did you mean 'width'?" in capsys.readouterr().err
    assert main(words) == 2
    assert "Expected data.table.caption or data.table.label" in capsys.readouterr().err
    assert main([*words, "--caption", "caption", "--samples", "0"]) == 2
    assert "Expected --samples to be from 1 to 10000, but got 0" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_text("image,caption\nnone.png,x\nnothing.png,\n")
    assert main([*words[2:], "--table", str(tmp_path / "bad.csv"), "--caption", "caption"]) == 2
    printed = capsys.readouterr().err
    assert "bad.csv:2:image" in printed
    assert "bad.csv:3:caption" in printed
    (tmp_path / "noise").write_bytes(b"no picture")
    (tmp_path / "noise.csv").write_text("image,caption\nnoise,x\n")
    assert main([*words[2:], "--table", str(tmp_path / "noise.csv"), "--caption", "caption"]) == 2
    assert "noise to be an image (BMP, " in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000.tar").touch()
    (tmp_path / "shards" / "mine.txt").touch()
    assert main([*words, "--caption", "caption"]) == 2
    assert "it holds something else" in capsys.readouterr().err
