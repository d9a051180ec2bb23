"""The results of a run, for the loggers of its training."""

from collections.abc import Mapping

import yaml

from finetune.core.files import read_text
from finetune.pipeline.work import Work
from finetune.run.folder import BASE
from finetune.training.loggers import TensorBoardLog, find_last_step, has_tensorboard


def log_results(work: Work, measured: Mapping[str, Mapping[str, float]]) -> None:
    """Logs what was measured of the exported model under its own names, and of the base as `base/...`.

    Loggers that the recipe names log them in the process that has trained; another would begin a second run of theirs.
    TensorBoard has the recipe beside the results, so that it compares runs by both.

    Args:
        work: The run.
        measured: Metrics by the name of the model.
    """
    run, step = work.run, find_last_step(work.run.logged)
    results = {
        f"{BASE}/{key}" if model == BASE else key: value
        for model, metrics in measured.items()
        for key, value in metrics.items()
    }
    for logger in work.loggers:
        logger.log_metrics(results, step)
        logger.save()
    if work.recipe.takes_tensorboard and has_tensorboard():
        board = TensorBoardLog(run.tensorboard)
        board.log_hyperparams(yaml.safe_load(read_text(run.recipe)), results, step)
        board.finalize("success")
