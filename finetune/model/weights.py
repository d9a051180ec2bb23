"""The tensors of a checkpoint's folder, memory-mapped, and the fingerprint that says which they are."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from finetune.core.files import fingerprint_tensors

_DTYPES = {torch.float32: "F32", torch.int64: "I64"}


class Weights:
    """The tensors of a folder's `model*.safetensors`, opened once.

    They are mapped into memory, not copied, so whoever shares them must not write to them.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If the folder holds no such file.
        SafetensorError: If a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        shards = sorted(folder.glob("model*.safetensors"))
        if not shards:
            raise FileNotFoundError(f"Expected {folder} to hold model*.safetensors, but it holds none.")
        self.tensors: dict[str, Tensor] = {}
        self._dtypes: dict[str, str] = {}
        for shard in shards:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    self.tensors[name] = file.get_tensor(name)
                    self._dtypes[name] = file.get_slice(name).get_dtype()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tensors, however files divide them; see `finetune.core.files.fingerprint_tensors`."""
        return fingerprint_tensors(
            (name, self._dtypes[name], list(tensor.shape), as_bytes(tensor)) for name, tensor in self.tensors.items()
        )


def fingerprint_state(state: Mapping[str, Tensor]) -> str:
    """Returns the fingerprint that a folder of these tensors has.

    Args:
        state: Tensors on the CPU by name, in float32 or whole numbers.
    """
    return fingerprint_tensors(
        (name, _DTYPES[tensor.dtype], list(tensor.shape), as_bytes(tensor)) for name, tensor in state.items()
    )


def as_bytes(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor on the CPU, without a copy where they lie side by side."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
