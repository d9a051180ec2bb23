"""TensorBoard's files of a training, read by TensorBoard itself."""

import pytest
from lightning.pytorch.loggers import CSVLogger

from finetune.training.loggers import TensorBoardLog, find_last_step

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder) -> dict[str, list[tuple[int, float]]]:
    events = reader.EventAccumulator(str(folder), purge_orphaned_data=True)
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def log(board, values) -> None:
    for step, value in values:
        board.log_metrics({"train/loss": value}, step)
    board.save()
    board.finalize("success")


def test_what_is_logged_again_counts_once(tmp_path):
    first = TensorBoardLog(tmp_path / "board")
    log(first, [(step, 0.5) for step in range(6)])
    saved = CSVLogger(tmp_path, name="save", version="")
    for step in range(3):
        saved.log_metrics({"train/loss": 0.5}, step)
    saved.save()
    again = TensorBoardLog(tmp_path / "board")
    again.go_on(tmp_path / "save" / "metrics.csv")
    log(again, [(step, 0.25) for step in range(3, 8)])
    expected = [(step, 0.5) for step in range(3)] + [(step, 0.25) for step in range(3, 8)]
    assert read(tmp_path / "board") == {"train/loss": expected}
    assert not list(tmp_path.rglob("hparams.yaml"))


def test_a_training_without_a_save_begins_anew(tmp_path):
    log(TensorBoardLog(tmp_path / "board"), [(0, 0.5), (1, 0.5)])
    again = TensorBoardLog(tmp_path / "board")
    again.go_on(tmp_path / "metrics.csv")
    log(again, [(0, 0.25)])
    assert read(tmp_path / "board") == {"train/loss": [(0, 0.25)]}


@pytest.mark.parametrize(("text", "step"), [("step,x\n0,1\n9,1\n4,1\n", 9), ("step,x\n", None), ("", None)])
def test_the_last_step_of_a_log(tmp_path, text, step):
    (tmp_path / "metrics.csv").write_text(text)
    assert find_last_step(tmp_path / "metrics.csv") == step
    assert find_last_step(tmp_path / "none.csv") is None
