"""Tar shards, written with plain tarfile as img2dataset and WebDataset do, and what can be wrong with them."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from finetune.cli import main
from finetune.data.check import TableSettings, check_table
from finetune.data.copies import find_copies
from finetune.data.datamodule import ImageTextDataModule
from finetune.data.faults import Fault, TableFaultsError
from finetune.data.images import open_image
from finetune.data.members import Member
from finetune.data.sharded import ShardedImageText
from finetune.data.table import CaptionList, RandomSplit, Table
from finetune.errors import RecipeError, TableError
from finetune.recipe import read_recipe

SPECIES = ("cat", "dog", "emu")
ENDINGS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(seed: int, ending: str = "jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, ENDINGS[ending])
    return content.getvalue()


def sample(number: int, key: str | None = None, ending: str = "jpg", **fields: object) -> dict[str, bytes]:
    """The members of a sample as img2dataset names and writes them."""
    key = key or f"{number // 10:05d}{number % 10:04d}"
    record = {
        "caption": f"a {SPECIES[number % 3]} number {number}",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 40,
        "height": 30,
        "species": SPECIES[number % 3],
        "split": ("train", "train", "train", "val", "test")[number // 3 % 5],
        "score": number / 20,
        "exif": "{}",
    }
    return {
        f"{key}.{ending}": picture(number, ending),
        f"{key}.json": json.dumps(record | fields, indent=4).encode(),
        f"{key}.txt": f"a {SPECIES[number % 3]} number {number}".encode(),
    }


def write_tar(path: Path, *samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w|") as tar:
        for name, content in (member for one in samples for member in one.items()):
            header = tarfile.TarInfo(name)
            header.size, header.mode, header.mtime = len(content), 0o444, 1_700_000_000.5
            header.uname = header.gname = "bigdata"
            tar.addfile(header, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 10, 10 and 5 samples in the three formats that img2dataset writes, and its other files."""
    for shard, ending in enumerate(ENDINGS):
        numbers = range(shard * 10, min(shard * 10 + 10, 25))
        write_tar(tmp_path / f"{shard:05d}.tar", *(sample(number, ending=ending) for number in numbers))
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    return tmp_path


def table(shards: Path, **settings: object) -> Table:
    named = {"caption": "txt", "split": "split"} | settings
    return Table(str(shards / "*.tar"), **{name: value for name, value in named.items() if value is not None})


# ---- rows


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
    assert rows.files == tuple(shards / f"0000{shard}.tar" for shard in range(3))
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


# ---- what is wrong, all of it at once


def faults(path: Path, **settings: object) -> list[Fault]:
    named = {"caption": "txt", "split": "split"} | settings
    with pytest.raises(TableFaultsError) as error:
        Table(str(path), **named).read(required=())
    found = Table(str(path), **named).inspect().faults
    assert set(found) == set(error.value.faults)
    return list(found)


def test_faults_of_samples_are_told_by_tar_and_key(tmp_path: Path) -> None:
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


def test_broken_tars_are_told_all_together(shards: Path) -> None:
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
        f"{shards / '00000_stats.json'}: Expected tars alone beside {shards / '00000.tar'}, but got none. "
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
        "1 picture lies in files of more than one split, byte for byte: "
        "'00000.tar:000000000.jpg', '00003.tar:000030000.jpg'."
    )
    assert concern.places == (f"{shards}/00000.tar:000000000", f"{shards}/00003.tar:000030000")


# ---- batches


def unpack(shards: Path) -> Path:
    """The same samples as files and a CSV, by plain tarfile."""
    lines = ["image,txt,species,split"]
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, content in members.items():
            if not name.endswith((".json", ".txt")):
                (shards / name).write_bytes(content)
                stem = name.rpartition(".")[0]
                record = json.loads(members[f"{stem}.json"])
                lines.append(f"{name},{members[f'{stem}.txt'].decode()},{record['species']},{record['split']}")
    (shards / "photos.csv").write_text("\n".join(lines) + "\n")
    return shards / "photos.csv"


@pytest.mark.parametrize("kind", [{"caption": "txt"}, {"caption": None, "label": "species"}])
def test_batches_are_those_of_the_same_rows_as_files(shards: Path, kind: dict[str, str | None]) -> None:
    options = {
        "image_size": 64,
        "batch_size": 4,
        "templates": ("a {}.", "one {}"),
        "augmentations": [albumentations.Affine(rotate=(-30, 30), p=1.0)],
        "seed": 3,
    }
    plain = ImageTextDataModule(Table(str(unpack(shards)), split="split", **kind), "align-mini", **options)
    sharded = ShardedImageText(table(shards, **kind), "align-mini", num_workers=2, **options)
    epochs = []
    for module in (plain, sharded):
        loader = module.train_dataloader()
        batches = [*module.test_dataloader(), *module.val_dataloader()]
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            batches += loader
        epochs.append(batches)
    assert len(epochs[0]) == 1 + 1 + 2 * 5
    for one, two in zip(*epochs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    prompts = plain.class_prompts, sharded.class_prompts
    assert (prompts == (None, None)) == ("label" not in kind)
    if "label" in kind:
        assert torch.equal(prompts[0].input_ids, prompts[1].input_ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_epoch_goes_on_with_the_rest(shards: Path, workers: int) -> None:
    def module() -> ShardedImageText:
        return ShardedImageText(table(shards), "align-mini", image_size=64, batch_size=4, num_workers=workers)

    expected = [batch.rows.tolist() for batch in module().train_dataloader()]
    interrupted, restored = module().train_dataloader(), module().train_dataloader()
    stream = iter(interrupted)
    seen = [next(stream).rows.tolist() for _ in range(2)]
    restored.load_state_dict(interrupted.state_dict())
    assert seen + [batch.rows.tolist() for batch in restored] == expected


# ---- recipes and commands


def write_recipe(shards: Path, **settings: object) -> Path:
    named = {"path": str(shards / "*.tar"), "label": "species", "split": "split"} | settings
    path = shards / "recipe.yaml"
    data = {"class_path": "finetune.ShardedImageText", "init_args": {"table": named, "image_size": 64}}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    path.write_text(yaml.safe_dump({"model": {"checkpoint": "align-mini"}, "data": data, "trainer": trainer}))
    return path


def test_recipe_builds_it(shards: Path) -> None:
    data = read_recipe(write_recipe(shards), ["--data.batch_size", "5"]).build_data()
    assert isinstance(data, ShardedImageText)
    assert (data.batch_size, len(data.rows)) == (5, 25)
    with pytest.raises(RecipeError, match="'data.table.lable'. Did you mean 'label'"):
        read_recipe(write_recipe(shards), ["--data.table.lable", "x"])
    other = read_recipe(write_recipe(shards, path=str(unpack(shards)))).build_data()
    with pytest.raises(RecipeError, match=r"data.table.path to name tar shards, as in shards/\*.tar, but got .*csv"):
        len(other.rows)


def test_check_tells_all_faults_of_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "--config", str(write_recipe(shards)), "--output", str(shards / "check.json")]
    assert main(words) == 0
    assert "rows: 18 train, 4 val, 3 test" in capsys.readouterr().out
    write_tar(shards / "00001.tar", sample(10, species=""), sample(11, split="none"))
    (shards / "00002.tar").write_bytes((shards / "00002.tar").read_bytes()[:2000])
    assert main(words) == 2
    told = capsys.readouterr().out
    assert f"error: {shards}/00002.tar: Expected a whole tar" in told
    (shards / "00002.tar").unlink()
    assert main([*words, "--full"]) == 2
    found = json.loads((shards / "check.json").read_text())["errors"]
    assert [(fault["row"], fault["column"]) for fault in found] == [
        ("000010000", "species"), ("000010001", "split"), (None, None)
    ]  # fmt: skip
    assert found[-1]["rule"] == "rows in the split 'test'"


def test_trainer_fits_and_measures(shards: Path, tiny: str, build_trainer) -> None:  # type: ignore[no-untyped-def]
    recipe = read_recipe(write_recipe(shards), ["--model.checkpoint", tiny, "--data.batch_size", "8"])
    task, data = recipe.build_task(), recipe.build_data()
    trainer = build_trainer(max_epochs=1)
    trainer.fit(task, data)
    assert trainer.global_step == 3
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert "test/accuracy" in trainer.test(task, data, verbose=False)[0]


@pytest.mark.slow
def test_the_whole_run(shards: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    words = ["--config", str(write_recipe(shards)), "--model.checkpoint", tiny]
    assert main(["fit", *words, "--run", "shards"]) == 0
    lines = (shards / "runs" / "shards" / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["000010002", "cat"], ["000010003", "dog"], ["000010004", "emu"]
    ]  # fmt: skip
    assert main(["test", "runs/shards"]) == 0
