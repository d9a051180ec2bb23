"""What a recipe leaves to the machine (`auto`): found by a few steps before the training, and said."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.loading.loader import peek
from finetune.data.loading.workers import suggest_workers
from finetune.pipeline.recipe import Recipe
from finetune.training.schedules import total_steps
from finetune.training.task import AlignTask
from finetune.training.timing import Way, time_ways

SHARE, MOST_SECONDS = 0.025, 18.0
"""What timing steps may take: this share of the training, and no more than so many seconds."""

LOADING = 0.1
"""What timing the loader may take beside it, as a share of that."""

ROWS = 16
"""Rows that are timed: a quarter of a usual batch."""

PRECISION, LAYOUT, WORKERS = "trainer.precision", "model.channels_last", "data.num_workers"
MICRO_BATCH = "model.micro_batch"
_KEYS = (PRECISION, LAYOUT, WORKERS, MICRO_BATCH)


def suit_machine(recipe: Recipe, task: AlignTask, data: ImageTextDataModule) -> dict[str, Any]:
    """Finds the values that the recipe leaves to the machine, sets them, and says them.

    A training that is too short for timing takes float32, the usual layout, and a few workers.

    Args:
        recipe: Says `auto`; tasks and trainers that it builds from now on have the values that were found.
        task: What is trained.
        data: Its table.

    Returns:
        By recipe key the values, which repeat the training elsewhere, and under `seconds` those of a step of few rows;
        empty where nothing was left to the machine.
    """
    open_keys = [key for key in _KEYS if recipe.value(key) == "auto"]
    batch = next(peek(data.train_dataloader())).batch if open_keys else None
    if batch is None:
        return {}
    task.to(recipe.device)
    timed = [key for key in open_keys if key != MICRO_BATCH]
    found = _suit_time(recipe, task, data, batch, timed) if timed else {}
    return found | _suit_memory(recipe, task, data, batch) if MICRO_BATCH in open_keys else found


def use_choices(recipe: Recipe, task: AlignTask, data: ImageTextDataModule, values: Mapping[str, Any]) -> None:
    """Sets what was found for the machine, now or when a training began.

    Args:
        recipe: Tasks and trainers that it builds from now on have the values.
        task: What is trained.
        data: Its table.
        values: What `suit_machine` returned.
    """
    chosen = {key: value for key, value in values.items() if key in _KEYS}
    recipe.settle(chosen)
    if MICRO_BATCH in chosen:
        task.micro_batch = task.towers.micro_batch = chosen[MICRO_BATCH]
    if chosen.get(LAYOUT) is not None:
        task.towers.channels_last = chosen[LAYOUT]
    if WORKERS in chosen:
        data.set_workers(chosen[WORKERS])


def _suit_memory(recipe: Recipe, task: AlignTask, data: ImageTextDataModule, batch: Batch) -> dict[str, Any]:
    """Settles how many rows are embedded at a time, under the precision of the training."""
    with recipe.build_trainer().precision_plugin.forward_context():
        task.settle_micro_batch(batch)
    values = {MICRO_BATCH: task.micro_batch}
    use_choices(recipe, task, data, values)
    return values


def _suit_time(
    recipe: Recipe, task: AlignTask, data: ImageTextDataModule, batch: Batch, open_keys: Sequence[str]
) -> dict[str, Any]:
    """Settles what is timed."""
    trainer = recipe.build_trainer()
    trainer.datamodule = data  # type: ignore[attr-defined]  # as `Trainer.fit` does
    steps = total_steps(trainer) * trainer.accumulate_grad_batches * recipe.run.soup
    few = Batch(*(part[:ROWS] for part in batch))
    scale = len(batch.rows) / len(few.rows)

    def allow(seconds: float) -> float:
        return min(MOST_SECONDS, SHARE * seconds * scale * steps)

    timing = time_ways(task, few, _list_ways(recipe, open_keys), allow)
    way = timing.way if timing else Way()
    found: dict[str, Any] = {PRECISION: way.precision, LAYOUT: way.channels_last, WORKERS: data.workers}
    if timing and WORKERS in open_keys:
        step = scale * timing.seconds[way]
        found[WORKERS] = suggest_workers(data, step, at_most=LOADING * allow(timing.seconds[way]))
    values = {key: found[key] for key in open_keys}
    use_choices(recipe, task, data, values)
    seconds = {_describe(way): round(value, 6) for way, value in timing.seconds.items()} if timing else {}
    print(_say(values, seconds, len(few.rows)), file=sys.stderr)
    return {**values, "seconds": seconds}


def _list_ways(recipe: Recipe, open_keys: Sequence[str]) -> list[Way]:
    """Every way that the recipe leaves open on this device; the first is float32 as it is without being asked."""
    device, named = recipe.device, recipe.value(PRECISION)
    takes_bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    precisions = ["32-true", "bf16-mixed"] if takes_bf16 else ["32-true"]
    if PRECISION not in open_keys:
        precisions = ["bf16-mixed" if named in ("bf16", "bf16-mixed") else "32-true"]
    layouts = [device.type == "cpu", device.type != "cpu"] if LAYOUT in open_keys else [None]
    return [Way(precision, layout) for precision in precisions for layout in layouts]


def _describe(way: Way) -> str:
    layout = {True: ", channels last", False: ", channels first", None: ""}[way.channels_last]
    return f"{way.precision}{layout}"


def _say(values: dict[str, Any], seconds: dict[str, float], rows: int) -> str:
    chosen = ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items()).replace('"', "")
    if not seconds:
        return f"chosen without timing, as the training is short: {chosen}"
    timed = ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    return f"chosen for this machine: {chosen} (a step of {rows} rows: {timed})"
