"""Commands that have to fail."""

from collections.abc import Callable

import pytest

from finetune.commands.cli import main


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
