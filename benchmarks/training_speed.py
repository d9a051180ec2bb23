"""Images a second of a training step, and its memory: the toolkit beside Trainer with PEFT and beside bare loops.

    finetune prepare emoji && python benchmarks/training_speed.py
    python benchmarks/training_speed.py --random       # align-base's shape with random weights: a GPU, under 8 minutes
    python benchmarks/training_speed.py --to-score 3   # seconds to the tuned peer's score after 3 epochs of captions

All sides train the same rows in the same batches, with adapters of the same rank, AdamW and no augmentation;
`speed_sides.py` says what they are. Each is a process of its own, and they take turns over the rounds. The time of a
step is that between the starts of two steps, so loading counts; the first steps are left out. Images/s are the median
of the steps of a round, then of the rounds; ratios are medians over the rounds.

Memory is the largest sum over the process and its workers, pages that they share counted once (PSS on Linux), sampled
while the first steps warm up; on CUDA it is the peak of the allocator. The limit is the rate of a product of two square
matrices, measured in each round: 1,024 rows on a CPU in float32, 8,192 on CUDA, in the type that the sides compute in.
A step's arithmetic is counted on plain PEFT adapters, once without padding and once with texts as long as the longest
of their batch, as the tuned peer computes them. A side that saves arithmetic seems closer to the limit than it is.

Each process is a line of `benchmarks/results/training_speed/DEVICE.jsonl`.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from align_base import make_random_base
from speed_data import Job, draw_tables, hold_all_out, write_emoji_tables
from speed_meter import DEVICE
from speed_table import Record, check_losses, describe_limits, format_table
from transfer_results import describe_machine
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "training_speed"
TASKS = ("captions", "prompts", "head")


def in_fresh_process(what: str, job: Job) -> Any:
    """Runs `--cell` in a process that does nothing else.

    Args:
        what: `side`, `flops`, `limit`, or `score-SEED`.
        job: What to train.
    """
    words = ["--cell", what, json.dumps(dataclasses.asdict(job))]
    command = [sys.executable, "-W", "ignore", str(HERE / "training_speed.py"), *words]
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{job.side} on {job.task} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(options: argparse.Namespace, checkpoint: str, tables: dict[str, Path]) -> list[Record]:
    """Measures all rounds.

    Args:
        options: The command's.
        checkpoint: The base.
        tables: A table for each task.
    """
    records: list[Record] = []
    flops: dict[Job, dict[str, int]] = {}
    for number, task, size in itertools.product(range(options.rounds), options.tasks, options.image_sizes):
        blank = Job(
            *(task, "", checkpoint, str(tables[task]), size, options.batch_size),
            *(options.warmup, options.steps, options.workers, options.bf16),
        )
        if blank not in flops:
            flops[blank] = in_fresh_process("flops", blank)
        limits = in_fresh_process("limit", blank)
        for side in options.sides:
            job = dataclasses.replace(blank, side=side)
            found = in_fresh_process("side", job)
            limit = limits.get("bfloat16" if job.computes_in_bf16 else "float32", limits["float32"])
            about = {"task": task, "image_size": size, "batch_size": job.batch_size, "side": side, "round": number}
            bound = {"is_bf16": job.computes_in_bf16, **flops[blank], "limit": 1e9 * limit}
            records.append({**about, **found, **bound})
            rate = "out of memory" if found["rate"] is None else f"{found['rate']:.1f} images/s"
            print(f"round {number + 1}, {task}, {size} px, {side}: {rate}", file=sys.stderr, flush=True)
    return records


def time_to_score(options: argparse.Namespace, checkpoint: str, table: Path) -> str:
    """Trains the tuned peer and the toolkit for some epochs, and says how long each took to the peer's final score."""
    from speed_score import compare_times

    job = Job(
        *("captions", "", checkpoint, str(hold_all_out(table)), options.image_sizes[0], options.batch_size),
        *(0, 0, options.workers, options.bf16),
        epochs=options.to_score,
    )
    return compare_times(job, options.rounds, in_fresh_process)


def write_records(records: list[Record], path: Path) -> None:
    """Writes the records of a command in place of those that it has measured anew."""
    keys = ("task", "image_size", "batch_size")
    mine = {tuple(record[key] for key in keys) for record in records}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    others = [record for record in map(json.loads, lines) if tuple(record[key] for key in keys) not in mine]
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [*others, *({**record, "machine": describe_device()} for record in records)]
    path.write_text("".join(json.dumps(record) + "\n" for record in whole), encoding="utf-8")


def describe_device() -> Record:
    """The machine, and the card where there is one."""
    return {**describe_machine(), **({"gpu": torch.cuda.get_device_name()} if DEVICE == "cuda" else {})}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="what is learned (all; captions with --random)")
    parser.add_argument("--sides", nargs="+", help="who trains (all; bf16 where the machine has units for it)")
    parser.add_argument("--image-sizes", type=int, nargs="+", help="pixels a side (96; 289 with --random)")
    parser.add_argument("--batch-size", type=int, help="rows a step (64; 256 with --random on CUDA, else 4)")
    parser.add_argument("--steps", type=int, help="timed steps a process (12; 10 with --random)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (%(default)s)")
    parser.add_argument("--rounds", type=int, help="processes a side (3; 2 with --random)")
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 12), help="that read images (the cores)"
    )
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=DEVICE == "cuda", help="autocast")
    parser.add_argument("--random", action="store_true", help="align-base's shape, random weights, drawn pictures")
    parser.add_argument("--checkpoint", default="align-mini", help="hub id or folder (%(default)s)")
    parser.add_argument("--drawn", action="store_true", help="drawn JPEG pictures instead of the emoji")
    parser.add_argument("--emoji", type=Path, default=Path("data/emoji"), help="the prepared emoji (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    parser.add_argument("--to-score", type=int, metavar="EPOCHS", help="time to the tuned peer's score, nothing else")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    return parser


def fill_in(options: argparse.Namespace) -> None:
    """Sets what depends on other options and on the machine."""
    has_units = DEVICE == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    everyone = ["trainer", "trainer-tuned", *(["trainer-bf16"] if has_units else []), "bare", "bare-fused", "ours"]
    options.sides = options.sides or everyone
    options.tasks = options.tasks or (["captions"] if options.random else list(TASKS))
    options.image_sizes = options.image_sizes or [289 if options.random else 96]
    small = 4 if options.random and DEVICE == "cpu" else 64
    options.batch_size = options.batch_size or (256 if options.random and DEVICE == "cuda" else small)
    options.steps = options.steps or (10 if options.random else 12)
    options.rounds = options.rounds or (2 if options.random else 3)
    options.drawn = options.drawn or options.random


def main() -> None:
    options = build_parser().parse_args()
    if options.cell:
        from speed_cells import run_cell

        print(json.dumps(run_cell(options.cell[0], Job(**json.loads(options.cell[1])))))
        return
    fill_in(options)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_random_base(folder) if options.random else options.checkpoint
        if options.drawn:
            tables = draw_tables(folder, options.batch_size, options.warmup + options.steps)
        else:
            tables = write_emoji_tables(folder, options.emoji, options.batch_size)
        if options.to_score:
            print(time_to_score(options, checkpoint, tables["captions"]))
            return
        records = measure_all(options, checkpoint, tables)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    path = options.results / f"{device.lower().replace(' ', '-')}.jsonl"
    write_records(records, path)
    print(json.dumps(describe_device()))
    print("\n".join([*check_losses(record for record in records if record["round"] == 0), *describe_limits(records)]))
    print(f"\nBatch {options.batch_size}, {options.steps} steps in each of {options.rounds} rounds.\n")
    print(format_table(records, options.sides))


if __name__ == "__main__":
    main()
