"""What a training step costs on this machine, in each of the ways in which it can be computed."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.core.types import Batch
from finetune.model.batchnorm import FollowingBatchNorm2d
from finetune.training.task import AlignTask

ROUNDS = 4
"""Steps of each way, the first of which warms up."""

HOPELESS = 3.0
"""How many times the fastest way's first step another way's may take before it is left out."""

GAIN = 0.95
"""Share of the first way's time below which another way is worth its other rounding."""

_AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16}


class Way(NamedTuple):
    """How a step is computed.

    Attributes:
        precision: As Lightning names it: `32-true` or `bf16-mixed`.
        channels_last: Memory layout of the image tower; None is the one it has without being asked.
    """

    precision: str = "32-true"
    channels_last: bool | None = None


class Timing(NamedTuple):
    """What was found.

    Attributes:
        way: The fastest way; the first one unless another is clearly faster.
        seconds: The median seconds of a step of each way that was timed to the end.
    """

    way: Way
    seconds: dict[Way, float]


def time_ways(task: AlignTask, batch: Batch, ways: Sequence[Way], allow: Callable[[float], float]) -> Timing | None:
    """Times forward and backward pass in each way, taking turns.

    Weights, statistics, gradients and random numbers are left as they were.

    Args:
        task: What is trained, on its device.
        batch: A few rows; relative times hardly depend on their number.
        ways: The ways, that which is taken in doubt first.
        allow: Says how many seconds all may take, given those of the first way's first step.

    Returns:
        None if there was too little time for each way to take two turns.
    """
    started, device = time.perf_counter(), task.device
    batch = Batch(*(part.to(device) for part in batch))
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    layout, kept = task.towers.channels_last, _copy_statistics(task)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            end = started + allow(_time_step(task, batch, ways[0]))
            while len(taken[ways[0]]) < ROUNDS:
                for way, seconds in taken.items():
                    task.towers.channels_last = layout
                    seconds.append(_time_step(task, batch, way))
                    if time.perf_counter() > end:
                        break
                taken = leave_out_hopeless(taken)
                left = end - time.perf_counter()
                if left < sum(seconds[-1] for seconds in taken.values() if seconds):
                    break
        finally:
            task.towers.channels_last = layout
            task.zero_grad(set_to_none=True)
            for buffer, copy in kept:
                buffer.copy_(copy)
    if min(map(len, taken.values())) < 2:
        return None
    found = {way: statistics.median(seconds[1:]) for way, seconds in taken.items()}
    best = min(found, key=lambda way: found[way])
    return Timing(best if found[best] < GAIN * found[ways[0]] else ways[0], found)


def leave_out_hopeless(taken: dict[Way, list[float]]) -> dict[Way, list[float]]:
    """Leaves out the ways whose first step, warming up as those of others, took far longer than the fastest."""
    firsts = [seconds[0] for seconds in taken.values() if seconds]
    kept = {way: seconds for way, seconds in taken.items() if not seconds or seconds[0] <= HOPELESS * min(firsts)}
    first = next(iter(taken))
    return {first: taken[first], **kept}


def _time_step(task: AlignTask, batch: Batch, way: Way) -> float:
    device, dtype = batch.rows.device, _AUTOCAST[way.precision]
    if way.channels_last is not None:
        task.towers.channels_last = way.channels_last
    _wait(device)
    started = time.perf_counter()
    with torch.enable_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        embeddings = task(batch)
    features = (embeddings.image_features, embeddings.text_features)
    losses = [part.float().square().mean() for part in features if part is not None and part.requires_grad]
    torch.autograd.backward(losses)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _copy_statistics(task: AlignTask) -> list[tuple[Tensor, Tensor]]:
    following = [module for module in task.modules() if isinstance(module, FollowingBatchNorm2d)]
    return [(buffer, buffer.clone()) for module in following for buffer in module.buffers()]
