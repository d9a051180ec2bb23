"""Tar shards in batches, recipes and runs: the same as their samples in files."""

import json
import tarfile
from pathlib import Path

import albumentations
import pytest
import torch
import yaml

from finetune.commands.cli import main
from finetune.core.errors import RecipeError
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.pipeline.recipe import read_recipe

from ..shards import sample, table, write_tar

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
    sharded = ImageTextDataModule(table(shards, **kind), "align-mini", num_workers=2, **options)
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
    def module() -> ImageTextDataModule:
        return ImageTextDataModule(table(shards), "align-mini", image_size=64, batch_size=4, num_workers=workers)

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
    data = {"table": named, "image_size": 64}
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    path.write_text(yaml.safe_dump({"model": {"checkpoint": "align-mini"}, "data": data, "trainer": trainer}))
    return path


def test_recipe_builds_it(shards: Path) -> None:
    data = read_recipe(write_recipe(shards), ["--data.batch_size", "5"]).build_data()
    assert (data.batch_size, len(data.rows)) == (5, 25)
    with pytest.raises(RecipeError, match="'data.table.lable'. Did you mean 'label'"):
        read_recipe(write_recipe(shards), ["--data.table.lable", "x"])


def test_check_reports_all_faults_of_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "--config", str(write_recipe(shards)), "--output", str(shards / "check.json")]
    assert main(words) == 0
    assert "rows: 18 train, 4 val, 3 test" in capsys.readouterr().out
    write_tar(shards / "00001.tar", sample(10, species=""), sample(11, split="none"))
    (shards / "00002.tar").write_bytes((shards / "00002.tar").read_bytes()[:2000])
    assert main(words) == 2
    printed = capsys.readouterr().out
    assert f"error: {shards}/00002.tar: Expected a whole tar" in printed
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
