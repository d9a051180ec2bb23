"""Time and memory of retrieval among many pairs: as plain torch does it, and as an evaluation of a run does it.

    python benchmarks/retrieval_memory.py --pairs 10000 30000 100000

Draws an image feature and a text feature of 640 dimensions for each pair, related so that the ranks are spread, and
measures R@K and median ranks of both directions. "Whole" holds all similarities and sorts them, as short scripts do.
"Chunks" compares 256 queries at a time with all items, each direction by itself. "Run" is the toolkit's whole
evaluation of such rows: features batch by batch, metrics, figures for intervals, and the predictions. Each measurement
is a process of its own, and the ways take turns. Memory is the peak of the process, the features (0.48 GiB for 100,000
pairs) and the libraries among it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

DIMENSIONS = 640
BATCH = 64
MOST_WHOLE = 10_000
"""Pairs up to which all similarities are held: 30,000 took 14 GiB."""


def draw_batch(start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Features of the rows of one batch."""
    generator = torch.Generator().manual_seed(start)
    images, texts = (torch.randn(stop - start, DIMENSIONS, generator=generator) for _ in range(2))
    return images, texts.add_(images, alpha=0.15)


def draw(pairs: int) -> tuple[Tensor, Tensor]:
    images, texts = torch.empty(2, pairs, DIMENSIONS)
    for start in range(0, pairs, BATCH):
        stop = min(start + BATCH, pairs)
        images[start:stop], texts[start:stop] = draw_batch(start, stop)
    return images, texts


def find_whole(pairs: int) -> list[float]:
    """Mean hit rates at 1, 5 and 10 of both directions, from the order of all similarities."""
    images, texts = draw(pairs)
    similarities = normalize(images, dim=-1) @ normalize(texts, dim=-1).T
    own, found = torch.arange(len(images))[:, None], []
    for scores in (similarities, similarities.T):
        order = scores.argsort(dim=1, descending=True)
        found.append((order[:, :10] == own).cumsum(1)[:, [0, 4, 9]].float().mean(0))
        del order
    return torch.stack(found).mean(0).tolist()


def find_chunks(pairs: int, chunk: int = 256) -> list[float]:
    """The same, from counts of better items."""
    images, texts = (normalize(features, dim=-1) for features in draw(pairs))
    hits = []
    for queries, items in ((images, texts), (texts, images)):
        for start in range(0, len(queries), chunk):
            scores = queries[start : start + chunk] @ items.T
            own = scores[torch.arange(len(scores)), torch.arange(start, start + len(scores))]
            better = (scores > own[:, None]).sum(1)
            hits.append(torch.stack([better < k for k in (1, 5, 10)]))
    return torch.cat(hits, dim=1).float().mean(1).tolist()


def find_run(pairs: int) -> list[float]:
    """The same, from the evaluation of a table with as many rows."""
    from finetune import Batch, Table, evaluate
    from finetune.core.types import Answers
    from finetune.data.loading.kinds import find_kind
    from finetune.data.table.splits import RandomSplit
    from finetune.inference.models import RowModel

    class Features(RowModel):
        """Answers with drawn features, as fast as they can be drawn."""

        def __call__(self, batch: Batch) -> Answers:
            return Answers.of(batch, *draw_batch(int(batch.rows[0]), int(batch.rows[-1]) + 1))

        def to(self, device: torch.device) -> "Features":
            return self

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        table.write_text("image,caption\n" + "".join(f"all.png,caption {row}\n" for row in range(pairs)))
        (Path(folder) / "all.png").touch()
        rows = Table(str(table), caption="caption", split=RandomSplit(val=0.0, test=0.0)).read(required=())
    kind, none = find_kind(rows), torch.empty(0)
    numbers = torch.arange(pairs).split(BATCH)
    batches = (Batch(none, none, none, part, part, part, torch.full_like(part, -1), none) for part in numbers)
    metric = kind.metric()
    found = evaluate(Features(), batches, metric, torch.device("cpu"))
    kind.predictions(found.answers, metric)
    ways = ("image_to_text", "text_to_image")
    return [statistics.mean(found.metrics[f"test/{way}/R@{k}"] for way in ways) for k in (1, 5, 10)]


WAYS: dict[str, Callable[[int], list[float]]] = {
    "whole": find_whole,
    "chunks": find_chunks,
    "run": find_run,
}


def measure(way: str, pairs: int) -> dict[str, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    hits = WAYS[way](pairs)
    return {
        "hits": hits,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured (%(default)s)")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "PAIRS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
        return
    print("| pairs | way | s | CPU s | peak GiB | R@1, R@5, R@10 |\n| ---: | --- | ---: | ---: | ---: | --- |")
    for pairs in options.pairs:
        ways = [way for way in options.ways if way != "whole" or pairs <= MOST_WHOLE]
        found: dict[str, list[dict[str, object]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                command = [sys.executable, __file__, "--measure", way, str(pairs)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        for way, rounds in found.items():
            wall, cpu, gib = (statistics.median(one[key] for one in rounds) for key in ("wall", "cpu", "gib"))
            hits = ", ".join(f"{100 * hit:.2f}" for hit in rounds[0]["hits"])
            print(f"| {pairs:,} | {way} | {wall:.1f} | {cpu:.1f} | {gib:.2f} | {hits} |", flush=True)


if __name__ == "__main__":
    main()
