"""What an epoch has logged so far, which Lightning's checkpoints leave out."""

from collections.abc import Mapping

from lightning import Trainer
from torch import Tensor

_STATES = ("value", "cumulated_batch_size")


class LoggedMeans:
    """Means, sums and extremes over the part of an epoch that a training was stopped after.

    Args:
        before: What `read` returned then.
    """

    def __init__(self, before: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
        self._before = dict(before or {})

    def read(self, trainer: Trainer) -> dict[str, dict[str, Tensor]]:
        """Returns the states of the values that are logged over the epoch, by their keys.

        Args:
            trainer: In training.
        """
        self.merge_into(trainer)
        found: dict[str, dict[str, Tensor]] = {key: dict(states) for key, states in self._before.items()}
        for key, metric in trainer.fit_loop.epoch_loop._results.items():
            if metric.meta.on_epoch and metric.is_tensor and metric.update_called:
                found[key] = {name: getattr(metric, name) for name in _STATES if hasattr(metric, name)}
        return found

    def merge_into(self, trainer: Trainer) -> None:
        """Adds what was logged before the stop to what was logged of the same key since.

        Args:
            trainer: In training.
        """
        results = trainer.fit_loop.epoch_loop._results
        for key in [key for key in self._before if key in results]:
            metric, before = results[key], self._before.pop(key)
            value = before["value"].to(metric.value)
            if metric.meta.is_max_reduction or metric.meta.is_min_reduction:
                metric.value = metric.meta.reduce_fx(value, metric.value)
                continue
            metric.value = value + metric.value
            if "cumulated_batch_size" in before:
                metric.cumulated_batch_size = before["cumulated_batch_size"].to(metric.value.device) + (
                    metric.cumulated_batch_size
                )
