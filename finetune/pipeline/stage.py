"""How a stage of a run is run: it leaves its output whole or absent, and then a record of what it was made from.

It is skipped as long as that is unchanged and the output is there.
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from finetune.core import processes
from finetune.core.console import say
from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.files import read_json, remove_staged, write_json
from finetune.core.places import NO_ROOM, name_place
from finetune.pipeline.work import Work
from finetune.run.folder import RunFolder


class Stage(ABC):
    """One step of a run.

    Its record names the fingerprints of what it read, the files it left, rows it skipped, and the seconds it took.
    """

    name: ClassVar[str]
    is_shared: ClassVar[bool] = False
    """Whether all processes of a run have a part in the work; else the first one does it, and the others wait."""

    @abstractmethod
    def inputs(self, work: Work) -> dict[str, str]:
        """Returns the fingerprints of what the stage reads, by a name for each."""

    @abstractmethod
    def make(self, work: Work) -> Sequence[Path]:
        """Does the work, in place of what an earlier run of the stage left, and returns the files and folders.

        Of several processes the first one alone writes.
        """

    def is_done(self, work: Work) -> bool:
        """Returns whether the output is there and was made from the inputs as they are now."""
        return self._find_changes(work, self.inputs(work)) == []

    def run(self, work: Work) -> None:
        """Does the work, unless it is done. Until the last stage has ended, the run is not finished any more."""
        inputs = processes.from_first(lambda: self._begin(work))
        if inputs is None:
            return
        started = time.monotonic()
        if self.is_shared:
            made = self.make(work)
            work.data.share_unreadable()
            processes.from_first(lambda: self._end(work, inputs, made, started))
        else:
            processes.from_first(lambda: self._end(work, inputs, self.make(work), started))

    def _begin(self, work: Work) -> dict[str, str] | None:
        """The inputs of a stage that is not done, of which nothing is left to be taken for done."""
        inputs = self.inputs(work)
        changes = self._find_changes(work, inputs)
        if changes == []:
            return None
        say(f"stage {self.name}" + (f", again for {', '.join(changes)}" if changes else ""), file=sys.stderr)
        for outdated in (work.run.finished, work.run.stage(self.name)):
            outdated.unlink(missing_ok=True)
        return inputs

    def _end(self, work: Work, inputs: dict[str, str], made: Sequence[Path], started: float) -> None:
        skipped = [row._asdict() for row in work.data.skipped]
        seconds = round(time.monotonic() - started, 3)
        record = {"inputs": inputs, "outputs": work.places(made), "skipped": skipped, "seconds": seconds}
        write_json(work.run.stage(self.name), record)

    def seconds(self, work: Work) -> float:
        """Returns how long the stage took; 0 where that is not known."""
        record = work.run.stage(self.name)
        return float(read_json(record).get("seconds", 0.0)) if record.is_file() else 0.0

    def changed_inputs(self, work: Work) -> list[str]:
        """Returns the names of inputs that have changed since the stage was done; none if it was never done."""
        record = work.run.stage(self.name)
        return compare(read_json(record)["inputs"], self.inputs(work)) if record.is_file() else []

    def _find_changes(self, work: Work, inputs: Mapping[str, str]) -> list[str] | None:
        """What has changed since the stage was done: inputs, and outputs that are gone; None if it was never done."""
        record = work.run.stage(self.name)
        if not record.is_file():
            return None
        done = read_json(record)
        gone = [name for name in done["outputs"] if not (work.run.path / name).is_file()]
        return compare(done["inputs"], inputs) + gone


def run_stages(work: Work, stages: Sequence[Stage]) -> None:
    """Runs the stages that are left. Whoever calls it holds the run's lock.

    Args:
        work: The run.
        stages: All stages of a run, in their order.
    """
    with _saying_how_to_go_on(work.run.path):
        processes.from_first(lambda: remove_staged(work.run.path))
        for stage in stages:
            stage.run(work)


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Returns the names whose values differ.

    Args:
        before: Values by name.
        after: The same later.
    """
    return [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]


@contextmanager
def _saying_how_to_go_on(run: Path) -> Iterator[None]:
    """Adds to what stops a run, such as Ctrl-C, a full disk or an error in a callback, how to go on with it."""
    try:
        with name_place(run, NO_ROOM):
            yield
    except BaseException as stop:
        comes_again = isinstance(stop, CheckpointError | RecipeError | TableError)
        if not comes_again or RunFolder(run).started.is_file():
            stop.add_note(f"Do what is left of it: finetune resume {run}")
        raise
