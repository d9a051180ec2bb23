"""Training checkpoints on disks that refuse them."""

import subprocess
import sys

import pytest
import torch

from finetune.training.whole_files import WholeFiles


def test_a_checkpoint_is_read_by_torch_alone(tmp_path):
    state = {"weights": torch.arange(3.0), "step": 7}
    WholeFiles().save_checkpoint(state, tmp_path / "new" / "last.ckpt")
    found = torch.load(tmp_path / "new" / "last.ckpt", weights_only=True)
    assert found["step"] == 7
    assert found["weights"].equal(state["weights"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]


FULL = """
import resource, signal, sys, torch
from finetune.training.whole_files import WholeFiles
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    WholeFiles().save_checkpoint({"weights": torch.zeros(100_000)}, sys.argv[1])
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.slow
def test_where_it_does_not_fit_the_former_one_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"step": 1}, path)
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["27", str(path)], done.stderr
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        WholeFiles().save_checkpoint({"step": 1}, tmp_path / "file" / "last.ckpt")
