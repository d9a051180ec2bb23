"""What every method is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_data import TaskData
from transfer_measure import Trained
from transfer_tasks import Task

Setting = Mapping[str, Any]


class Method(ABC):
    """A way to learn a task.

    Attributes:
        name: Name in the results.
        title: Name in the tables.
        trials: Settings it may try, its default first; a task says how many of them.
        tuned_like: Name of the method whose choice of settings is taken over, None to choose by itself.
    """

    name: str
    title: str
    trials: Sequence[Setting] = ({},)
    tuned_like: str | None = None

    def seeds(self, task: Task) -> int:
        """How often a task is repeated: seeds 0, 1, ..."""
        return task.seeds

    def handles(self, task: Task) -> bool:
        """Whether the method can learn the task; most need labels."""
        return task.home.label is not None

    @abstractmethod
    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        """Everything that decides the result beside task and seed, as JSON; a change of it makes results stale."""

    @abstractmethod
    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        """Learns the task from its training rows."""
