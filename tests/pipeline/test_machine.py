"""`auto`: what a run leaves to the machine is timed, set, said, and written down so that it can be repeated."""

import pytest

from finetune.core.cores import count_cores
from finetune.core.errors import RecipeError
from finetune.core.files import read_json
from finetune.data.loading.loader import usual_workers
from finetune.pipeline import machine
from finetune.pipeline.machine import LAYOUT, MICRO_BATCH, PRECISION, WORKERS, suit_machine
from finetune.pipeline.recipe import Recipe, read_recipe
from finetune.pipeline.stages import TRAIN
from finetune.pipeline.work import Work
from finetune.run.folder import RunFolder

OPEN = [word for key in (PRECISION, LAYOUT, WORKERS) for word in (f"--{key}", "auto")]


@pytest.fixture
def read(tmp_path, tiny, colour_table):
    """Reads a recipe with what is set in it."""
    path = tmp_path / "colours.yaml"
    path.write_text(
        f"model:\n  checkpoint: {tiny}\n  image_lora: {{rank: 2}}\n  text_lora: {{rank: 2}}\n"
        f"data:\n  batch_size: 8\n  table: {{path: {colour_table}, label: label, split: split}}\n"
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, logger: false}\n"
        f"run: {{folder: {tmp_path / 'runs'}}}\n"
    )

    def read(*words: str) -> Recipe:
        return read_recipe(path, words)

    return read


def test_what_is_found_holds_for_all_that_is_built_from_then_on(read, monkeypatch, capsys):
    monkeypatch.setattr(machine, "SHARE", 1e9)
    recipe = read(*OPEN)
    task, data = recipe.build_trainable(), recipe.build_data()
    found = suit_machine(recipe, task, data)
    assert found.keys() == {PRECISION, LAYOUT, WORKERS, "seconds"}
    assert {"32-true, channels last", "32-true, channels first"} & found["seconds"].keys()
    assert recipe.build_trainer().precision == found[PRECISION]
    assert task.towers.channels_last == recipe.build_task().towers.channels_last == found[LAYOUT]
    assert data.train_dataloader().num_workers == found[WORKERS]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("chosen for this machine")]
    assert f"{PRECISION} {found[PRECISION]}" in line

    named = [f"--{key}={str(found[key]).lower()}" for key in (PRECISION, LAYOUT, WORKERS)]
    again = read(*named)
    assert suit_machine(again, again.build_trainable(), again.build_data()) == {}
    assert again.build_trainer().precision == found[PRECISION]
    assert again.build_task().towers.channels_last == found[LAYOUT]


def test_the_fastest_way_is_taken_only_if_it_is_clearly_faster(read, monkeypatch):
    monkeypatch.setattr(machine, "SHARE", 1e9)
    recipe = read("--model.channels_last", "auto")
    found = suit_machine(recipe, recipe.build_trainable(), recipe.build_data())
    usual, other = (found["seconds"][name] for name in ("32-true, channels last", "32-true, channels first"))
    assert found[LAYOUT] == (other >= 0.95 * usual)


def test_a_short_training_is_not_timed_and_says_what_it_takes(read, capsys):
    recipe = read(*OPEN)
    run = RunFolder(recipe.folder)
    run.create(overwrite=False)
    run.recipe.write_text(recipe.resolved)
    TRAIN.run(Work(recipe, run))
    workers = usual_workers(count_cores())
    chosen = {PRECISION: "32-true", LAYOUT: None, WORKERS: workers}
    assert read_json(run.environment)["auto"] == {**chosen, "seconds": {}}
    assert f"{PRECISION} 32-true, {LAYOUT} null, {WORKERS} {workers}" in capsys.readouterr().err
    assert "precision: auto" in run.recipe.read_text()


def test_the_rows_that_fit_into_memory_are_settled_too(read, capsys):
    recipe = read(f"--{MICRO_BATCH}", "auto")
    assert recipe.build_task().micro_batch == "auto"
    task, data = recipe.build_trainable(), recipe.build_data()
    assert suit_machine(recipe, task, data) == {MICRO_BATCH: None}
    assert recipe.build_task().micro_batch is task.micro_batch is None
    assert "embeds all 6 rows at a time" in capsys.readouterr().err
    assert read(f"--{MICRO_BATCH}", "3").build_task().towers.micro_batch == 3
    with pytest.raises(RecipeError, match=r"model.*micro_batch to be at least 1, auto or null, but got 0"):
        read(f"--{MICRO_BATCH}", "0").build_task()


def test_without_timing_the_layout_is_that_of_the_members_of_a_soup(read):
    recipe = read("--model.fused", "false", "--model.channels_last", "auto")
    task = recipe.build_trainable()
    assert suit_machine(recipe, task, recipe.build_data()) == {LAYOUT: None, "seconds": {}}
    assert task.towers.channels_last is recipe.build_task(1).towers.channels_last is False


def test_what_is_named_is_left_alone(read):
    recipe = read("--trainer.precision", "bf16-mixed", "--data.num_workers", "1")
    task, data = recipe.build_trainable(), recipe.build_data()
    assert suit_machine(recipe, task, data) == {}
    assert data.train_dataloader().num_workers == 1
    assert recipe.build_trainer().precision == "bf16-mixed"
