"""What the processes of the training-speed benchmark measure, one thing each."""

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from memory_watch import MemoryWatch
from speed_data import Job
from speed_meter import DEVICE, StepClock, count_flops, held_bytes, measure_limit, synchronise
from speed_score import train_to_score
from speed_side import Side
from speed_sides import SIDES
from speed_table import Record
from transformers.utils.logging import disable_progress_bar

LOOK_EVERY = {"cpu": 1, "cuda": 5}
"""Steps between two looks at the clock."""


def run_cell(what: str, job: Job) -> Any:
    """Measures one thing in this process.

    Args:
        what: `side`, `flops`, `limit`, or `score-SEED`.
        job: What to train.
    """
    disable_progress_bar()
    if what == "limit":
        return measure_limit()
    if what.startswith("score"):
        return train_to_score(job, int(what.split("-")[1]))
    return count_step(job) if what == "flops" else measure_side(job)


def measure_side(job: Job) -> Record:
    """Trains one side in this process."""
    watch = MemoryWatch(0.02, held_bytes)  # until the steps are timed, as it slows them down
    clock = StepClock(job.warmup, job.steps, LOOK_EVERY[DEVICE], watch.stop)
    try:
        loss = SIDES[job.side](job).train(clock)
        synchronise()
    except torch.OutOfMemoryError:
        return dict.fromkeys(("loss", "rates", "rate", "cpu_seconds", "memory"))
    return {
        "loss": loss,
        "rates": clock.rates,
        "rate": statistics.median(clock.rates),
        "cpu_seconds": clock.cpu_seconds,
        "memory": torch.cuda.max_memory_allocated() if DEVICE == "cuda" else watch.peak,
    }


def count_step(job: Job) -> dict[str, int]:
    """Counts the floating-point operations for each image of a step, without padding and with it, in an epoch."""
    side = Side(job)
    batches = [] if job.task == "head" else list(_text_lengths(side))
    lengths = {
        "flops_per_image": [length for batch in batches for length in batch],
        "padded_flops_per_image": [max(batch) for batch in batches for _ in batch],
    }
    return {name: count_flops(side.base.load(), job.rank, job.image_size, each) for name, each in lengths.items()}


def _text_lengths(side: Side) -> Iterator[list[int]]:
    """Yields the number of tokens of each text of a batch, for the batches of the first epoch."""
    dataset, train = side.data.dataset("train"), side.data.rows.indices("train")
    for batch in side.data.train_dataloader().batch_sampler:
        yield [len(side.data.texts.encode(dataset.caption(int(train[row]), epoch))) for row, epoch in batch]
