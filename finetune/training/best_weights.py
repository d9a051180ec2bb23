"""Which weights of a training are kept: the latest that are not clearly worse on the validation rows."""

import math
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class LatestBest(ModelCheckpoint):
    """Keeps the latest weights whose validation metric is within a standard error of the highest there was.

    On few validation rows the highest is often a chance of an early epoch, and the weights after the whole schedule are
    the better ones. It is the one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees,
    section 3.4.3), with the later epoch in the place of the smaller tree. With n rows and a highest mean p of values in
    [0, 1] the standard error is taken as sqrt(p (1 - p) / n): that is what it is for shares and at most for other means
    (Bhatia and Davis 2000, American Mathematical Monthly 107).

    Args:
        rows: n, the validation rows.
        options: Those of `ModelCheckpoint`, with a metric to monitor that lies in [0, 1], higher being better.
    """

    def __init__(self, rows: int, **options: Any) -> None:
        super().__init__(mode="max", **options)
        self.rows = rows
        self.highest = 0.0

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the weights of now take the place of those kept."""
        if current is None:
            return False
        value = min(max(float(current), 0.0), 1.0)
        self.highest = max(self.highest, value)
        error = math.sqrt(self.highest * (1 - self.highest) / self.rows)
        return bool(trainer.strategy.reduce_boolean_decision(not self.best_k_models or value >= self.highest - error))

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and the highest value there was."""
        return {**super().state_dict(), "highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.highest = state_dict["highest"]
        super().load_state_dict(state_dict)
