"""What a training on many devices takes: time, memory, network and storage, for numbers of devices and rows.

    python benchmarks/scaling_plan.py                                            # devices like those that were measured
    python benchmarks/scaling_plan.py --rows-per-device 128 --images-per-second 900 --network 25e9 --latency 2e-5

Unit costs are those that `scaling.py` measured, in `--results`; `scaling.py --processes 1` on one GPU measures those of
a GPU. What is given instead is a number of yours, and named as such. `scaling_model.py` puts them together.

`waiting` is for the slowest device. `MB/step` is what each device receives, and sends. `read` is what all devices read
of stored pictures, and `cores` what each needs to decode them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scaling_costs import RESULTS, Costs, Record, fit_costs, read_results
from scaling_model import Plan, Step, memory_bytes, predict_step, received_bytes, simulate_seconds

EXAMPLE = (
    *("--rows-per-device", "128", "--images-per-second", "900", "--network", "25e9", "--latency", "2e-5"),
    *("--dimension", "640", "--image-bytes", "40e3", "--memory", "1.1e9", "--memory-per-image", "0.71e9"),
    *("--gradient-bytes", "21.2e6"),
)
"""What docs/scaling.md plans with: speed, network and pictures are examples, measured nowhere."""

KEPT = 174
"""Bytes of a row of a table in the file that all processes map (docs/benchmarks.md, "Large tables")."""


def describe_steps(costs: Costs, plans: list[Plan], spread: list[float]) -> str:
    """Writes a line for each plan: the step, its parts, speed, network, memory, and what reading asks for.

    Args:
        costs: What one of each costs.
        plans: Trainings.
        spread: As for `simulate_seconds`.
    """
    parts = " | ".join(Step._fields)
    lines = [
        f"| devices | batch | s/step | {parts} | waiting | images/s | efficiency | MB/step | GiB | MB/s read | cores |",
        f"|{' ---: |' * (len(Step._fields) + 10)}",
    ]
    for plan in plans:
        step, slow = predict_step(costs, plan), float(np.mean(simulate_seconds(costs, plan, spread)))
        alone = Plan(1, round(plan.rows), micro_batch=plan.micro_batch)
        one = float(np.mean(simulate_seconds(costs, alone, spread))) / alone.rows
        rate = plan.batch_size / slow
        cells = [
            *(f"{plan.devices:,}", f"{plan.batch_size:,}", f"{slow:.3g}"),
            *(f"{value:.2g}" for value in (*step, slow - step.seconds)),
            *(f"{rate:,.0f}", f"{rate * one / plan.devices:.2f}", f"{received_bytes(costs, plan) / 1e6:.3g}"),
            *(f"{memory_bytes(costs, plan) / 2**30:.2f}", f"{rate * costs.image_bytes / 1e6:,.3g}"),
            f"{rate / plan.devices * costs.decode:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_epochs(costs: Costs, plans: list[Plan], rows: list[int], spread: list[float]) -> str:
    """Writes a line for each table: its bytes, and the time of an epoch on each number of devices.

    Args:
        costs: What one of each costs.
        plans: Trainings.
        rows: Of tables.
        spread: As for `simulate_seconds`.
    """
    heads = " | ".join(f"epoch on {plan.devices:,}" for plan in plans)
    lines = [
        f"| rows | tars | table | index | headers read | {heads} |",
        f"|{' ---: |' * (5 + len(plans))}",
    ]
    seconds = [float(np.mean(simulate_seconds(costs, plan, spread))) / plan.batch_size for plan in plans]
    for number in rows:
        cells = [f"{number:,}", *(amount(number * each) for each in (costs.tar_bytes, KEPT, costs.index_bytes))]
        cells += [duration(number * each) for each in (costs.headers, *seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Writes a time with the largest unit that it has one of.

    Example:
        >>> duration(90.0), duration(7200.0), duration(1e6)
        ('1.5 min', '2 h', '11.6 days')
    """
    units = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))
    name, size = next(((name, size) for name, size in units if seconds >= size), ("s", 1.0))
    return f"{seconds / size:,.3g} {name}"


def amount(nbytes: float) -> str:
    """Writes a number of bytes with the largest unit that it has one of.

    Example:
        >>> amount(1500.0), amount(1.32e13)
        ('0.0015 MB', '13.2 TB')
    """
    units = (("TB", 1e12), ("GB", 1e9))
    name, size = next(((name, size) for name, size in units if nbytes >= size), ("MB", 1e6))
    return f"{nbytes / size:,.3g} {name}"


def give(costs: Costs, options: argparse.Namespace) -> tuple[Costs, list[str]]:
    """Puts what the user knows in the place of what was measured, and returns it beside what was given, in words.

    Where images a second are given, and not pairs, the loss is taken to be faster or slower than measured as they are.

    Args:
        costs: As they were measured.
        options: The command's.
    """
    changes: dict[str, float] = {}
    if options.images_per_second:
        faster = options.images_per_second * costs.image
        changes |= {"step": 0.0, "loss": 0.0, "image": 1 / options.images_per_second, "pair": costs.pair / faster}
    if options.pairs_per_second:
        changes["pair"] = 1 / options.pairs_per_second
    if options.network:
        changes |= {"gather_rate": options.network, "reduce_rate": options.network}
    if options.image_bytes:
        changes |= {
            "image_bytes": options.image_bytes,
            "tar_bytes": costs.tar_bytes - costs.image_bytes + options.image_bytes,
        }
    direct = {"latency": "hop", "decode_seconds": "decode", "memory_per_image": "image_memory", "memory": "memory"}
    direct |= {"gradient_bytes": "gradient_bytes"}
    changes |= {field: getattr(options, name) for name, field in direct.items() if getattr(options, name) is not None}
    if options.dimension:
        changes["gather_bytes"] = costs.gather_bytes + costs.gather_bytes // (8 * costs.dimension) * 8 * (
            options.dimension - costs.dimension
        )
    names = [name for name, value in vars(options).items() if name in GIVEN and value is not None]
    said = [f"{name.replace('_', ' ')} {getattr(options, name):g}" for name in names]
    if options.images_per_second and not options.pairs_per_second:
        said.append(f"and so pairs per second {1 / changes['pair']:.3g}, faster than measured by as much as images are")
    return replace(costs, **changes), said


GIVEN = {
    "images_per_second": "forward and backward on one device, over a step",
    "pairs_per_second": "pairs of a row and a column of the loss, on one device",
    "network": "bytes a second between two devices",
    "latency": "seconds of a hop",
    "image_bytes": "bytes of a stored picture",
    "decode_seconds": "core seconds to read and decode a picture",
    "dimension": "numbers of an embedding",
    "gradient_bytes": "bytes of the gradients of what is trained",
    "memory": "bytes that a device holds without any row",
    "memory_per_image": "bytes of each row that is embedded at once",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="a file of scaling.py (%(default)s)")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64, 256], help="how many (1 8 64 256)")
    rows = [100_000, 10_000_000, 747_000_000]
    parser.add_argument("--rows", type=_whole, nargs="+", default=rows, help="of tables (1e5 1e7 747e6: COYO-700M)")
    parser.add_argument("--rows-per-device", type=int, default=16, help="of a batch (%(default)s)")
    parser.add_argument("--batch-size", type=int, help="rows of a batch in all, instead")
    parser.add_argument("--micro-batch", type=int, help="most rows that a device embeds at a time (all)")
    for name, words in GIVEN.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"{words} (measured)")
    return parser


def _whole(text: str) -> int:
    return int(float(text))


def describe_plan(results: Record, words: Sequence[str]) -> str:
    """Writes both tables, and what they are made from.

    Args:
        results: A file of `scaling.py`.
        words: The command's.

    Raises:
        SystemExit: If what messages cost was neither measured nor given.
    """
    options = build_parser().parse_args(words)
    costs, given = give(fit_costs(results), options)
    if not np.isfinite([costs.gather_rate, costs.reduce_rate, costs.hop]).all():
        raise SystemExit("Expected results of several processes, but got those of one. Pass --network and --latency.")
    sizes = [options.batch_size or options.rows_per_device * devices for devices in options.devices]
    plans = [Plan(*pair, None, options.micro_batch) for pair in zip(options.devices, sizes, strict=True)]
    spread = results["spread"]
    return (
        f"Given: {', '.join(given) or 'nothing'}. All else is measured.\n\n{describe_steps(costs, plans, spread)}\n\n"
        f"{describe_epochs(costs, plans, options.rows, spread)}"
    )


def main() -> None:
    words = sys.argv[1:]
    print(describe_plan(read_results(build_parser().parse_args(words).results), words))


if __name__ == "__main__":
    main()
