"""Times the evaluation of test rows with torch's threads asleep and awake between two pieces of work.

    finetune prepare digits && python benchmarks/waiting_threads.py --rounds 5

Evaluates the digits' test rows with `align-mini`, as a run does after its training, once with OMP_WAIT_POLICY=passive,
which the commands set, and once without it, on an idle machine and beside processes that keep a core busy each. Each
measurement is a process of its own, and the ways take turns. Seconds are those of the rows alone, without the start.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

LOOP = "while True: pass"
SIDE = 64  # as in the recipe quickstart
WAYS = ("passive", None)


def evaluate_rows(table: str, workers: int) -> float:
    """Times the evaluation of a table's test rows in seconds, once the model is open."""
    import torch

    from finetune import Base, ImageTextDataModule, Table, evaluate
    from finetune.inference.models import ask_towers
    from finetune.model.towers import AlignTowers

    data = ImageTextDataModule(
        Table(table, label="label", split="split"), "align-mini", image_size=SIDE, num_workers=workers
    )
    base = Base.open("align-mini")
    model = ask_towers(AlignTowers.of(base), data.class_prompts)
    started = time.perf_counter()
    evaluate(model, data.loader("test"), data.kind.metric(), torch.device("cpu"))
    return time.perf_counter() - started


def time_way(policy: str | None, options: argparse.Namespace) -> float:
    """Times one way of waiting in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, __file__, "--measure", "--table", options.table, "--workers", str(options.workers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="data/digits/digits.csv", help="table with label and split (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images (%(default)s)")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 2], help="busy processes beside (0 2)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (%(default)s)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(evaluate_rows(options.table, options.workers))
        return
    for count in options.neighbours:
        neighbours = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
        try:
            rounds = [[time_way(policy, options) for policy in WAYS] for _ in range(options.rounds)]
        finally:
            for neighbour in neighbours:
                neighbour.kill()
        for policy, seconds in zip(WAYS, zip(*rounds, strict=True), strict=True):
            print(
                f"{count} busy neighbours, OMP_WAIT_POLICY {policy or 'unset'}: "
                f"median {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f} s), "
                f"load {os.getloadavg()[0]:.1f}"
            )


if __name__ == "__main__":
    main()
