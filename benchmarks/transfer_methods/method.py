"""What every method is."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from transfer_data import TaskData
from transfer_measure import Trained
from transfer_tasks import Task

Setting = Mapping[str, Any]


class Method(Protocol):
    """A way to learn a task.

    Attributes:
        name: Name in the files of results.
        title: Its words in the table.
        trials: Settings it may try, its default first; a task says how many of them.
        tuned_like: Name of the method whose choice of settings is taken over, None to choose by itself.
    """

    name: str
    title: str
    trials: Sequence[Setting]
    tuned_like: str | None

    def seeds(self, task: Task) -> int:
        """How often a task is repeated: seeds 0, 1, ..."""
        ...

    def handles(self, task: Task) -> bool:
        """Whether it can learn the task."""
        ...

    def settings(self, task: Task, setting: Setting) -> dict[str, Any]:
        """Everything that decides the result beside task and seed, as JSON; a change of it makes results stale."""
        ...

    def learn(self, data: TaskData, setting: Setting, seed: int) -> Trained:
        """Learns the task from its training rows."""
        ...
