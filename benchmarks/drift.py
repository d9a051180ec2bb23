"""Does the drift meter foretell what is lost elsewhere? Adapters of varied strength, each measured both ways.

    finetune prepare digits && finetune prepare emoji && finetune prepare stamps && python benchmarks/drift.py

Trains 24 adapters on align-mini (two tasks, four learning rates, three lengths), and of each notes the drift, which
sees the task's own images alone, and the relative loss of the mean hit rate on the stamps' photographs, which no
adapter was trained on. Prints them with Spearman's rank correlation over all of them and within each task. Results are
kept as they come in `benchmarks/results/drift.json`; those that are there are not computed again.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from lightning import Trainer, seed_everything
from scipy.stats import spearmanr

from finetune.data.datamodule import ImageTextDataModule
from finetune.data.table import Table
from finetune.files import write_json
from finetune.measurement import compare, measure
from finetune.task import AlignTask

RESULTS = Path(__file__).parent / "results" / "drift.json"
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
STEPS = (8, 24, 72)
SIDE = 96


def build_data(task: str, folder: Path) -> ImageTextDataModule:
    """The table of a task, with the photographs for elsewhere."""
    tables = {
        "digits": Table(str(folder / "digits/digits.csv"), label="label", split="split", limit_rows=900),
        "emoji": Table(str(folder / "emoji/google.csv"), caption="caption", split="split", limit_rows=900),
    }
    photographs = Table(str(folder / "stamps/photographs.csv"), caption="caption", split="split")
    return ImageTextDataModule(tables[task], "align-mini", retention=[photographs], image_size=SIDE)


def train(data: ImageTextDataModule, rate: float, steps: int) -> AlignTask:
    """An adapter of both towers after so many steps at a peak learning rate."""
    seed_everything(0, verbose=False)
    task = AlignTask("align-mini", optimizer=partial(torch.optim.AdamW, lr=rate))
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=steps,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)
    return task


def measure_adapters(folder: Path, known: dict[str, dict[str, float]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields name, drift and loss of each adapter that is not known."""
    for task in ("digits", "emoji"):
        data = build_data(task, folder)
        wanted = {f"{task}, lr {rate:g}, {steps} steps": (rate, steps) for rate in RATES for steps in STEPS}
        wanted = {name: settings for name, settings in wanted.items() if name not in known}
        before = measure("cpu", AlignTask("align-mini", None, None), data) if wanted else None
        for name, settings in wanted.items():
            assert before is not None
            found = compare(before, measure("cpu", train(data, *settings), data))
            yield name, {"drift": found["drift"], "loss": found["retention"]["worst_relative_loss"]}


def correlate(found: dict[str, dict[str, float]], task: str = "") -> str:
    """Spearman's rank correlation of drift and loss over the adapters of a task, or all."""
    chosen = [values for name, values in found.items() if name.startswith(task)]
    result = spearmanr([values["drift"] for values in chosen], [values["loss"] for values in chosen])
    return f"{task or 'all'}: {result.statistic:.2f} over {len(chosen)} adapters"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the data sets were prepared")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name, values in measure_adapters(options.data, found):
        found[name] = values
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, found)
    print("| adapter | drift | lost elsewhere |\n| --- | ---: | ---: |")
    for name, values in found.items():
        print(f"| {name} | {values['drift']:.3f} | {100 * values['loss']:.1f} % |")
    print("\n" + "\n".join(correlate(found, task) for task in ("", "digits", "emoji")))


if __name__ == "__main__":
    main()
