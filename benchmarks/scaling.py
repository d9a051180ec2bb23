"""How a training scales: images a second on 1, 2 and 4 processes, where a step's time goes, what one of each costs.

    python benchmarks/scaling.py                # writes benchmarks/results/scaling/DEVICE.json, in 6 minutes on 2 cores
    python benchmarks/scaling_table.py          # the tables of docs/scaling.md, from that file
    python benchmarks/scaling.py --random       # align-base's shape with random weights: a machine with several GPUs

Each number of processes trains as `finetune fit` does, one process by itself and several by `torchrun`, on a GPU each
where there are some: once with the same rows for each process (weak scaling), and once with the same batch in all
(strong scaling). The first steps are left out, and then some are timed whole; in some more the messages between the
processes are timed as well, for which a GPU is waited for. The numbers take turns, in every other round backwards.

On CPUs each process has one thread in all cases, so that processes are compared, not threads. More processes than cores
share them: no more than as many times as fast as there are cores can be reached. Loading happens in the process itself
there; pictures are kept decoded.

Unit costs are measured beside that: messages alone, one device's part of the loss of a large batch, shards, the order
of COYO-700M's rows.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from align_base import make_random_base
from scaling_costs import RESULTS, Record
from speed_data import Job, draw_tables
from speed_meter import DEVICE
from training_speed import describe_device
from transformers.utils.logging import disable_progress_bar

from finetune.core.cores import count_cores
from finetune.core.files import write_json

HERE = Path(__file__).parent
PAIRS = ([16, 64], [64, 1024], [128, 8192], [128, 32768], [512, 32768])
"""Rows of a device, and of all devices, whose loss is timed."""


def batch_sizes(processes: int, rows: int, same: int) -> list[int]:
    """Batches that a number of processes trains with, the smallest first: weak, strong, and of one process one between.

    Args:
        processes: How many.
        rows: Rows of each, where the batch grows with their number.
        same: Rows of the batch that all numbers of processes share.

    Example:
        >>> batch_sizes(1, 16, 64), batch_sizes(2, 16, 64), batch_sizes(4, 16, 64)
        ([16, 32, 64], [32, 64], [64])
    """
    between = [2 * rows] if processes == 1 and 2 * rows < same else []
    return sorted({rows * processes, same, *between})


def start(options: argparse.Namespace, words: Sequence[str], processes: int = 1) -> None:
    """Runs a program of this folder in so many processes, and waits.

    Args:
        options: The command's.
        words: The program's file and its arguments.
        processes: How many; several are started by `torchrun`.

    Raises:
        SystemExit: If it fails.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, "-W", "ignore", *(torchrun if processes > 1 else []), *words]
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{processes} processes failed:\n{done.stderr[-3000:]}")


def train(options: argparse.Namespace, job: Job, processes: int, folder: Path) -> Record:
    """Trains by so many processes with each size of batch, and returns what they measured.

    Args:
        options: The command's.
        job: What, but for the size of a batch.
        processes: How many.
        folder: An empty one.
    """
    sizes = batch_sizes(processes, options.rows, options.batch_size)
    trials = {
        "jobs": [dataclasses.asdict(dataclasses.replace(job, batch_size=size)) for size in sizes],
        **{"split": options.split, "folder": str(folder / "runs"), "repeats": 9},
        **{"rows": [16, 64, 256, 1024], "numbers": [10_000, 100_000, 1_000_000]},
    }
    write_json(folder / "trials.json", trials)
    words = [str(HERE / "scaling_process.py"), str(folder / "trials.json"), str(folder / "found.json")]
    start(options, words, processes)
    found: Record = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


def measure_units(options: argparse.Namespace, dimension: int, folder: Path) -> Record:
    """Measures what one process can by itself.

    Args:
        options: The command's.
        dimension: Of an embedding.
        folder: Where to write.
    """
    settings = {
        **{"dimension": dimension, "image_size": options.image_size, "repeats": 3},
        **{"pairs": PAIRS, "shard_rows": 1000, "output": str(folder / "units.json")},
    }
    start(options, [str(HERE / "scaling_units.py"), json.dumps(settings)])
    found: Record = json.loads((folder / "units.json").read_text(encoding="utf-8"))
    return found


def measure_all(options: argparse.Namespace) -> Record:
    """Measures all rounds, and the unit costs.

    Args:
        options: The command's.
    """
    trainings: list[Record] = []
    messages: list[Record] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_random_base(folder) if options.random else options.checkpoint
        steps = options.warmup + options.steps + options.split + 1
        most = max(options.batch_size, options.rows * max(options.processes))
        table = draw_tables(folder, most, steps)["captions"]
        job = Job(
            *("captions", "ours", checkpoint, str(table), options.image_size, most),
            *(options.warmup, options.steps, options.workers, options.bf16),
        )
        for number in range(options.rounds):
            for processes in options.processes if number % 2 == 0 else options.processes[::-1]:
                own = folder / f"{number}-{processes}"
                own.mkdir()
                found = train(options, job, processes, own)
                trainings += [{"round": number, **record} for record in found["trainings"]]
                messages += [{"round": number, **record} for record in found["messages"]]
                print(f"round {number + 1}, {processes} processes: {found['trainings'][-1]['rates']}", file=sys.stderr)
        units = measure_units(options, trainings[0]["dimension"], folder)
    return {"trainings": trainings, "messages": messages, "units": units}


def find_spread(trainings: Sequence[Record]) -> list[float]:
    """Times of one process's steps as multiples of the median of their training.

    Args:
        trainings: Of all numbers of processes.
    """
    found: list[float] = []
    for record in trainings:
        if record["processes"] == 1:
            seconds = 1 / torch.tensor(record["rates"], dtype=torch.float64)
            found += (seconds / seconds.median()).tolist()
    return [round(value, 4) for value in sorted(found)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", help="how many, 1 among them (1 2 4; on GPUs up to all)")
    parser.add_argument("--rows", type=int, help="of each process, weak scaling (16; 4 of --random; 64 on GPUs)")
    parser.add_argument(
        "--batch-size", type=int, help="of all processes, strong scaling (four times that; 128 on GPUs)"
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a training (%(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (%(default)s)")
    parser.add_argument("--split", type=int, default=4, help="steps after them whose messages are timed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="starts of each number of processes (%(default)s)")
    parser.add_argument("--threads", type=int, help="of each process (1; on GPUs its share of the cores)")
    parser.add_argument("--workers", type=int, help="of each process, that read images (0; on GPUs its share)")
    parser.add_argument("--image-size", type=int, help="pixels a side (96; 289 with --random)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=DEVICE == "cuda", help="autocast")
    parser.add_argument("--random", action="store_true", help="align-base's shape, random weights")
    parser.add_argument("--checkpoint", default="align-mini", help="hub id or folder (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS.parent, help="folder (%(default)s)")
    return parser


def fill_in(options: argparse.Namespace) -> None:
    """Sets what depends on other options and on the machine.

    Raises:
        SystemExit: If one process is not among those that are compared, or there are too few GPUs.
    """
    cards = torch.cuda.device_count()
    options.processes = options.processes or ([n for n in (1, 2, 4, 8, 16) if n <= cards] if cards else [1, 2, 4])
    if 1 not in options.processes or (cards and max(options.processes) > cards):
        raise SystemExit(
            f"Expected --processes to hold 1, and no more than {cards or 'you like'}, but got {options.processes}."
        )
    share = max(1, count_cores() // max(options.processes))
    options.threads = options.threads or (share if cards else 1)
    options.workers = (min(share, 12) if cards else 0) if options.workers is None else options.workers
    options.rows = options.rows or (64 if cards else 4 if options.random else 16)
    options.batch_size = options.batch_size or (128 if cards else 4 * options.rows)
    options.image_size = options.image_size or (289 if options.random else 96)


def main() -> None:
    options = build_parser().parse_args()
    fill_in(options)
    disable_progress_bar()
    load = os.getloadavg()[0]
    found = measure_all(options)
    kept = (
        "rows",
        "batch_size",
        "steps",
        "warmup",
        "split",
        "rounds",
        "threads",
        "workers",
        "image_size",
        "bf16",
        "random",
    )
    settings: dict[str, Any] = {key: getattr(options, key) for key in kept}
    settings["checkpoint"] = "align-base's shape, random weights" if options.random else Path(options.checkpoint).name
    machine = {**describe_device(), "cores": count_cores(), "threads": options.threads, "load": load}
    device = torch.cuda.get_device_name().lower().replace(" ", "-") if DEVICE == "cuda" else "cpu"
    path = options.results / f"{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine, "settings": settings, "spread": find_spread(found["trainings"]), **found}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    from scaling_table import write_tables

    print(write_tables(results))


if __name__ == "__main__":
    main()
