"""The results kept of each cell: a small JSON file, whether it still holds, and which setting was chosen."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transfer_measure import main_figure
from transfer_methods import METHODS
from transfer_methods.method import Method, Setting
from transfer_tasks import TASKS, Task

from finetune.run.results import installed_versions


@dataclass(frozen=True)
class Cell:
    """One training and its measurement.

    Args:
        task: What is learned.
        method: How.
        setting: One of the method's trials.
        seed: Draws rows, order and adapters.
    """

    task: Task
    method: Method
    setting: Setting
    seed: int

    @property
    def what(self) -> str:
        """The task, the method and the setting: the cell but for its seed, as text."""
        return json.dumps([dataclasses.asdict(self.task), self.method.name, self.setting])

    @property
    def name(self) -> str:
        """Its file, without the ending, below the folder of results."""
        values = "-".join(f"{key}{value}" for key, value in self.setting.items()) or "default"
        return f"{self.task.name}/{self.method.name}-{values}-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides the figures, as JSON would return it."""
        about_choice = ("name", "title", "seeds", "trials", "tuned_like")
        of_methods = ("augmentations",)  # those of them that augment name it among their own settings
        left_out = (*about_choice, *of_methods)
        task = {key: value for key, value in dataclasses.asdict(self.task).items() if key not in left_out}
        values = {"task": task, "method": self.method.settings(self.task, self.setting), "seed": self.seed}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


class Choice(NamedTuple):
    """The setting that is repeated.

    Attributes:
        setting: It.
        tried: How many trials were run; where none was, the setting is the method's first.
        budget: How many trials there are to be.
    """

    setting: Setting
    tried: int
    budget: int


@dataclass(frozen=True)
class Results:
    """A folder of cells.

    Args:
        folder: Where they lie.
    """

    folder: Path
    _settings: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)
    """Of each task, method and setting asked for: a recipe takes longer to read than its cells, which share it."""

    def write(self, cell: Cell, found: Mapping[str, Any], seconds: float) -> None:
        """Keeps what was measured, with the settings and the machine.

        Args:
            cell: The cell.
            found: `metrics` by place, and what else there is.
            seconds: Time of the training alone.
        """
        path = self.folder / f"{cell.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            **found,
            "train_seconds": round(seconds, 1),
            "settings": self._settings_of(cell),
            "machine": describe_machine(),
        }
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's record; None where it was not run, or where a setting has changed since."""
        path = self.folder / f"{cell.name}.json"
        if not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record if holds(record["settings"], self._settings_of(cell)) else None

    def _settings_of(self, cell: Cell) -> dict[str, Any]:
        if cell.what not in self._settings:
            self._settings[cell.what] = cell.settings()
        return {**self._settings[cell.what], "seed": cell.seed}

    def choose(self, task: Task, method: Method) -> Choice:
        """The setting with the best validation figure of the first seed, the earlier one where they tie.

        Args:
            task: Any task.
            method: Any method.
        """
        cells = trials(*deciders(task, method))
        found = [(cell, self.read(cell)) for cell in cells]
        run = [(main_figure(record["metrics"]["val"]), cell.setting) for cell, record in found if record]
        _, setting = max(run, key=lambda pair: pair[0], default=(0.0, method.trials[0]))
        return Choice(setting, len(run), len(cells))

    def repeats(self, task: Task, method: Method, setting: Setting) -> dict[int, dict[str, Any]]:
        """The records there are of a setting, by seed.

        Args:
            task: Any task.
            method: Any method.
            setting: One of its trials.
        """
        records = {seed: self.read(Cell(task, method, setting, seed)) for seed in range(method.seeds(task))}
        return {seed: record for seed, record in records.items() if record is not None}

    def parts(self, task: Task, method: Method, name: str) -> list[dict[str, Any]]:
        """What the records of a recipe as shipped hold beside the metrics, of each seed that has it.

        Args:
            task: Any task.
            method: Any method; none where it cannot learn the task.
            name: `line` or `calibration`.
        """
        records = self.repeats(task, method, method.trials[0]).values() if method.handles(task) else ()
        return [record[name] for record in records if name in record]


def deciders(task: Task, method: Method) -> tuple[Task, Method]:
    """The task and the method whose trials decide on the setting: the two themselves, or what they are tuned like."""
    tasks = {each.name: each for each in TASKS}
    methods = {each.name: each for each in METHODS}
    return tasks.get(task.tuned_like or "", task), methods.get(method.tuned_like or "", method)


def trials(task: Task, method: Method) -> list[Cell]:
    """The cells of the first seed that a choice is made from."""
    return [Cell(task, method, setting, 0) for setting in method.trials[: task.trials]]


def holds(stored: Any, now: Any) -> bool:
    """Whether every setting that was stored is the same now; settings that came since are passed over.

    Args:
        stored: JSON value.
        now: JSON value.

    Example:
        >>> holds({"lr": 1, "more": {"rank": 2}}, {"lr": 1, "more": {"rank": 2, "new": 0}})
        True
        >>> holds({"lr": 1}, {"lr": 2})
        False
    """
    if isinstance(stored, dict) and isinstance(now, dict):
        return all(key in now and holds(value, now[key]) for key, value in stored.items())
    return bool(stored == now)


def describe_machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    names: Sequence[str] = [platform.processor() or platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or names
    versions = {key: value for key, value in installed_versions().items() if key in ("torch", "transformers", "peft")}
    return {"cpu": names[0], "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}
