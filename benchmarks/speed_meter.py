"""What is measured of a training: seconds of its steps, memory of its processes, the arithmetic it asks for."""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlignModel

IMAGE_TARGETS = ["expand_conv", "project_conv"]
TEXT_TARGETS = ["query", "key", "value", "dense", "text_projection"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def synchronise() -> None:
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class StepClock:
    """Notes when training steps start, so that everything between two of them counts, loading included.

    Args:
        warmup: Steps that are not counted.
        steps: Steps that are counted.
        every: Steps between two looks at the clock; the device is waited for at each look.
        when_warm: Called once, before the first look.
    """

    def __init__(self, warmup: int, steps: int, every: int, when_warm: Callable[[], None]) -> None:
        self.warmup = warmup
        self.total = warmup + steps
        self.every = every
        self.when_warm = when_warm
        self._started = 0
        self._images = 0
        self._looks: list[tuple[float, int]] = []
        self._cpu: list[float] = []

    def start_step(self, rows: int) -> None:
        """Notes the start of a step, or after the last step the end of it with 0 rows.

        Args:
            rows: Images of the step.
        """
        counted = self._started - self.warmup
        if counted == 0:
            self.when_warm()
        is_last = self._started == self.total
        if counted >= 0 and (counted % self.every == 0 or is_last):
            synchronise()
            if counted == 0 or is_last:
                self._cpu.append(_cpu_seconds())
            self._looks.append((time.perf_counter(), self._images))
        self._started += 1
        self._images += rows

    @property
    def rates(self) -> list[float]:
        """Images a second between each two looks."""
        pairs = itertools.pairwise(self._looks)
        return [(images - before) / (end - start) for (start, before), (end, images) in pairs]

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process and its workers for each image."""
        return (self._cpu[-1] - self._cpu[0]) / (self._looks[-1][1] - self._looks[0][1])


def _cpu_seconds() -> float:
    """CPU seconds of this process and its workers so far."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def held_bytes() -> int:
    """Returns the memory of this process and its workers, pages that they share counted once.

    Asking walks the page tables, which slows training down.
    """
    process = psutil.Process()
    return sum(map(_own_memory, [process, *process.children(recursive=True)]))


def _own_memory(process: psutil.Process) -> int:
    """Bytes of a process, its share of shared pages (PSS) on Linux, elsewhere what it alone holds (USS)."""
    try:
        info = process.memory_full_info()
    except psutil.Error:  # it has ended
        return 0
    found: int = getattr(info, "pss", info.uss)
    return found


def measure_limit(seconds: float = 2.0) -> dict[str, float]:
    """Measures how many GFLOP/s this machine multiplies square matrices at, by type: the median of many products.

    Args:
        seconds: For each type.
    """
    size = 8192 if DEVICE == "cuda" else 1024
    types = {"float32": torch.float32, **({"bfloat16": torch.bfloat16} if DEVICE == "cuda" else {})}
    return {name: _multiply(size, dtype, seconds) for name, dtype in types.items()}


def _multiply(size: int, dtype: torch.dtype, seconds: float) -> float:
    left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    product = left @ right
    found = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronise()
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        synchronise()
        found.append(2 * size**3 / (time.perf_counter() - start) / 1e9)
    return statistics.median(found[3:] or found)


def count_flops(model: AlignModel, rank: int, image_size: int, lengths: list[int]) -> int:
    """Counts the floating-point operations of a training step, forward and backward, without computing anything.

    Counted are the products of convolutions, linear layers and attention, two operations for each multiplication with
    its addition, in a model with plain PEFT adapters. Each text has its own length: no padding is counted.

    Args:
        model: The base; it is spoilt.
        rank: Rank of the adapters.
        image_size: Pixels a side.
        lengths: Tokens of each row's text; none where only the image tower is trained.
    """
    targets = [*IMAGE_TARGETS, *(TEXT_TARGETS if lengths else [])]
    adapted: Any = get_peft_model(model, LoraConfig(r=rank, target_modules=targets)).to("meta")
    rows = len(lengths) or 64
    with FlopCounterMode(display=False) as counter:
        pixel_values = torch.empty(rows, 3, image_size, image_size, device="meta")
        images = adapted.get_image_features(pixel_values=pixel_values).pooler_output
        texts = [_embed_texts(adapted, number, length) for length, number in Counter(lengths).items()]
        others = torch.cat(texts) if texts else torch.empty_like(images, requires_grad=False)
        (normalize(images, dim=-1) @ normalize(others, dim=-1).T).sum().backward()
    return int(counter.get_total_flops()) // rows


def _embed_texts(adapted: Any, number: int, length: int) -> Tensor:
    ids = torch.zeros(number, length, dtype=torch.long, device="meta")
    whole = torch.zeros(number, 1, length, length, device="meta")  # a mask that hides nothing
    return adapted.get_text_features(input_ids=ids, attention_mask=whole).pooler_output
