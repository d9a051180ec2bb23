"""A whole run: started from a recipe, or finished from its folder, stage by stage."""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack

from lightning import Trainer

from finetune.core.console import say
from finetune.core.errors import RecipeError
from finetune.core.files import read_text, write_text
from finetune.core.places import AnyPath, require_place, require_utf8
from finetune.data.checks.check import print_warnings
from finetune.data.table.arrow_files import write_frame
from finetune.pipeline.devices import connected
from finetune.pipeline.recipe import Recipe, open_recipe, read_recipe
from finetune.pipeline.stage import run_stages
from finetune.pipeline.stages import STAGES, TRAIN
from finetune.pipeline.unseen import tell_changes
from finetune.pipeline.work import Work
from finetune.run.folder import RunFolder, open_run
from finetune.run.lock import hold

_EXPECTED_WARNINGS = (
    r"Label .* is present in all training examples",  # scikit-learn, of a class that all training rows have, or none
    r".*does not have many workers",  # the recipe says how many
    r".*Experiment logs directory .* exists",  # the run's folder was made for this log
    r".*Checkpoint directory .* exists",
    r".*smaller than the logging interval",
    r".*treespec",  # lightning on torch 2.13
    r"It is recommended to use `self.log\(.*sync_dist=True",  # what is logged is the same in all processes
    r"(?s).*does not round-trip",  # tuples of albumentations in YAML, read back as lists all the same
)


def run_recipe(recipe: Recipe | AnyPath, overwrite: bool = False) -> RunFolder:
    """Measures the base, trains, merges, proves the merge, and measures what was exported.

    Args:
        recipe: What to run: a recipe, its file, or the name of a shipped one. A DataFrame in it is written into the
            run's folder.
        overwrite: Whether a run of the same name is replaced.

    Returns:
        The finished run's folder.

    Raises:
        TableError: If the table has a fault; nothing is written then.
        RecipeError: If a run of that name exists and `overwrite` is false, or the interpolation is to be chosen but the
            tables hold nothing to choose it by.
        CheckpointError: If a checkpoint does not load or the proof fails.
        OSError: If the run's folder cannot be written.
    """
    quieten()
    recipe = open_recipe(recipe)
    run = RunFolder(recipe.folder)
    work = Work(recipe, run)
    trainer = recipe.build_trainer() if recipe.find_devices() else None
    with ExitStack() as stack:
        if _is_first(trainer):
            is_new = not _was_started_again(recipe, run)
            if is_new:
                check_run(work, overwrite)
            stack.enter_context(hold(run.path))
            if is_new:
                run.create(overwrite, needed=[work.base.folder, *work.tables])
                _write_recipe(work)
        if recipe.frame is not None:  # from now on its file, which `resume_run` will read, too
            work = Work(recipe.reading(run.frame), run)
        _finish(work, trainer)
    return run


def _write_recipe(work: Work) -> None:
    """Writes what repeats the run: its recipe, and the DataFrame that this names."""
    recipe, run = work.recipe, work.run
    if recipe.frame is not None:
        table = work.data.table
        write_frame(recipe.frame, table.columns, table.row_filter, run.frame)
        recipe = recipe.reading(run.frame)
    write_text(run.recipe, recipe.resolved)


def _is_first(trainer: Trainer | None) -> bool:
    """Whether this process is the first of several, or the only one, before they are connected."""
    return trainer is None or trainer.is_global_zero


def _was_started_again(recipe: Recipe, run: RunFolder) -> bool:
    """Whether `torchrun` has started all processes of the run again, after one of them had failed."""
    is_repeated = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    repeated = recipe if recipe.frame is None else recipe.reading(run.frame)
    return is_repeated and run.recipe.is_file() and read_text(run.recipe) == repeated.resolved


def check_run(work: Work, overwrite: bool) -> None:
    """Finds what would end a run, before anything is written.

    Args:
        work: The run, of which nothing exists.
        overwrite: Whether a run of the same name is replaced.
    """
    run = work.run
    require_utf8(run.path)
    require_place(run.path)
    run.require_free(overwrite)
    if run.recipe.is_file():  # nobody waits for a refusal
        with hold(run.path):
            pass
    work.check()
    concerns = [*work.data.find_concerns(), *work.recipe.task_class.find_concerns(work.data)]
    print_warnings(work.data.rows, concerns)


def _finish(work: Work, trainer: Trainer | None) -> None:
    """Runs the stages that are left, in all processes. Of a single device no trainer says where it is."""
    if trainer is None:
        run_stages(work, STAGES)
        return
    with connected(trainer):
        work.device = trainer.strategy.root_device
        run_stages(work, STAGES)


def resume_run(run: AnyPath, trust: Sequence[str] = (), anyway: bool = False, devices: str | None = None) -> RunFolder:
    """Runs the stages of a run that are left: those that never ended, and those whose inputs have changed since.

    Says what has changed of the table; writes nothing where nothing is left.

    Args:
        run: The run's folder.
        trust: Modules that the run's recipe may name.
        anyway: Whether a training is done again, and replaced, where what it was made from has changed; and whether an
            unfinished one goes on where versions or the device have.
        devices: On how many devices to go on, as `trainer.devices`; None for as many as the recipe says.

    Returns:
        The finished run's folder.

    Raises:
        RecipeError: If there is no such run, another process is at work on it, or what it was trained from has changed
            and `anyway` is false; and as `run_recipe`.
        TableError: As `run_recipe`.
        CheckpointError: As `run_recipe`.
    """
    quieten()
    folder = open_run(run)
    overrides = [] if devices is None else ["--trainer.devices", devices]
    work = Work(read_recipe(folder.recipe, overrides, trust), folder)
    trainer = work.recipe.build_trainer() if work.recipe.find_devices() else None
    with ExitStack() as stack:
        if _is_first(trainer):
            left = [stage for stage in STAGES if not stage.is_done(work)]
            if not left:
                say(f"{folder.path} is finished: nothing is left to do.\n")
                if trainer is None:
                    return folder
            elif left[0] in STAGES[:2]:  # the others read nothing that was not checked then
                work.check()
                tell_changes(folder, work.data)
                if not anyway:
                    _refuse_changes(work)
            stack.enter_context(hold(folder.path))
        _finish(work, trainer)
    return folder


def _refuse_changes(work: Work) -> None:
    """Refuses to replace what was trained, or to go on with it otherwise, because something has changed."""
    if changed := TRAIN.changed_inputs(work):
        raise RecipeError(
            f"Expected what {work.run.path} was trained from to be as it was then, but these have changed: "
            f"{', '.join(changed)}. Put them back, start another run by `finetune fit`, or pass --anyway, which trains "
            "again and replaces what this run has trained."
        )
    if changed := TRAIN.changed_versions(work):
        raise RecipeError(
            f"Expected {work.run.path} to go on with the versions that it was started with, but these have changed: "
            f"{', '.join(changed)}. Install the former ones, or pass --anyway: then it goes on, but may end otherwise "
            "in the last bits."
        )


def quieten() -> None:
    """Silences Lightning's notes, and warnings of it and of scikit-learn that mean nothing to a user."""
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
