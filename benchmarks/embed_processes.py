"""How much faster several processes of `finetune embed` are than one, when each has as many cores.

    python benchmarks/embed_processes.py --rounds 5

Draws a folder of JPEGs of 640 x 480 pixels. Each round embeds it by one process and then by several, which share the
work as they find it: one file of parts, no process group. Every process may use `--cores` cores that no other may
(`sched_setaffinity`), so that one process cannot use what another would have had.

Images per second are what the processes say themselves, added up: from the first part on, without Python's and the
model's start. The processor's seconds per image change less where others use the machine as well; for them a quarter of
the folder is embedded too, and the difference counts. Their ratio times the number of processes is what these reach
where their cores are free. "Cores got" says whether they were.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from embedding import write_images


class Found(NamedTuple):
    """Images per second of all processes together, and the processor's seconds."""

    rate: float
    processor: float


def embed(options: argparse.Namespace, images: Path, output: Path, processes: int) -> Found:
    """Embeds a folder by processes that start at once, and waits for the last."""
    words = [options.model, str(images), "--output", str(output), "--part-rows", str(options.part_rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.cores)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "finetune", "embed", *words, "--device", "cpu"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda first=number * options.cores: os.sched_setaffinity(
                0, options.free[first : first + options.cores]
            ),
        )
        for number in range(processes)
    ]
    shown = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("`finetune embed` has failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rates = [float(rate) for text in shown for rate in re.findall(r"([\d.]+) images/s", text)]
    return Found(sum(rates), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="align-mini", help="a checkpoint (%(default)s)")
    parser.add_argument("--images", type=int, default=256, help="images of the folder (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="processes beside the one (%(default)s)")
    parser.add_argument("--cores", type=int, default=1, help="cores of each process (%(default)s)")
    parser.add_argument("--part-rows", type=int, default=16, help="images of a part (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (%(default)s)")
    options = parser.parse_args()
    options.free = sorted(os.sched_getaffinity(0))
    if len(options.free) < options.processes * options.cores:
        parser.error(f"{options.processes} processes need {options.processes * options.cores} cores")
    counted = options.images - options.images // 4
    found: dict[int, list[Found]] = {1: [], options.processes: []}
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for name, count in (("whole", options.images), ("quarter", options.images // 4)):
            (Path(place) / name).mkdir()
            write_images(Path(place) / name, count, 640, 480, "jpg")
            folders.append(Path(place) / name)
        for number in range(options.rounds):
            for processes, rounds in found.items():
                outputs = [Path(place) / f"{folder.name}-{processes}-{number}.parquet" for folder in folders]
                whole, few = (embed(options, *pair, processes) for pair in zip(folders, outputs, strict=True))
                rounds.append(Found(whole.rate, (whole.processor - few.processor) / counted))
    print("| processes | cores of each | images/s | processor's s / image | cores got |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for processes, rounds in found.items():
        rate, processor = (statistics.median(values) for values in zip(*rounds, strict=True))
        got = statistics.median(one.rate * one.processor for one in rounds)
        print(f"| {processes} | {options.cores} | {rate:.1f} | {processor:.4f} | {got:.2f} |")
    pairs = list(zip(found[1], found[options.processes], strict=True))
    ratios = sorted(several.rate / one.rate for one, several in pairs)
    print(f"times as fast: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    ratios = sorted(options.processes * one.processor / several.processor for one, several in pairs)
    print(f"by the processor's time: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
