"""Seconds of training until the toolkit's score on held-out rows is that of the tuned Trainer with PEFT at its end."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from speed_data import Job
from speed_plain import TrainerSide
from speed_toolkit import OurSide
from transformers import TrainerCallback

from finetune.evaluation.evaluate import evaluate
from finetune.inference.models import ask_towers
from finetune.model.towers import AlignTowers
from finetune.training.task import AlignTask


def train_to_score(job: Job, seed: int) -> list[list[float]]:
    """Trains one side in this process, see `train_peer` and `train_ours`."""
    return train_ours(job, seed) if job.side == "ours" else train_peer(job, seed)


class Stopwatch(TrainerCallback):
    """Seconds from the first step to the end of the last."""

    seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self._start


def train_peer(job: Job, seed: int) -> list[list[float]]:
    """Trains the tuned peer for all epochs, and returns its seconds and its score.

    Args:
        job: Says for how many epochs; its table's `val` rows are scored.
        seed: Draws the order of the rows and the adapters.
    """
    side, watch = TrainerSide(job), Stopwatch()
    torch.manual_seed(seed)
    model = side.build_model()
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": job.epochs}
    side.fit(model, [watch], train_sampling_strategy="random", seed=seed, **schedule)
    towers = AlignTowers(model.get_base_model().eval(), levels=side.base.levels)
    found = evaluate(ask_towers(towers, None), side.data.loader("val"), side.data.kind.metric())
    return [[watch.seconds, found.main[1]]]


class ScoreClock(Callback):
    """Notes the score of each validation and the seconds of training before it, validations left out."""

    def __init__(self) -> None:
        self.scores: list[list[float]] = []
        self._trained = 0.0
        self._start: float | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        self._start = self._start or time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: AlignTask) -> None:
        if self._start is not None:
            self._trained += time.perf_counter() - self._start
            self._start = None

    def on_validation_end(self, trainer: Trainer, pl_module: AlignTask) -> None:
        if not trainer.sanity_checking:
            score = float(trainer.callback_metrics[f"val/{pl_module.metric.headline}"])
            self.scores.append([self._trained, score])


def train_ours(job: Job, seed: int) -> list[list[float]]:
    """Trains a run's training with four validations an epoch, and returns the seconds and the score of each.

    Args:
        job: Says for how many epochs; its table's `val` rows are scored.
        seed: As for `train_peer`.
    """
    clock = ScoreClock()
    length = ("--trainer.max_epochs", job.epochs, "--trainer.val_check_interval", 0.25)
    OurSide(job).fit(clock, *length, "--run.seed", seed)
    return clock.scores


def compare_times(job: Job, rounds: int, in_fresh_process: Callable[[str, Job], Any]) -> str:
    """Trains both sides in turn, and says how long each took to the peer's final score.

    Args:
        job: What to train.
        rounds: How often, each time with another seed.
        in_fresh_process: Runs a cell of the command.
    """
    lines = [
        "| round | peer s | peer score | ours s to that | share | ours s in all | ours score |",
        f"|{7 * ' ---: |'}",
    ]
    shares = []
    for number in range(rounds):
        peer, ours = (
            in_fresh_process(f"score-{number}", dataclasses.replace(job, side=side))
            for side in ("trainer-tuned", "ours")
        )
        seconds, score = peer[-1]
        reached = first_time(ours, score)
        shares.append(float("inf") if reached is None else reached / seconds)
        shown = ("-", "-") if reached is None else (f"{reached:.0f}", f"{shares[-1]:.2f}")
        lines.append(
            f"| {number + 1} | {seconds:.0f} | {score:.4f} | {shown[0]} | {shown[1]} "
            f"| {ours[-1][0]:.0f} | {ours[-1][1]:.4f} |"
        )
    return "\n".join([*lines, f"\nMedian share of the peer's time: {statistics.median(shares):.2f}"])


def first_time(scores: Sequence[Sequence[float]], wanted: float) -> float | None:
    """The seconds at which a score was first reached, None where it never was.

    Args:
        scores: Seconds and score of each validation, in order.
        wanted: The score.
    """
    return next((seconds for seconds, score in scores if score >= wanted), None)
