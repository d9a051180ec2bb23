"""The fingerprint of weights: what they are, not how files hold them."""

import pytest
import torch
from safetensors.torch import save_file

from finetune.model.weights import Weights, fingerprint_state

from ..fingerprints import fingerprint_weights


def test_fingerprint_of_weights_sees_tensors_not_layout(tmp_path):
    one, two = torch.arange(3.0), torch.ones(2, 2, dtype=torch.float16)
    whole, sharded, changed = (tmp_path / name for name in ("whole", "sharded", "changed"))
    for folder in (whole, sharded, changed):
        folder.mkdir()
    save_file({"a": one, "b": two}, whole / "model.safetensors")
    save_file({"b": two}, sharded / "model-00001-of-00002.safetensors")
    save_file({"a": one}, sharded / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    save_file({"a": one.view(1, 3), "b": two}, changed / "model.safetensors")
    found = [Weights(folder).fingerprint for folder in (whole, sharded, changed)]
    assert found[0] == found[1] != found[2]
    assert found == [fingerprint_weights(folder) for folder in (whole, sharded, changed)]


def test_fingerprint_of_a_state_is_that_of_its_folder(tmp_path):
    state = {"b": torch.ones(2, 2), "a": torch.arange(3), "t": torch.tensor(0.5)}
    save_file(state, tmp_path / "model.safetensors")
    assert fingerprint_state(state) == fingerprint_weights(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="to hold model"):
        Weights(tmp_path)
