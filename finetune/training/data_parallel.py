"""Training in several processes, one a device, each of which has a part of every batch."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.nn import Parameter
from torch.optim import Optimizer

from finetune.core import processes
from finetune.core.console import say
from finetune.core.cores import count_local_processes, count_processes
from finetune.core.door import FAULT

_GRACE = 10.0
"""Seconds in which the first process may notice by itself that another has failed."""


class DataParallel(DDPStrategy):
    """Trains as one process with the joined batch would.

    The loss compares rows across all processes (`finetune.training.global_loss`), and the gradients are averaged once a
    step, in the order of the parameters, just before they are clipped. The model is not wrapped: there is no reducer
    with its rules on unused parameters and repeated backward passes, and micro-batches and accumulation need none.

    Args:
        timeout: How long a process waits for the others within a step, before it gives them up.
        options: Those of Lightning's `DDPStrategy` that say where the processes are.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=10), **options: Any) -> None:
        super().__init__(**options)
        self._longest_wait = timeout

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Connects the processes."""
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if restarts != "0" and not dist.is_initialized():
            self._connect_again(restarts)
        super().setup_environment()
        processes.open_groups(self._longest_wait)

    def _connect_again(self, restarts: str) -> None:
        """Connects processes that `torchrun` has started again.

        Its store still holds the addresses of those that have ended, to which a process would connect that is faster
        than the others. So each start has keys of its own.
        """
        world = int(os.environ["WORLD_SIZE"])
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False)  # type: ignore[attr-defined]
        dist.init_process_group(
            self._get_process_group_backend(),
            store=dist.PrefixStore(f"start-{restarts}", store),  # type: ignore[attr-defined]
            rank=int(os.environ["RANK"]),
            world_size=world,
        )

    def configure_ddp(self) -> None:
        """Gives all processes the trained weights of the first, in place of Lightning's wrapper."""
        assert self.model is not None
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                dist.broadcast(parameter.data, src=0)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: Any = None,
        **options: Any,
    ) -> Any:
        """Averages the gradients once they are there, before anything looks at them, and steps.

        Args:
            optimizer: As Lightning calls it.
            closure: Computes the gradients.
            model: As Lightning calls it.
            options: Likewise.
        """

        def compute() -> Any:
            found = closure()
            assert self.model is not None
            average_gradients(self.model.parameters())
            return found

        return super().optimizer_step(optimizer, compute, model, **options)


@torch.no_grad()
def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Puts the mean over all processes in the place of each gradient.

    A gradient that a process lacks counts as zero; one that all of them lack stays None.

    Args:
        parameters: In the same order, and trained or not, in all processes.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    found = processes.sum_counts([int(parameter.grad is not None) for parameter in trained])
    shared = [parameter for parameter, number in zip(trained, found, strict=True) if number]
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in shared]
    for _, group in groupby(gradients, key=lambda gradient: (gradient.device, gradient.dtype)):
        alike = [*group]
        mean = processes.average(torch.cat([gradient.reshape(-1) for gradient in alike]))
        for gradient, part in zip(alike, mean.split([gradient.numel() for gradient in alike]), strict=True):
            gradient.copy_(part.view_as(gradient))
    for parameter, gradient in zip(shared, gradients, strict=True):
        parameter.grad = gradient


def find_launched() -> tuple[int, int] | None:
    """Returns how many processes `torchrun` or `srun` has started on this machine, and on how many machines.

    Returns:
        None where neither has started several.
    """
    if not (TorchElasticEnvironment.detect() or SLURMEnvironment.detect()):
        return None
    started, local = count_processes(), count_local_processes()
    return None if started == 1 else (local, started // local)


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher: it starts this program once for each further device, and knows which of them failed."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:  # noqa: ARG002
        """Starts the other processes, unless they are there, and calls a function in each.

        Args:
            function: What to call.
            args: Its arguments.
            trainer: Lightning's, not used.
            kwargs: Further arguments of the function.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._watch, name="watch-processes", daemon=True).start()
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(self.num_processes))
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def find_failed(self, seconds: float = 0.0) -> str | None:
        """Returns which of the processes that were started here has failed, and how; None where none has.

        Args:
            seconds: How long to wait until one has.
        """
        end = time.monotonic() + seconds
        while True:
            codes = [process.poll() for process in self.procs]
            for number, code in enumerate(codes, 1):
                if code:
                    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                    return f"process {number}, which {how}"
            if time.monotonic() >= end:
                return None
            time.sleep(0.05)

    def _watch(self) -> None:
        """Ends all processes where one has failed and the first one, waiting for it, does not end by itself."""
        while not (failed := self.find_failed(1.0)):
            if all(process.poll() == 0 for process in self.procs):
                return
        time.sleep(_GRACE)
        say(f"error: {failed}: all are ended.", file=sys.stderr)
        self.kill(signal.SIGKILL)
        os._exit(FAULT)
