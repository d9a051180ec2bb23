"""What a training shows of itself: in a file, with what follows it, and of a part of it that goes on."""

import re

import pytest

from finetune.core import bar as module
from finetune.model.lora import TowerLora
from finetune.training.task import AlignTask
from finetune.training.training_bar import TrainingBar

CLOCK = r"(?:\d+:)?\d\d:\d\d"


@pytest.fixture
def task(tiny) -> AlignTask:
    return AlignTask(tiny, TowerLora(rank=2), None)


def test_steps_and_validations_are_lines_in_a_file(task, labels, build_trainer, capsys, monkeypatch):
    monkeypatch.setattr(module, "REPEATED", 0.0)
    bar = TrainingBar("val/accuracy")
    bar.place(0, trainings=2, seconds_after=3600.0)
    build_trainer(max_epochs=2, callbacks=[bar], enable_progress_bar=True, num_sanity_val_steps=0).fit(task, labels)
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if " steps, " in line and "validation" not in line]
    assert len(steps) == 6
    for at, line in enumerate(steps, start=1):
        title = f"training 1 of 2, epoch {(at + 2) // 3} of 2"
        values = r"train/loss \d\.\d+" + (r", val/loss [\d.]+, val/accuracy [\d.]+" if at > 3 else "")
        whole = rf"{CLOCK} left, [\d.e+]+ images/s, {values}, 1:\d\d:\d\d left of the run"
        assert re.fullmatch(rf"{title}: {at} of 6 steps, {whole}", line), line
    kept = [line for line in lines if ", step " in line]
    values = r"train/loss [\d.]+, val/loss [\d.]+, val/accuracy [\d.]+"
    assert len(kept) == 2
    for at, line in enumerate(kept, start=1):
        assert re.fullmatch(rf"training 1 of 2, epoch {at} of 2, step {3 * at} of 6: {values}; {CLOCK} left", line), (
            line
        )
    assert any(re.match(r"training 1 of 2, epoch 1 of 2, validation 1 of 2: 3 of 6 steps", line) for line in lines)


def test_a_training_that_goes_on_counts_from_where_it_was(task, labels, build_trainer, capsys, tmp_path):
    first = build_trainer(max_epochs=1)
    first.fit(task, labels)
    first.save_checkpoint(tmp_path / "saved.ckpt")
    bar = TrainingBar("val/accuracy")
    trainer = build_trainer(max_epochs=2, limit_val_batches=1, callbacks=[bar], enable_progress_bar=True)
    trainer.fit(task, labels, ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training, ")]
    assert line.startswith("training, epoch 2 of 2, step 6 of 6: ")
    assert bar._bar._done_before == 3
    assert bar._bar.seconds_left == 0.0


def test_a_bar_that_is_disabled_shows_nothing(task, labels, build_trainer, capsys):
    bar = TrainingBar("val/accuracy")
    bar.disable()
    build_trainer(max_steps=1, callbacks=[bar], enable_progress_bar=True).fit(task, labels)
    assert capsys.readouterr().err == ""
