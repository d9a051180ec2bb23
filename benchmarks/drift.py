"""Trains adapters of varied strength, and keeps what each makes of the drift meter's probe and of another domain.

    finetune prepare digits && finetune prepare emoji && finetune prepare stamps
    python benchmarks/drift.py && python benchmarks/drift_meters.py

For each adapter of align-mini, `--output` receives the embeddings that the meter sees (the task's own test images, and
words) and the mean hit rate on the stamps' photographs, on which no adapter was trained. Adapters that are there are
not trained again. `drift_meters.py` compares meters on these files.

There are two groups of adapters: 22 of both towers (two tasks, four learning rates, three lengths), by which a meter
may be chosen, and 7 of other kinds (one tower alone; another rank and task), which show whether the choice holds.
"""

import argparse
import functools
import logging
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from lightning import Trainer, seed_everything
from safetensors.torch import save_file

from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.probe import probe
from finetune.model.lora import TowerLora
from finetune.training.task import AlignTask

OUTPUT = Path("data/drift")
SIDE, BATCH = 96, 32
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


class Adapter(NamedTuple):
    """One adapter: its task, peak learning rate, steps, and what it trains of each tower."""

    task: str
    rate: float
    steps: int
    image_lora: TowerLora | None = TowerLora()
    text_lora: TowerLora | None = TowerLora()

    @property
    def name(self) -> str:
        """The name of its file and in the tables."""
        towers = {(True, False): ", image tower", (False, True): ", text tower"}
        of = towers.get((self.image_lora is not None, self.text_lora is not None), "")
        rank = {lora.rank for lora in (self.image_lora, self.text_lora) if lora} - {TowerLora().rank}
        return f"{self.task}, lr {self.rate:g}, {self.steps} steps{of}" + "".join(f", rank {each}" for each in rank)


CHOOSING = [
    Adapter(task, rate, steps)
    for steps, rates in ((8, RATES), (24, RATES), (48, RATES[:-1]))  # at the last rate all is lost after 8
    for task in ("digits", "emoji")
    for rate in rates
]
HOLDING = [
    *(Adapter("digits", rate, 16, TowerLora(), None) for rate in (1e-3, 3e-3)),
    *(Adapter("digits", rate, 16, None, TowerLora()) for rate in (1e-3, 3e-3)),
    *(Adapter("drawings", rate, 16, TowerLora(rank=4), TowerLora(rank=4)) for rate in RATES[:-1]),
]


def build_data(task: str, *, folder: Path) -> ImageTextDataModule:
    """Builds the data of a task, with the photographs as another domain."""
    tables = {
        "digits": Table(str(folder / "digits/digits.csv"), label="label", split="split", limit_rows=900),
        "emoji": Table(str(folder / "emoji/google.csv"), caption="caption", split="split", limit_rows=900),
        "drawings": Table(
            str(folder / "stamps/stamps.csv"), caption="caption", split="split", filter="kind == 'drawing'"
        ),
    }
    photographs = Table(str(folder / "stamps/photographs.csv"), caption="caption", split="split")
    return ImageTextDataModule(tables[task], "align-mini", retention=[photographs], image_size=SIDE, batch_size=BATCH)


def train(data: ImageTextDataModule, adapter: Adapter) -> AlignTask:
    """Trains an adapter."""
    seed_everything(0, verbose=False)
    optimizer = partial(torch.optim.AdamW, lr=adapter.rate)
    task = AlignTask("align-mini", adapter.image_lora, adapter.text_lora, optimizer=optimizer)
    trainer = Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_steps=adapter.steps,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)
    return task


def keep(task: AlignTask, data: ImageTextDataModule, path: Path) -> None:
    """Writes what the meter sees of a model, and the mean hit rate on the photographs."""
    task.eval()
    device, other = torch.device("cpu"), data.retention["photographs"]
    _, value = evaluate(task.model(other.class_prompts), other.loader("test"), other.kind.metric(), device).main
    seen = {name: tensor.contiguous().clone() for name, tensor in probe(task.towers, data, device)._asdict().items()}
    partial_path = path.with_suffix(".partial")
    save_file({**seen, "retention": torch.tensor(value)}, partial_path)
    partial_path.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the data sets were prepared")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where embeddings are kept, 60 MB")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no adapter after that")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    options.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    build = functools.cache(partial(build_data, folder=options.data))
    wanted = dict.fromkeys(("digits", "emoji", "drawings")) | {one.name: one for one in CHOOSING + HOLDING}
    for name, adapter in wanted.items():
        path = options.output / f"{name}.safetensors"
        if path.exists() or time.monotonic() > end:
            continue
        data = build(name.split(",")[0])
        task = AlignTask("align-mini", None, None) if adapter is None else train(data, adapter)
        keep(task, data, path)
        print(name, flush=True)


if __name__ == "__main__":
    main()
