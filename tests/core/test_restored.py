"""Whoever reads a folder that a killed process had moved away, and not replaced yet, finds it where it was."""

from pathlib import Path

import pytest

from finetune.core.errors import CheckpointError, RecipeError
from finetune.export.artifact import require_exportable
from finetune.export.artifacts import verify
from finetune.inference.classify import classify
from finetune.model.base import Base
from finetune.pipeline.compare import find_measurement


@pytest.mark.parametrize(
    "read",
    [
        Base.open,
        verify,
        find_measurement,
        lambda folder: classify(folder, [__file__]),
        lambda folder: require_exportable(folder, overwrite=False),
    ],
)
def test_a_folder_is_back_before_it_is_read(read, tmp_path):
    former = tmp_path / ".mine.a1b2c3d4" / "mine.former"
    former.mkdir(parents=True)
    (former / "notes").write_text("mine")
    with pytest.raises((CheckpointError, RecipeError, FileExistsError), match=str(tmp_path / "mine")):
        read(Path(tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
