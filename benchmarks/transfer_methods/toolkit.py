"""The toolkit itself: the task, data module and training of a shipped recipe, in this process."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transfer_data import BASE, TaskData
from transfer_line import line_of_task
from transfer_measure import Trained
from transfer_tasks import Task

from finetune.core.shipped import find_recipe
from finetune.pipeline.recipe import Recipe, read_recipe
from finetune.pipeline.train import fit
from finetune.run.folder import RunFolder
from finetune.training.classification_task import ClassificationTask
from transfer_methods.method import Method, Setting

TRAINER_KEYS = ("max_epochs", "precision", "callbacks", "accumulate_grad_batches", "gradient_clip_val")


@dataclass(frozen=True)
class Toolkit(Method):
    """Runs a shipped recipe on align-mini, at the task's image size, with the task's epochs and augmentations.

    Nothing is chosen on the task's own rows. Training is that of a run, which keeps the best weights by the validation
    metric. Merging, its proof and the report are left out, as they change no figure.

    Args:
        name: Name in the results.
        title: Name in the tables.
        recipe: Name of the shipped recipe.
        labels: Whether the recipe learns labels, rather than captions.
        few: Whether the recipe is only for a handful of rows a class.
        words: Overrides that make it a variant.
        length: How often the task's epochs are trained.
    """

    name: str
    title: str
    recipe: str
    labels: bool
    few: bool = False
    words: Sequence[str] = ()
    length: int = 1

    def handles(self, task: Task) -> bool:
        return (task.home.label is not None) == self.labels and (task.shots is not None or not self.few)

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        values = yaml.safe_load(self._read(task, ["--data.table.path", "table.csv"], 0).resolved)
        data = {key: value for key, value in values["data"]["init_args"].items() if key not in ("table", "num_workers")}
        trainer = {key: values["trainer"][key] for key in TRAINER_KEYS}
        return {
            "version": 1,
            "kept": "latest best",
            "soup": values["run"]["soup"],
            "model": values["model"],
            "data": data,
            "trainer": trainer,
        }

    def _read(self, task: Task, table: Sequence[str], seed: int) -> Recipe:
        column = "label" if self.labels else "caption"
        words = [
            *("--model.checkpoint", BASE),
            *table,
            *("--data.table.split", task.home.split),
            *(f"--data.table.{column}", str(task.home.label or task.home.caption)),
            *("--data.image_size", str(task.home.image_size)),
            *("--data.augmentations", json.dumps(task.augmentations)),
            *("--data.num_workers", "0"),
            *("--trainer.max_epochs", str(self.length * task.epochs)),
            *("--trainer.accelerator", "cpu"),
            *("--trainer.precision", "bf16-mixed"),
            *("--trainer.enable_progress_bar", "false"),
            *("--run.seed", str(seed)),
        ]
        if self.labels:
            words += ["--data.templates", json.dumps([task.home.template])]
        return read_recipe(find_recipe(self.recipe), [*words, *self.words])

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        table = ["--data.table.path", str(data.table.path)]
        if data.table.images is not None:
            table += ["--data.table.images", data.table.images]
        if data.table.filter is not None:
            table += ["--data.table.filter", data.table.filter]
        recipe = self._read(data.task, table, seed)
        module = recipe.build_data()
        task = recipe.build_task()
        with tempfile.TemporaryDirectory() as folder:
            fit(recipe, task, module, RunFolder(Path(folder) / "run"))
        head = task.head if isinstance(task, ClassificationTask) else None
        return Trained(task.towers.align, head, line_of_task(task, head))
