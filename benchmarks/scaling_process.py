"""What a process of the scaling benchmark does: trains as a run does, follows the steps, and times messages alone."""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from memory_watch import MemoryWatch, resident_bytes
from scaling_messages import Messages, time_messages, wire_bytes
from speed_cells import LOOK_EVERY
from speed_data import Job
from speed_meter import DEVICE, StepClock, synchronise
from speed_toolkit import ToolkitSide
from transformers.utils.logging import disable_progress_bar

from finetune.core import processes
from finetune.pipeline.devices import connected
from finetune.pipeline.run_recipe import quieten
from finetune.pipeline.train import fit
from finetune.run.folder import RunFolder

Record = dict[str, Any]


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


def main() -> None:
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    trials = Trials(**{**values, "jobs": [Job(**job) for job in values["jobs"]]})
    disable_progress_bar()
    quieten()
    before = resident_bytes()
    trainer = ToolkitSide(trials.jobs[0]).read(Path(trials.folder)).build_trainer()
    with connected(trainer):
        records = [train(job, trials, before) for job in trials.jobs]
        several, dimension, device = processes.count() > 1, records[0]["dimension"], trainer.strategy.root_device
        messages = time_messages(trials.rows, trials.numbers, trials.repeats, dimension, device) if several else []
        if processes.is_first():
            found = {"trainings": records, "messages": messages}
            Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
