"""`finetune report`: what it says beside the page."""

import shutil
from pathlib import Path

from finetune.commands.cli import main

from .conftest import CHANGES


def test_what_has_changed_of_the_table_is_told(moved, capsys):
    assert main(["report", str(moved.path)]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [f"table, since the training: {change}" for change in CHANGES]
    assert shown.out == f"{moved.report}\n"


def test_a_table_that_is_the_same_is_not_spoken_of(two_towers, tmp_path, capsys):
    run = Path(shutil.copytree(two_towers.path, tmp_path / "run"))
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err == ""
    (run / "table.parquet").unlink()
    assert main(["report", str(run)]) == 0
    assert (
        "This run has no record of the table it was trained on: an earlier release made it." in capsys.readouterr().err
    )
