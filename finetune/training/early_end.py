"""Why a training ended before its last step."""

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from finetune.core.errors import Concern
from finetune.training.schedules import total_steps


def find_early_end(trainer: Trainer) -> Concern | None:
    """Returns what ended a training early; None of one that took all its steps.

    Args:
        trainer: That has fitted.
    """
    steps = total_steps(trainer)
    if not trainer.should_stop or trainer.global_step >= steps:
        return None
    reason = _find_reason(trainer)
    return Concern("early end", f"It ended early, after step {trainer.global_step:,} of {steps:,}: {reason}.")


def _find_reason(trainer: Trainer) -> str:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    for one in callbacks:
        if isinstance(one, EarlyStopping) and one.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            said = one.stopping_reason_message or one.stopping_reason.name
            return said.removesuffix(" Signaling Trainer to stop.").removesuffix(".")
        if isinstance(one, Timer) and (left := one.time_remaining()) is not None and left <= 0:
            return "trainer.max_time was over"
    return "a callback has asked for it"
