"""Which weights of a training are kept: the latest that are not clearly worse on the validation rows."""

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from finetune.metrics.statistics import standard_error


class LatestBest(ModelCheckpoint):
    """Keeps the latest weights whose validation metric is within a standard error of the highest there was.

    On few validation rows an early epoch often reaches the highest value by chance, and the weights after the whole
    schedule are better. This is the one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees,
    section 3.4.3), with the later epoch in the place of the smaller tree, and the error of
    `finetune.metrics.statistics.standard_error`.

    Args:
        rows: Number of validation rows. Without any, and so without a metric, the last weights are kept.
        options: Those of `ModelCheckpoint`; the monitored metric lies in [0, 1], and higher is better.
    """

    def __init__(self, rows: int, **options: Any) -> None:
        super().__init__(mode="max", enable_version_counter=False, **options)
        self.rows = rows
        self.highest = 0.0

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Returns whether the current weights take the place of the kept ones."""
        if current is None:
            return False
        share = min(max(float(current), 0.0), 1.0)
        self.highest = max(self.highest, share)
        error = standard_error(self.highest, self.rows)
        return bool(trainer.strategy.reduce_boolean_decision(not self.best_k_models or share >= self.highest - error))

    def state_dict(self) -> dict[str, Any]:
        """Adds the highest value there was to Lightning's state."""
        return {**super().state_dict(), "highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the highest value there was, wherever the files lie now."""
        self.highest = state_dict["highest"]
        former, folder = state_dict["dirpath"], str(self.dirpath)

        def move(path: str) -> str:
            return folder + path.removeprefix(former) if path.startswith(former) else path

        kept = {move(path): score for path, score in state_dict["best_k_models"].items()}
        paths = {key: move(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": folder})
