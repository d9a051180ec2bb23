"""What a run costs however small it is: seconds and CPU seconds by stage, and what importing the libraries takes.

    python benchmarks/fixed_cost.py --rounds 3
    python benchmarks/fixed_cost.py --rounds 3 --trees /path/to/another/clone .

Runs `finetune fit` on 24 small images with `align-mini`, one step of training, once with captions and once with a head.
So nearly all of it is what every run pays. The lines that `fit` prints say where each stage begins. CPU seconds are
those of the command and of the processes it has started and waited for. With several trees they take turns.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROWS = 24
KINDS = {
    "captions": ("finetune.AlignTask", "caption", "text"),
    "head": ("finetune.ClassificationTask", "label", "name"),
}
START, TOTAL = "start", "whole command"
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "lightning",
    "torchmetrics",
    "albumentations",
    "pandas",
    "scipy",
    "sklearn",
)


def write_table(folder: Path) -> Path:
    random = np.random.default_rng(0)
    lines = ["image,text,name,split"]
    for row in range(ROWS):
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{row}.png")
        split = ("train", "train", "val", "test")[row // 3 % 4]
        lines.append(f"{row}.png,noise number {row},{('ant', 'bee', 'cat')[row % 3]},{split}")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and of the children that it has waited for."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def write_recipe(table: Path, kind: str, runs: Path) -> Path:
    task, column, name = KINDS[kind]
    recipe = runs / "recipe.yaml"
    runs.mkdir()
    values = {
        "model": {"class_path": task, "init_args": {"checkpoint": "align-mini"}},
        "data": {"table": {"path": str(table), column: name, "split": "split"}, "image_size": 64},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"folder": str(runs)},
    }
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def time_run(tree: Path, recipe: Path) -> dict[str, tuple[float, float]]:
    """Runs `fit` and returns seconds and CPU seconds of each stage, by name."""
    command = [sys.executable, "-m", "finetune", "fit", "--config", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "passive"}
    started, found, stage, before = time.perf_counter(), {}, START, (0.0, 0.0)
    process = subprocess.Popen(
        command, env=environment, cwd=tree, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if match := re.match(r"stage ([\w-]+)", line):
            now = (time.perf_counter() - started, cpu_seconds(process.pid))
            found[stage] = (now[0] - before[0], now[1] - before[1])
            stage, before = match[1], now
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError("".join(said))
    total = (time.perf_counter() - started, usage.ru_utime + usage.ru_stime)
    found[stage] = (total[0] - before[0], total[1] - before[1])
    return {**found, TOTAL: total}


def time_imports(tree: Path, module: str) -> dict[str, float]:
    """Seconds that each library's modules take by themselves while a module is imported."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tree)}, cwd=tree, capture_output=True, text=True, check=True
    )
    found: defaultdict[str, float] = defaultdict(float)
    for own, name in re.findall(r"import time: +(\d+) \| +\d+ \| +(\S+)", done.stderr):
        found[name.split(".")[0]] += int(own) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (%(default)s)")
    parser.add_argument("--trees", type=Path, nargs="+", default=[Path()], help="clones to time (this one)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    options = parser.parse_args()
    trees = [tree.resolve() for tree in options.trees]
    timed: defaultdict[tuple[str, Path, str], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        table = write_table(Path(name))
        for number in range(options.rounds):
            for kind in options.kinds:
                for place, tree in enumerate(trees):
                    recipe = write_recipe(table, kind, Path(name) / f"{kind}-{number}-{place}")
                    for stage, both in time_run(tree, recipe).items():
                        timed[kind, tree, stage].append(both)
    print("| run | stage | " + " | ".join(f"s, {tree.name} | CPU s, {tree.name}" for tree in trees) + " |")
    print("| --- | --- |" + " ---: |" * 2 * len(trees))
    for kind in options.kinds:
        for stage in [stage for one, tree, stage in timed if (one, tree) == (kind, trees[0])]:
            columns = (column for tree in trees for column in zip(*timed[kind, tree, stage], strict=True))
            cells = [f"{statistics.median(column):.1f}" for column in columns]
            print(f"| {kind} | {stage} | {' | '.join(cells)} |")
    for tree in trees:
        imports = time_imports(tree, "finetune.pipeline.run_recipe")
        named = ", ".join(f"{library} {imports[library]:.1f}" for library in LIBRARIES)
        print(f"\nimports of `fit` in {tree.name}: {sum(imports.values()):.1f} s, of which {named}")


if __name__ == "__main__":
    main()
