"""What a frozen tower makes of an input is kept, so that each input is computed once."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from hashlib import blake2b
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

MOST_BYTES = 512 * 1024**2
"""Features that are kept: those of 200,000 images, at 640 float32 each."""

_ROWS = 8
"""Rows whose bytes are hashed at a time on a GPU, where each byte becomes eight."""


class KeptFeatures:
    """The features that a tower has made, by the content of what it made them of.

    Features are kept as long as the tower is frozen: no parameter is trained, nothing in it is random or follows the
    batch, and its weights, the adapters in use and the precision stay as they are. Otherwise each call computes, and
    nothing is kept. An input that has a gradient itself is computed each time. An input is known by its content, so it
    does not matter which row, split or table it comes from; an image that is augmented is another one. Features are
    those of the first batch that an input came in: in another batch they may differ in their last bits.

    On a GPU each call waits for the device once.

    Args:
        tower: The modules that the features depend on.
        most_bytes: Features that are kept. Once there are more, those that are known stay and no others are added;
            where none was asked for a second time by then, the features are forgotten, and none is kept any more.
    """

    def __init__(self, tower: Iterable[nn.Module], most_bytes: int = MOST_BYTES) -> None:
        self._tower = tuple(tower)
        self._left = self._most_bytes = most_bytes
        self._known: dict[bytes, Tensor] = {}
        self._has_helped = False
        self._state: object = None
        self._restored: dict[bytes, Tensor] = {}

    def __call__(self, compute: Callable[..., Tensor], keys: Callable[..., list[bytes]], *inputs: Tensor) -> Tensor:
        """Returns the features of a batch, and computes those that are not known.

        Args:
            compute: Makes features of shape (B, D) of the inputs.
            keys: Makes a key for each row of the inputs, equal for equal rows alone.
            inputs: Tensors of shape (B, ...).
        """
        if any(part.requires_grad for part in inputs):
            return compute(*inputs)
        state = self._find_state(inputs[0].device)
        if state is None or not self._most_bytes:
            self._forget(state)
            return compute(*inputs)
        if state != self._state:
            self._forget(state)
        rows = keys(*inputs)
        fresh = {key: row for row, key in enumerate(rows) if key not in self._known}
        self._has_helped |= len(fresh) < len(rows)
        if not fresh:
            return torch.stack([self._known[key] for key in rows])
        chosen = torch.tensor([*fresh.values()], device=inputs[0].device)
        with torch.no_grad():
            computed = compute(*(part[chosen] for part in inputs))
        found = dict(zip(fresh, computed, strict=True))
        features = torch.stack([found[key] if key in found else self._known[key] for key in rows])
        self._keep(found, computed.nbytes)
        return features

    def list_kept(self) -> dict[str, Tensor]:
        """Returns the features that are kept, in the order in which they were made, for `restore`.

        Returns:
            Their `keys`, uint8 of shape (bytes of all,), the `lengths` of these, int64 of shape (N,), and `features` of
            shape (N, D); only `flags`, int64 of shape (2,), where there are none.
        """
        known = self._known or self._restored
        flags = torch.tensor([self._has_helped, not self._most_bytes], dtype=torch.int64)
        if not known:
            return {"flags": flags}
        lengths = torch.tensor([len(key) for key in known])
        keys = torch.frombuffer(bytearray(b"".join(known)), dtype=torch.uint8)
        return {"flags": flags, "keys": keys, "lengths": lengths, "features": torch.stack([*known.values()])}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Keeps features that an earlier process has made with the same tower, in place of those kept so far.

        Args:
            kept: What `list_kept` returned there, with the features on the tower's device.
        """
        has_helped, has_given_up = kept["flags"].tolist()
        self._has_helped = bool(has_helped)
        if has_given_up:
            self._most_bytes = 0
        if "keys" not in kept:
            return
        content, ends = kept["keys"].numpy().tobytes(), kept["lengths"].cumsum(0).tolist()
        keys = (content[start:end] for start, end in zip([0, *ends], ends, strict=False))
        self._restored = dict(zip(keys, kept["features"], strict=True))
        self._known, self._state = {}, None

    def _keep(self, found: dict[bytes, Tensor], size: int) -> None:
        if size <= self._left:
            self._known |= found
            self._left -= size
        elif not self._has_helped:
            self._most_bytes = 0
            self._forget(None)

    def _forget(self, state: object) -> None:
        self._known, self._restored = self._restored if state is not None else {}, {}
        size = sum(features.nbytes for features in self._known.values())
        self._left, self._state = self._most_bytes - size, state

    def _find_state(self, device: torch.device) -> object:
        """All that features depend on beside the input, to be compared; None where the tower is not frozen."""
        switches: list[object] = []
        for module in (inner for part in self._tower for inner in part.modules()):
            if module.training and isinstance(module, _BatchNorm | _DropoutNd):
                return None
            if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
                switches.append((module.disable_adapters, module.active_adapters))
        tensors: list[Any] = [tensor for part in self._tower for tensor in (*part.parameters(), *part.buffers())]
        if any(tensor.requires_grad for tensor in tensors):
            return None
        precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        return device, precision, switches, [(id(tensor), tensor._version) for tensor in tensors]


def hash_rows(tensor: Tensor) -> list[bytes]:
    """Returns 16 bytes for each row of a tensor of shape (B, ...), by which equal rows are known.

    On a CPU they are BLAKE2's. Elsewhere only they leave the device: they are two sums of the row's bytes modulo
    2 ** 64, each byte times a random weight (multilinear hashing, Carter and Wegman 1979).
    """
    rows = tensor.contiguous().view(torch.uint8).flatten(1)
    if rows.is_cpu:
        return [blake2b(row, digest_size=16).digest() for row in rows.numpy()]
    weights = _draw_weights(rows.shape[1], rows.device)
    sums = [torch.stack([(part.long() * weight).sum(1) for weight in weights], dim=1) for part in rows.split(_ROWS)]
    return [row.tobytes() for row in torch.cat(sums).cpu().numpy()]


@cache
def _draw_weights(length: int, device: torch.device) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (2, length), generator=torch.Generator().manual_seed(0)).to(device)


def hash_texts(input_ids: Tensor, attention_mask: Tensor) -> list[bytes]:
    """Returns the bytes of each text's tokens, without padding.

    Args:
        input_ids: Int64 tensor of shape (B, T).
        attention_mask: Int64 tensor of shape (B, T), 0 on padding.
    """
    texts, masks = torch.stack([input_ids, attention_mask]).cpu().numpy()
    return [text[mask != 0].tobytes() for text, mask in zip(texts, masks, strict=True)]
