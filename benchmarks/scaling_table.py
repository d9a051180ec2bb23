"""The tables of docs/scaling.md, from what `scaling.py` has measured.

python benchmarks/scaling_table.py                            # prints them
python benchmarks/scaling_table.py --write docs/scaling.md    # puts each between its two marks in the page
"""

import argparse
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scaling_costs import RESULTS, Record, fit_costs, group, median_of, read_results, step_seconds
from scaling_model import Plan, memory_bytes, predict_step, received_bytes, simulate_seconds
from scaling_plan import EXAMPLE, describe_plan

KINDS = {"gather": "gather", "reduce": "all-reduce", "small": "counts and waiting"}


def describe_machine(results: Record) -> str:
    """Says what was measured on, and how.

    Args:
        results: A file of `scaling.py`.
    """
    machine, settings = results["machine"], results["settings"]
    device = machine.get("gpu", f"{machine['cores']} cores of an {machine['cpu']}")
    names = {1: "one thread"}
    threads = names.get(machine["threads"], f"{machine['threads']} threads")
    steps, rounds, warmup = (settings[key] for key in ("steps", "rounds", "warmup"))
    precision = " in bfloat16" if settings["bf16"] else ""
    about = f"{device}, {threads} a process, torch {machine['torch']}"
    what = f"{settings['checkpoint']} at {settings['image_size']} px{precision}"
    how = f"medians of {steps} steps in each of {rounds} rounds, after {warmup} steps of warm-up"
    return f"{about}; {what}; {how}. Load before it began: {machine['load']:.1f}."


def rate_of(trainings: Sequence[Record]) -> float:
    """Images a second: median over the rounds."""
    return statistics.median(statistics.median(one["rates"]) for one in trainings)


def ratio_of(several: Sequence[Record], one: Sequence[Record]) -> float:
    """How many times as fast as one process several are: median over the rounds, each by itself."""
    return statistics.median(rate_of([a]) / rate_of([b]) for a, b in zip(several, one, strict=True))


def describe_scaling(results: Record) -> str:
    """Writes images a second and efficiency against one process, for equal rows a process and for equal batches.

    Args:
        results: A file of `scaling.py`.
    """
    found = group(results["trainings"])
    counts = sorted({processes for processes, _ in found})
    rows, same, cores = results["settings"]["rows"], results["settings"]["batch_size"], _devices(results)
    lines = [
        "| | processes | batch | images/s | times one | at most | efficiency | CPU ms/image | by CPU time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, size in (("same rows a process", None), ("same batch", same)):
        alone = found[1, size or rows]
        for processes in counts:
            own, most = found[processes, size or rows * processes], min(processes, cores)
            times, cpu = ratio_of(own, alone), median_of(own, "cpu_seconds")
            cells = [
                *(name, f"{processes}{' (share the cores)' if processes > cores else ''}", f"{own[0]['batch_size']}"),
                *(f"{rate_of(own):.1f}", f"{times:.2f}", f"{most}", f"{times / most:.2f}"),
                *(f"{1000 * cpu:.1f}", f"{median_of(alone, 'cpu_seconds') / cpu:.2f}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _devices(results: Record) -> int:
    """How many processes compute without sharing: one on each GPU, or on each core."""
    is_cpu = "gpu" not in results["machine"]
    return results["machine"]["cores"] // results["machine"]["threads"] if is_cpu else 1 << 30


def describe_split(results: Record) -> str:
    """Writes where the time of a step goes, in the steps whose messages were timed.

    Args:
        results: A file of `scaling.py`.
    """
    lines = [
        f"| processes | batch | s/step | compute | {' | '.join(KINDS.values())} |",
        f"|{' ---: |' * (4 + len(KINDS))}",
    ]
    for (processes, size), own in group(results["trainings"]).items():
        if processes > 1:
            whole = median_of(own, "seconds", "step")
            parts = [median_of(own, "seconds", kind) / whole for kind in KINDS]
            shares = [f"{100 * share:.1f} %" for share in (1 - sum(parts), *parts)]
            lines.append(f"| {processes} | {size} | {whole:.3f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def describe_costs(results: Record) -> str:
    """Writes the unit costs.

    Args:
        results: A file of `scaling.py`.
    """
    costs, units = fit_costs(results), results["units"]
    order, shard = units["order"], units["shard"]
    lines = [
        "| what | seconds | bytes |",
        "| --- | ---: | ---: |",
        f"| an image, forward and backward, with its text | {costs.image:.3g} | {costs.image_memory:.3g} held |",
        f"| a step besides its images; a model | {costs.step:.3g} | {costs.memory:.3g} held |",
        f"| a row and a column of the loss | {costs.pair:.2g} | {costs.pair_memory:.3g} held, of 4,194,304 at most |",
    ]
    if np.isfinite(costs.hop):
        row, gradients = costs.gather_bytes, costs.gradient_bytes
        messages = costs.gathers + costs.reduces + costs.smalls
        lines += [
            f"| a message, each hop; a step has {messages:.0f} messages | {costs.hop:.2g} | |",
            f"| a gathered row: features, ids, gradients back | {row / costs.gather_rate:.2g} | {row:,.0f} |",
            f"| adapter gradients, once to each neighbour | {gradients / costs.reduce_rate:.2g} | {gradients:,} |",
        ]
    size, rows = shard["bytes"], shard["rows"]
    headers, index = rows * shard["headers"], rows * shard["index"]
    lines += [
        f"| a stored picture, read and decoded | {costs.decode:.2g} | {size['picture']:,.0f} |",
        f"| a shard of {rows:,} rows, first start: headers | {headers:.2g} | {rows * size['tar']:,.0f} |",
        f"| the same, later starts: its index | {index:.2g} | {rows * size['kept']:,.0f} |",
        f"| a batch of {order['batch_size']:,} of {order['rows']:,} rows, its order | {order['later']:.2g} | |",
    ]
    return "\n".join(lines)


def describe_check(results: Record) -> str:
    """Writes what the unit costs predict beside what was measured: seconds, bytes between processes, and memory.

    Args:
        results: A file of `scaling.py`.
    """
    costs, of_cpu = fit_costs(results), fit_costs(by_cpu(results))
    lines = [
        "| processes | batch | s/step | predicted | error | CPU s | predicted | error | MB sent | predicted | error "
        "| GiB | predicted |",
        f"|{' ---: |' * 13}",
    ]
    for (processes, size), own in group(results["trainings"]).items():
        plan, several = Plan(processes, size, _devices(results)), processes > 1
        seconds = float(np.median(simulate_seconds(costs, plan, results["spread"])))
        alone = predict_step(of_cpu, Plan(processes, size))
        wire, sent = median_of(own, "wire") / 1e6, processes * received_bytes(costs, plan) / 1e6
        cells = [
            *(f"{processes}", f"{size}", *compare(step_seconds(own), seconds)),
            *compare(median_of(own, "cpu_seconds") * size, processes * (alone.compute + alone.loss)),
            *(compare(wire, sent) if several and wire else ["", "", ""]),
            *(f"{median_of(own, 'memory') / 2**30:.2f}", f"{memory_bytes(costs, plan) / 2**30:.2f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compare(measured: float, predicted: float) -> list[str]:
    """Writes two numbers, and how far the second is off.

    Example:
        >>> compare(0.5, 0.45)
        ['0.500', '0.450', '-10 %']
    """
    off = 100 * (predicted / measured - 1)
    return [f"{measured:.3f}", f"{predicted:.3f}", f"{off:+.1f} %" if abs(off) < 2 else f"{off:+.0f} %"]


def by_cpu(results: Record) -> Record:
    """Puts the rate at which the processor's time would allow a training in the place of the one that was measured.

    Args:
        results: A file of `scaling.py`.
    """
    trainings = [{**one, "rates": [1 / one["cpu_seconds"]]} for one in results["trainings"]]
    return {**results, "trainings": trainings}


def tables_of(results: Record) -> dict[str, str]:
    """Writes all tables, by the names of their marks.

    Args:
        results: A file of `scaling.py`.
    """
    tables = {
        "machine": describe_machine(results),
        "scaling": describe_scaling(results),
        "split": describe_split(results),
        "costs": describe_costs(results),
        "check": describe_check(results),
    }
    if results["messages"]:
        tables["plan"] = describe_plan(results, [])
        tables["example"] = describe_plan(results, EXAMPLE)
    return tables


def write_tables(results: Record) -> str:
    """Joins all tables.

    Args:
        results: A file of `scaling.py`.
    """
    return "\n\n".join(tables_of(results).values())


def fill_page(page: str, tables: dict[str, str]) -> str:
    r"""Puts each table between its marks, `<!-- NAME -->` and `<!-- / -->`.

    Args:
        page: Markdown.
        tables: By name.

    Raises:
        SystemExit: If the page lacks a mark.

    Example:
        >>> fill_page("<!-- costs -->\nold\n<!-- / -->", {"costs": "new"})
        '<!-- costs -->\n\nnew\n\n<!-- / -->'
    """
    for name, table in tables.items():
        opening, closing = f"<!-- {name} -->", "<!-- / -->"
        filled = f"{opening}\n\n{table}\n\n{closing}"
        page, times = re.subn(f"{opening}.*?{closing}", lambda _, filled=filled: filled, page, flags=re.DOTALL)
        if times != 1:
            raise SystemExit(f"Expected the page to hold <!-- {name} --> once, but got {times}.")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="a file of scaling.py (%(default)s)")
    parser.add_argument("--write", type=Path, help="a page with marks")
    options = parser.parse_args()
    results = read_results(options.results)
    if options.write:
        page = fill_page(options.write.read_text(encoding="utf-8"), tables_of(results))
        options.write.write_text(page, encoding="utf-8")
    else:
        print(write_tables(results))


if __name__ == "__main__":
    main()
