"""What an epoch has logged so far, which Lightning's checkpoints leave out."""

from collections.abc import Mapping
from typing import Any

from lightning import Trainer

_STATES = ("value", "cumulated_batch_size")
_ARGUMENTS = ("fx", "name", "prog_bar", "logger", "on_step")


class EpochLog:
    """Means, sums and extremes over the part of an epoch after which a training was stopped.

    Args:
        before: What `read` returned then.
    """

    def __init__(self, before: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._before = dict(before or {})
        self._completed: list[str] = []

    def read(self, trainer: Trainer) -> dict[str, dict[str, Any]]:
        """Returns the values that are logged over the epoch, by their keys, as they are now.

        Args:
            trainer: In training.
        """
        self.add(trainer)
        found = {key: dict(before) for key, before in self._before.items()}
        for key, metric in trainer.fit_loop.epoch_loop._results.items():
            if metric.meta.on_epoch and metric.is_tensor and not metric.has_reset:
                arguments = {name: getattr(metric.meta, name) for name in _ARGUMENTS}
                states = {name: getattr(metric, name) for name in _STATES if hasattr(metric, name)}
                found[key] = {**arguments, **states, "reduce_fx": metric.meta.reduce_fx.__name__}
        return found

    def add(self, trainer: Trainer) -> None:
        """Adds what was logged before the stop to what was logged of the same key since.

        Args:
            trainer: In training, within an epoch.
        """
        results = trainer.fit_loop.epoch_loop._results
        for key in self._completed:
            del results[key]
        self._completed = []
        for key in [key for key in self._before if key in results]:
            metric, before = results[key], self._before.pop(key)
            value = before["value"].to(metric.value)
            if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
                metric.value = metric.meta.reduce_fx(value, metric.value)
                continue
            metric.value = value + metric.value
            if metric.meta.is_mean_reduction:
                metric.cumulated_batch_size = before["cumulated_batch_size"].to(value.device) + (
                    metric.cumulated_batch_size
                )

    def complete(self, trainer: Trainer) -> None:
        """Does the same at the end of an epoch, and takes over what was not logged again in it.

        Args:
            trainer: In training, at the end of the epoch.
        """
        self.add(trainer)
        results = trainer.fit_loop.epoch_loop._results
        for key, before in self._before.items():
            arguments = {name: before[name] for name in _ARGUMENTS}
            results.log(**arguments, value=before["value"], reduce_fx=before["reduce_fx"], batch_size=1)
            for name in set(_STATES) & before.keys():
                setattr(results[key], name, before[name])
        self._completed = [*self._before]
        self._before = {}
