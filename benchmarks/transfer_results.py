"""The cells that were run: a line of JSON each, whether it still holds, and which setting is the best of its task."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from transfer_measure import main_figure
from transfer_methods import METHODS
from transfer_methods.method import Method, Setting
from transfer_tasks import TASKS, Task

from finetune.core.files import write_text
from finetune.run.results import installed_versions

Record = dict[str, Any]


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
        """The task, the method and the setting, without the seed, as text."""
        return json.dumps([dataclasses.asdict(self.task), self.method.name, self.setting])

    @property
    def name(self) -> str:
        """The words that `--list` prints."""
        values = "-".join(f"{key}{value}" for key, value in self.setting.items()) or "default"
        return f"{self.task.name}/{self.method.name}-{values}-seed{self.seed}"

    @property
    def key(self) -> Record:
        """What its line begins with; no other line of the task has the same."""
        return {"task": self.task.name, "method": self.method.name, "setting": dict(self.setting), "seed": self.seed}

    def settings(self) -> Record:
        """Everything besides the seed that decides the figures, as JSON returns it."""
        about_choice = ("name", "title", "seeds", "trials", "tuned_like")
        of_methods = ("augmentations",)  # a method that augments names them among its own settings
        left_out = (*about_choice, *of_methods)
        task = {key: value for key, value in dataclasses.asdict(self.task).items() if key not in left_out}
        plain: Record = json.loads(json.dumps({"task": task, "method": self.method.settings(self.task, self.setting)}))
        return plain


class Choice(NamedTuple):
    """The setting that is repeated.

    Attributes:
        setting: The best of the trials that were run, or the method's first where none was.
        tried: Number of trials that were run.
        budget: Number of trials in all.
    """

    setting: Setting
    tried: int
    budget: int


@dataclass(frozen=True)
class Results:
    """A folder of cells: TASK.jsonl holds the cells of a task, one a line, sorted by method, setting and seed.

    Args:
        folder: Where the files lie.
    """

    folder: Path
    _settings: dict[str, Record] = field(default_factory=dict, init=False, repr=False)
    """By task, method and setting: a recipe takes longer to read than its cells, which share it."""

    def write(self, cell: Cell, found: Mapping[str, Any], seconds: float) -> None:
        """Keeps what was measured, with the settings and the machine, in place of the cell's former line.

        Args:
            cell: The cell.
            found: `metrics` by place, and what else there is.
            seconds: Time of the training alone.
        """
        kept = {"train_seconds": round(seconds, 1), "settings": self._settings_of(cell), "machine": describe_machine()}
        path = self._path(cell.task)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # others may add cells of the task meanwhile
            records = [record for record in read_records(path) if not is_of(record, cell)]
            records = sorted([*records, {**cell.key, **found, **kept}], key=_order)
            lines = [json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n" for record in records]
            write_text(path, "".join(lines))

    def read(self, cell: Cell) -> Record | None:
        """The cell's record; None where it was not run, or where a setting has changed since."""
        record = next((each for each in read_records(self._path(cell.task)) if is_of(each, cell)), None)
        return record if record and holds(record["settings"], self._settings_of(cell)) else None

    def _path(self, task: Task) -> Path:
        return self.folder / f"{task.name}.jsonl"

    def _settings_of(self, cell: Cell) -> Record:
        if cell.what not in self._settings:
            self._settings[cell.what] = cell.settings()
        return self._settings[cell.what]

    def choose(self, task: Task, method: Method) -> Choice:
        """Chooses the setting with the best validation figure of the first seed, the earlier one where they tie.

        Args:
            task: Any task.
            method: Any method.
        """
        cells = trials(*deciders(task, method))
        found = [(cell, self.read(cell)) for cell in cells]
        run = [(main_figure(record["metrics"]["val"]), cell.setting) for cell, record in found if record]
        _, setting = max(run, key=lambda pair: pair[0], default=(0.0, method.trials[0]))
        return Choice(setting, len(run), len(cells))

    def repeats(self, task: Task, method: Method, setting: Setting) -> dict[int, Record]:
        """Reads the records of a setting, by seed.

        Args:
            task: Any task.
            method: Any method.
            setting: One of its trials.
        """
        records = {seed: self.read(Cell(task, method, setting, seed)) for seed in range(method.seeds(task))}
        return {seed: record for seed, record in records.items() if record is not None}

    def parts(self, task: Task, method: Method, name: str) -> list[Record]:
        """Reads what the records of a recipe as shipped hold beside the metrics, of each seed that has it.

        Args:
            task: Any task.
            method: Any method; none where it cannot learn the task.
            name: `line` or `calibration`.
        """
        records = self.repeats(task, method, method.trials[0]).values() if method.handles(task) else ()
        return [record[name] for record in records if name in record]


def read_records(path: Path) -> Sequence[Record]:
    """All lines of a file as they are now; none where there is no file."""
    if not path.is_file():
        return ()
    state = path.stat()
    return _parse(path, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=len(TASKS))
def _parse(path: Path, state: tuple[int, ...]) -> Sequence[Record]:  # noqa: ARG001
    """Parses a file once in each state: the tables ask for thousands of cells."""
    return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def is_of(record: Record, cell: Cell) -> bool:
    """Whether a line is the cell's."""
    return cell.key.items() <= record.items()


def _order(record: Record) -> tuple[Any, ...]:
    return record["method"], sorted(record["setting"].items()), record["seed"]


def deciders(task: Task, method: Method) -> tuple[Task, Method]:
    """Names the task and the method whose trials decide: the two themselves, or those they are tuned like."""
    tasks = {each.name: each for each in TASKS}
    methods = {each.name: each for each in METHODS}
    return tasks.get(task.tuned_like or "", task), methods.get(method.tuned_like or "", method)


def trials(task: Task, method: Method) -> list[Cell]:
    """Lists the cells of the first seed from which a setting is chosen."""
    return [Cell(task, method, setting, 0) for setting in method.trials[: task.trials]]


def holds(stored: Any, now: Any) -> bool:
    """Whether every stored setting is the same now; settings that were added since do not count.

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


def describe_machine() -> Record:
    """Names the processor, the threads and the versions."""
    names: Sequence[str] = [platform.processor() or platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or names
    versions = {key: value for key, value in installed_versions().items() if key in ("torch", "transformers", "peft")}
    return {"cpu": names[0], "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}
