"""A run on several devices: its processes are started, connected, and told apart from one that failed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Trainer

from finetune.core import processes
from finetune.training.data_parallel import DataParallel, Launcher


@contextmanager
def connected(trainer: Trainer) -> Iterator[None]:
    """Lets all processes of a run work on it as long as the block runs; where there is one device nothing happens.

    The other processes are started here, by calling the program again, unless `torchrun` or `srun` has started them.
    Their exit code is 0 where all were asked to stop: the first one's speaks for all.

    Args:
        trainer: The run's; it says which devices.

    Raises:
        ProcessError: If another process is gone, or does not answer.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DataParallel):
        yield
        return
    launcher = strategy.launcher
    assert isinstance(launcher, Launcher)
    try:
        launcher.launch(strategy.setup_environment)
        yield
    except BaseException as stop:
        is_first = processes.is_first()
        if isinstance(stop, SystemExit) and not is_first:
            raise SystemExit(0) from None
        if lost := processes.find_loss(stop):
            failed = launcher.find_failed(seconds=1.0)
            launcher.kill(signal.SIGKILL)
            for note in [*([f"It was {failed}."] if failed else []), *getattr(stop, "__notes__", ())]:
                lost.add_note(note)
            raise lost from stop
        raise
