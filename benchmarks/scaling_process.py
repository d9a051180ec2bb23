"""What a process of the scaling benchmark does: trains as a run does, follows the steps, and times messages alone."""

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning import Callback
from memory_watch import MemoryWatch, resident_bytes
from speed_cells import LOOK_EVERY
from speed_data import Job
from speed_meter import DEVICE, StepClock, synchronise
from speed_toolkit import ToolkitSide
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from finetune.core import processes
from finetune.pipeline.devices import connected
from finetune.pipeline.run_recipe import quieten
from finetune.pipeline.train import fit
from finetune.run.folder import RunFolder

Record = dict[str, Any]

LOGGED = 64
"""Bytes up to which an all-reduce of floats is one of logged values, not of gradients."""


@dataclass(frozen=True)
class Trials:
    """What the processes of one start do, in this order.

    Args:
        jobs: Trainings.
        split: Steps of each, after those that are timed, in which messages are timed too.
        folder: Where runs are written, the same for all processes.
        rows: Rows of each process in gathers that are timed alone.
        numbers: Numbers in all-reduces that are timed alone.
        repeats: How often each.
    """

    jobs: list[Job]
    split: int
    folder: str
    rows: list[int]
    numbers: list[int]
    repeats: int


class Messages:
    """Times what passes between the processes, by what it is for, while a `with` statement lasts.

    Embeddings are gathered and their gradients sent back; gradients of adapters are all-reduced; all else are counts
    and logged values, the first of which waits for the slowest process. On CUDA the device is waited for before and
    after each message.

    Attributes:
        seconds: Of each kind.
        bytes: Of each kind, that this process receives, if an all-reduce passes around a ring.
        number: Of messages of each kind.
    """

    _NAMES = ("all_gather", "all_to_all_single", "all_reduce")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self.number: dict[str, int] = defaultdict(int)
        self._plain = {name: getattr(dist, name) for name in self._NAMES}

    def __enter__(self) -> Self:
        for name, send in self._plain.items():
            setattr(dist, name, self._follow(name, send))
        return self

    def __exit__(self, *_: object) -> None:
        for name, send in self._plain.items():
            setattr(dist, name, send)

    def _follow(self, name: str, send: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(send)
        def timed(*args: Any, **options: Any) -> Any:
            kind, received = classify(name, *args[:1])
            synchronise()
            started = time.perf_counter()
            done = send(*args, **options)
            synchronise()
            self.seconds[kind] += time.perf_counter() - started
            self.bytes[kind] += received
            self.number[kind] += 1
            return done

        return timed


def classify(name: str, into: Tensor | list[Tensor]) -> tuple[str, float]:
    """Says what a message is for, and how many bytes of it each process receives.

    Args:
        name: The function of `torch.distributed`.
        into: Its first argument: where the result goes.

    Returns:
        `gather`, `reduce` or `small`, and bytes; an all-reduce goes around a ring twice.
    """
    others = (dist.get_world_size() - 1) / dist.get_world_size()
    if name != "all_reduce":
        return "gather", others * sum(part.nbytes for part in (into if isinstance(into, list) else [into]))
    assert isinstance(into, Tensor)
    is_gradient = into.is_floating_point() and into.nbytes > LOGGED
    return "reduce" if is_gradient else "small", 2 * others * into.nbytes


class Follows(Callback):
    """Tells the clock of steps, and times the parts of the steps after them; a last step is only started.

    Args:
        clock: Of the steps that are timed whole.
        split: Number of the steps after those.
        rows: Rows of a batch, over all processes.

    Attributes:
        messages: Of the split steps.
        seconds: Of the split steps.
        wire: Bytes that passed through the loopback in them.
    """

    def __init__(self, clock: StepClock, split: int, rows: int) -> None:
        self.clock = clock
        self.split = split
        self.rows = rows
        self.messages = Messages()
        self.seconds = 0.0
        self.wire = 0
        self._started = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._started <= self.clock.total:
            self.clock.start_step(self.rows)
        if self._started == self.clock.total:
            self._look(-1)
            self.messages.__enter__()
        if self._started == self.clock.total + self.split:
            self.messages.__exit__()
            self._look(1)
        self._started += 1

    def _look(self, sign: int) -> None:
        synchronise()
        self.seconds += sign * time.perf_counter()
        self.wire += sign * wire_bytes()


def wire_bytes() -> int:
    """Bytes that have passed through this machine's loopback so far; 0 where nobody counts them."""
    path = Path("/proc/net/dev")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.strip().startswith("lo:")), 0)


def train(job: Job, trials: Trials, before: int) -> Record:
    """Trains, and returns what the processes measured.

    Args:
        job: What.
        trials: Says how many steps are split, and where the run is written.
        before: Bytes that this process held before any model.
    """
    folder = Path(trials.folder) / f"{processes.count()}-{job.batch_size}"
    steps = job.total + trials.split + 1
    recipe = ToolkitSide(job).read(folder, "--trainer.max_steps", steps, "--trainer.enable_progress_bar", "false")
    watch = MemoryWatch(0.02)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = StepClock(job.warmup, job.steps, LOOK_EVERY[DEVICE], watch.stop)
    follows = Follows(clock, trials.split, job.batch_size)
    data, task = recipe.build_data(), recipe.build_trainable()
    task.configure_callbacks = lambda: [follows]  # Lightning adds them to those of the trainer
    fit(recipe, task, data, RunFolder(recipe.folder))
    memory = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else watch.peak - before
    return {
        "processes": processes.count(),
        "batch_size": job.batch_size,
        "rates": clock.rates,
        "gradient_bytes": sum(parameter.nbytes for parameter in task.parameters() if parameter.requires_grad),
        "dimension": task.towers.align.config.projection_dim,
        **join(processes.from_all({"cpu_seconds": clock.cpu_seconds, "memory": memory, **describe(follows)})),
    }


def describe(follows: Follows) -> Record:
    """What a process saw of a step, on average: seconds, and of each kind of message seconds, bytes, and their number.

    Args:
        follows: The training.
    """
    messages, steps = follows.messages, follows.split
    seconds = {"step": follows.seconds, **messages.seconds}
    return {
        "seconds": {kind: value / steps for kind, value in seconds.items()},
        "bytes": {kind: value / steps for kind, value in messages.bytes.items()},
        "messages": {kind: value / steps for kind, value in messages.number.items()},
        "wire": follows.wire / steps,
    }


def join(found: list[Record]) -> Record:
    """What all processes saw: CPU seconds of all, the most memory, the mean seconds, and the first one's messages.

    Args:
        found: What each saw.
    """
    seconds = {kind: statistics.mean(one["seconds"][kind] for one in found) for kind in found[0]["seconds"]}
    cpu, memory = (sum(one["cpu_seconds"] for one in found), max(one["memory"] for one in found))
    return {**found[0], "cpu_seconds": cpu, "memory": memory, "seconds": seconds}


def time_messages(trials: Trials, dimension: int, device: torch.device) -> list[Record]:
    """Times gathers of embeddings, forward and back, and all-reduces, each alone, as a step does them.

    Args:
        trials: Says of how many rows and numbers.
        dimension: Of an embedding; a row has one of each tower.
        device: The process's.
    """
    world, found = processes.count(), []

    def note(kind: str, nbytes: int, send: Callable[[], object]) -> None:
        seconds = [time_message(send) for _ in range(3 + trials.repeats)][3:]
        found.append({"kind": kind, "processes": world, "bytes": nbytes, "seconds": statistics.median(seconds)})

    for rows in trials.rows:
        features = torch.randn(rows, 2 * dimension, device=device, requires_grad=True)
        note("gather", features.nbytes, partial(gather_and_return, features))
    for number in trials.numbers:
        gradients = torch.randn(number, device=device)
        note("reduce", gradients.nbytes, partial(processes.average, gradients))
    note("small", 8 * world, partial(processes.count_rows, 1))
    return found


def gather_and_return(features: Tensor) -> None:
    """Gathers the features of all processes, and sends the gradients of each back to it."""
    processes.gather_features(features, [len(features)] * processes.count()).sum().backward()


def time_message(send: Callable[[], object]) -> float:
    """Seconds of a message for which all processes are ready."""
    processes.count_rows(0)
    synchronise()
    started = time.perf_counter()
    send()
    synchronise()
    return time.perf_counter() - started


def main() -> None:
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    trials = Trials(**{**values, "jobs": [Job(**job) for job in values["jobs"]]})
    disable_progress_bar()
    quieten()
    before = resident_bytes()
    trainer = ToolkitSide(trials.jobs[0]).read(Path(trials.folder)).build_trainer()
    with connected(trainer):
        records = [train(job, trials, before) for job in trials.jobs]
        several = processes.count() > 1
        messages = time_messages(trials, records[0]["dimension"], trainer.strategy.root_device) if several else []
        if processes.is_first():
            found = {"trainings": records, "messages": messages}
            Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
