"""Products of matrices in full float32, whatever precision the program around them asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Computes as if there were no autocast and no `torch.set_float32_matmul_precision`, which Lightning advises.

    TF32 and bfloat16 move a cosine similarity by up to 1e-3, a hundred times what counts as a tie.

    Args:
        device: Where the matrices lie.
    """
    by_backend = [backend.fp32_precision for backend in _BACKENDS]
    try:
        for_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to say where a backend's own setting alone was changed
        for_all = "highest"
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(for_all)
        for backend, precision in zip(_BACKENDS, by_backend, strict=True):
            backend.fp32_precision = precision
