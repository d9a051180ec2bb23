"""The records of the training-speed benchmark as a Markdown table, and whether the sides compute the same."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]

OWN_LOSS = ("trainer", "trainer-tuned", "trainer-bf16", "bare")
"""Sides whose loss is ALIGN's own, or that of a head of zeros; the toolkit's differs where labels are equal."""

TUNED = ("trainer-tuned", "trainer-bf16")
"""The tuned peers; the faster of them counts."""

HEADS = (
    *("task", "px", "side", "images/s", "times tuned", "times plain"),
    *("share of limit", "with padding", "CPU ms/image", "GiB"),
)

TOLERANCE = 1e-4
"""Relative difference of first losses that are called equal."""

BF16_TOLERANCE = 2e-2
"""The same where a side computes in bfloat16."""


def check_losses(records: Iterable[Record]) -> list[str]:
    """Says of each group of sides that compute the same whether their first losses agree.

    Captions have one loss: each caption is unique. Equal labels are negatives of each other for ALIGN's own loss and
    positives for the toolkit's; and the toolkit's head starts from the class prompts, the other sides' from zeros.

    Args:
        records: One of each cell at least.

    Returns:
        A line for each group.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        who = "all" if record["task"] == "captions" else "plain" if record["side"] in OWN_LOSS else "toolkit"
        if record["loss"] is not None:
            groups.setdefault((record["task"], record["image_size"], who), []).append(record)
    lines = []
    for (task, size, _), found in groups.items():
        losses = [record["loss"] for record in found]
        tolerance = BF16_TOLERANCE if any(record["is_bf16"] for record in found) else TOLERANCE
        word = "equal" if max(losses) - min(losses) <= tolerance * max(losses) else "DIFFERENT"
        shown = ", ".join(f"{record['side']} {record['loss']:.5f}" for record in found)
        lines.append(f"{word} first loss, {task}, {size} px: {shown}")
    return lines


def describe_limits(records: Iterable[Record]) -> list[str]:
    """Says how many operations an image asks for, and how many the machine makes a second.

    Args:
        records: All rounds.
    """
    lines: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        counted = (record["flops_per_image"], record["padded_flops_per_image"])
        lines.setdefault((record["task"], record["image_size"], record["is_bf16"], *counted), []).append(
            record["limit"]
        )
    return [
        f"{task}, {size} px: {flops / 1e9:.3f} GFLOP an image, {padded / 1e9:.3f} with padding, limit "
        f"{statistics.median(limits) / 1e9:,.0f} GFLOP/s{' (bfloat16)' if is_bf16 else ''}"
        for (task, size, is_bf16, flops, padded), limits in lines.items()
    ]


def format_table(records: Sequence[Record], sides: Sequence[str]) -> str:
    """Writes a line for each side of each task and size.

    Ratios are medians over the rounds, each between processes of one round. "Times tuned" is the multiple of the faster
    tuned peer. The shares of the limit are of arithmetic without padding and with it. CPU time is that of the process
    and its workers.

    Args:
        records: All rounds.
        sides: In order.
    """
    lines = [f"| {' | '.join(HEADS)} |", f"| --- | ---: | --- {(len(HEADS) - 3) * '| ---: '}|"]
    cells = dict.fromkeys((record["task"], record["image_size"]) for record in records)
    for task, size in cells:
        own = [record for record in records if (record["task"], record["image_size"]) == (task, size)]
        for side in sides:
            found = [record for record in own if record["side"] == side]
            if found:
                lines.append(f"| {task} | {size} | {side} | {' | '.join(_describe(found, own))} |")
    return "\n".join(lines)


def _describe(found: Sequence[Record], others: Sequence[Record]) -> list[str]:
    if any(record["rates"] is None for record in found):
        return ["out of memory", *(len(HEADS) - 4) * ["-"]]
    rate = statistics.median(record["rate"] for record in found)
    shares = [
        statistics.median(record["rate"] * record[counted] / record["limit"] for record in found)
        for counted in ("flops_per_image", "padded_flops_per_image")
    ]
    ratios = [_ratio(found, others, peers) for peers in (TUNED, ("trainer",))]
    memory = max(record["memory"] for record in found) / 2**30
    cpu = f"{1e3 * statistics.median(record['cpu_seconds'] for record in found):.1f}"
    return [f"{rate:.1f}", *ratios, *(f"{share:.2f}" for share in shares), cpu, f"{memory:.2f}"]


def _ratio(found: Sequence[Record], others: Sequence[Record], peers: Sequence[str]) -> str:
    """The rate as a multiple of the fastest of some peers in the same round."""
    rates: dict[int, float] = {}
    for record in others:
        if record["side"] in peers and record["rates"]:
            rates[record["round"]] = max(record["rate"], rates.get(record["round"], 0.0))
    pairs = [record["rate"] / rates[record["round"]] for record in found if record["round"] in rates]
    return f"{statistics.median(pairs):.2f}" if pairs else "-"
