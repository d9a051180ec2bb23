"""Commands that have to fail, and a run whose table has changed."""

import shutil
from collections.abc import Callable

import pandas as pd
import pytest

from finetune.commands.cli import main
from finetune.run.folder import RunFolder

CHANGES = ("1 row added: 'new.png'", "1 row removed: '35.png'", "1 row moved from train to test: '0.png'")
"""What `moved` has changed."""


@pytest.fixture
def moved(two_towers, colour_table, tmp_path) -> RunFolder:
    """A copy of the run whose recipe names a copy of the table: a row more, a row less, a row in another split."""
    folder, run = tmp_path / "table", RunFolder(tmp_path / "moved")
    shutil.copytree(colour_table.parent, folder)
    shutil.copytree(two_towers.path, run.path)
    rows = pd.read_csv(colour_table, dtype=str)
    rows.loc[0, "split"] = "test"
    rows.loc[35, "image"] = "new.png"
    shutil.copy(folder / "35.png", folder / "new.png")
    rows.to_csv(folder / "colours.csv", index=False)
    run.recipe.write_text(run.recipe.read_text().replace(str(colour_table), str(folder / "colours.csv")))
    return run


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Runs a command that has to fail, and returns its one line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1
        return found.err

    return run
