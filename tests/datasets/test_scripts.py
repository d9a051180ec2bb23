"""What every script of a data set does alike."""

import doctest
from pathlib import Path

import pytest

from .scripts import DATASETS, load_script

SCRIPTS = sorted(path.stem for path in DATASETS.glob("*.py"))
WITHOUT_WORDS = ("digits", "emoji", "foods", "footprints", "icons", "stamps", "units")
"""Those that find their sources by themselves."""


@pytest.mark.parametrize("name", WITHOUT_WORDS)
def test_a_foreign_folder_is_refused_before_anything_is_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither npm nor apt
    letter = tmp_path / "mine" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear", encoding="utf-8")
    assert load_script(name).main(["--output", str(letter.parent)]) == 2
    assert "to be absent, empty or written by this command, but it holds something else" in capsys.readouterr().err
    assert [path.name for path in letter.parent.iterdir()] == ["letter.txt"]
    assert letter.read_text(encoding="utf-8") == "dear"


def test_the_examples_of_all_scripts_hold() -> None:
    results = {name: doctest.testmod(load_script(name)) for name in SCRIPTS}
    assert sum(result.attempted for result in results.values()) > 6
    assert [name for name, result in results.items() if result.failed] == []
