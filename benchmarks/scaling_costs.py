"""What one of each costs, fitted to what `scaling.py` measured."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

Record = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "scaling" / "cpu.json"

CHUNK = 1 << 22
"""Pairs whose logits a device holds at a time (`finetune.objectives.objective.PAIRS`)."""


@dataclass(frozen=True)
class Costs:
    """Unit costs, in seconds and bytes.

    Attributes:
        step: Seconds of a step on one device, however few its rows.
        image: Seconds of a row: both towers, forward and backward.
        loss: Seconds of the loss, however few its pairs.
        pair: Seconds of a pair of a row and a column of the loss.
        hop: Seconds until a message of no bytes is there.
        gather_rate: Bytes of features a second that a device receives.
        reduce_rate: Bytes of gradients a second.
        gathers: Messages of a step in which rows of all devices are gathered, or their gradients sent back.
        gather_bytes: Bytes of a row of another device in them.
        reduces: All-reduces of gradients of a step.
        smalls: All-reduces of counts and logged values.
        gradient_bytes: Bytes of the gradients of what is trained.
        dimension: Numbers of an embedding.
        memory: Bytes that a device holds without any row.
        image_memory: Bytes of each row that is embedded at once.
        pair_memory: Bytes of each pair of the loss.
        decode: Core seconds to read and decode a stored picture.
        headers: Core seconds of a row when a shard is first opened.
        index: Core seconds of a row when its saved index is read.
        image_bytes: Bytes of a stored picture.
        tar_bytes: Bytes of a row in a tar.
        index_bytes: Bytes of a row in the saved index.
    """

    step: float
    image: float
    loss: float
    pair: float
    hop: float
    gather_rate: float
    reduce_rate: float
    gathers: float
    gather_bytes: float
    reduces: float
    smalls: float
    gradient_bytes: float
    dimension: float
    memory: float
    image_memory: float
    pair_memory: float
    decode: float
    headers: float
    index: float
    image_bytes: float
    tar_bytes: float
    index_bytes: float


def read_results(path: Path) -> Record:
    """Reads a file of `scaling.py`.

    Args:
        path: The file.

    Raises:
        SystemExit: If there is none.
    """
    if not path.is_file():
        raise SystemExit(f"Expected {path} to be there. Write it by `python benchmarks/scaling.py`, or pass --results.")
    results: Record = json.loads(path.read_text(encoding="utf-8"))
    return results


def median_of(trainings: Sequence[Record], *keys: str) -> float:
    """The median over rounds of what stands under some keys.

    Args:
        trainings: Records of the same training.
        keys: One inside the other.
    """
    found = []
    for record in trainings:
        value: Any = record
        for key in keys:
            value = value[key]
        found.append(value)
    return statistics.median(found)


def group(trainings: Sequence[Record]) -> dict[tuple[int, int], list[Record]]:
    """Groups trainings by number of processes and rows of a batch, in ascending order.

    Args:
        trainings: Of all rounds.
    """
    keys = sorted({(record["processes"], record["batch_size"]) for record in trainings})
    return {key: [one for one in trainings if (one["processes"], one["batch_size"]) == key] for key in keys}


def step_seconds(trainings: Sequence[Record]) -> float:
    """Seconds of a step: the median of the steps of a round, then of the rounds.

    Args:
        trainings: Records of the same training.
    """
    return statistics.median(one["batch_size"] / statistics.median(one["rates"]) for one in trainings)


def fit_costs(results: Record) -> Costs:
    """Fits unit costs: those of a device to trainings by one process, those of messages to messages timed alone.

    No training by several processes is fitted to, so that they check the prediction; they say only how many messages a
    step has, and of how many bytes.

    Args:
        results: What `scaling.py` has written.
    """
    units, alone = results["units"], [one for one in results["trainings"] if one["processes"] == 1]
    loss, pair, pair_memory = _fit_loss(units["loss"])
    cells = {rows: own for (_, rows), own in group(alone).items()}
    rest = [step_seconds(own) - loss - pair * rows**2 for rows, own in cells.items()]
    step, image = _fit_line([*cells], rest)
    memory, image_memory = _fit_line([*cells], [median_of(own, "memory") for own in cells.values()])
    shard = units["shard"]
    first = alone[0]
    return Costs(
        *(step, image, loss, pair),
        *_fit_messages(results["messages"]),
        *_count_messages(results["trainings"], first["dimension"]),
        *(first["gradient_bytes"], first["dimension"], memory, image_memory, pair_memory),
        *(shard["read"] + shard["decode"], shard["headers"], shard["index"]),
        *(shard["bytes"]["picture"], shard["bytes"]["tar"], shard["bytes"]["kept"]),
    )


def _fit_line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Returns the constant and the slope of a line, neither below zero, with the least relative errors.

    With one size the line goes through zero.
    """
    if len(sizes) == 1:
        return 0.0, values[0] / sizes[0]
    return tuple(_fit(np.stack([np.ones(len(sizes)), np.asarray(sizes, float)], axis=1), values))  # type: ignore[return-value]


def _fit(terms: np.ndarray, values: Sequence[float]) -> list[float]:
    """Returns factors of terms, none below zero, with the least squared relative errors."""
    scale = np.asarray(values, float)[:, None]
    found: list[float] = nnls(terms / scale, np.ones(len(values)))[0].tolist()
    return found


def _fit_loss(measured: Sequence[Record]) -> tuple[float, float, float]:
    """Seconds of a loss and of a pair, and the bytes of a pair where so many are held at a time that they count."""
    pairs = [one["rows"] * one["columns"] for one in measured]
    constant, slope = _fit_line(pairs, [one["seconds"] for one in measured])
    memory = max(
        one["memory"] / min(count, CHUNK) for one, count in zip(measured, pairs, strict=True) if count >= 1 << 18
    )
    return constant, slope, memory


def _fit_messages(measured: Sequence[Record]) -> tuple[float, float, float]:
    """Seconds of a hop, and the two rates; not a number without any messages."""
    if not measured:
        return (float("nan"),) * 3
    terms = []
    for one in measured:
        others, nbytes = one["processes"] - 1, one["bytes"]
        gathered = 2 * others * nbytes if one["kind"] == "gather" else 0
        reduced = 2 * others * nbytes / one["processes"] if one["kind"] == "reduce" else 0
        terms.append([2 * others, gathered, reduced])
    hop, gather, reduce = _fit(np.asarray(terms, float), [one["seconds"] for one in measured])
    return hop, 1 / gather, 1 / reduce


def _count_messages(trainings: Sequence[Record], dimension: int) -> tuple[float, float, float, float]:
    """Messages of a step and their bytes, as they passed; of one process alone, as they would."""
    several = [one for one in trainings if one["processes"] > 1]
    if not several:
        return 18.0, 3.0 * (8 * dimension + 36), 1.0, 8.0
    one, number = several[-1], several[-1]["messages"]
    foreign = (one["processes"] - 1) * one["batch_size"] / one["processes"]
    return number["gather"], one["bytes"]["gather"] / foreign, number["reduce"], number["small"]
