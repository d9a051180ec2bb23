"""A recipe: YAML and command-line values turned into objects by LightningCLI's parser."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from traceback import walk_tb
from typing import Any, cast, get_args, get_type_hints

import pandas as pd
import torch
from jsonargparse import ArgumentError, Namespace
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.overrides import Overrides, as_words, write_out_nulls
from finetune.core.places import AnyPath, show
from finetune.core.shipped import find_recipe
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.inference.embed import find_device
from finetune.model.base import Base
from finetune.pipeline.parser import build_parser, default_classes, explain, find_class, refuse_nulls
from finetune.pipeline.places import fix_places
from finetune.pipeline.renamed import refuse_renamed
from finetune.pipeline.trust import allow_modules, find_modules, refuse_calls
from finetune.run.settings import RunSettings
from finetune.training.data_parallel import DataParallel, find_launched
from finetune.training.task import AlignTask
from finetune.training.whole_files import WholeFiles

TABLE = "data.table.path"
"""The key that in Python may be a DataFrame."""


class Recipe:
    """A parsed recipe; nothing heavy is built before it is asked for.

    Args:
        config: The parsed values.
        parser: The parser they come from.
        name: Name of the run.
        trust: Modules beside the toolkit's own that the recipe may name.
        frame: A DataFrame that takes the place of the table's file.
    """

    def __init__(
        self,
        config: Namespace,
        parser: LightningArgumentParser,
        name: str,
        trust: Sequence[str] = (),
        frame: pd.DataFrame | None = None,
    ) -> None:
        self.frame = frame
        self._config = config
        self._parser = parser
        self._trust = trust
        self._settled: dict[str, Any] = {}
        self._one_device = False
        self.run = RunSettings(**config.run.as_dict())
        self.folder = Path(self.run.folder) / (self.run.name or name)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def checkpoint(self) -> str:
        """What the recipe names as its base: hub id, local folder, or `align-mini`."""
        return cast(str, self._config.model.init_args.checkpoint)

    @property
    def task_class(self) -> type[AlignTask]:
        """The class of what is trained."""
        return cast(type[AlignTask], find_class(self._config.model.class_path))

    @property
    def trains(self) -> bool:
        """Whether anything is trained, as far as the recipe says; else it is one for `finetune test`."""
        values = self._config.model.init_args
        return self.task_class is not AlignTask or values.image_lora is not None or values.text_lora is not None

    def value(self, key: str) -> Any:
        """What the recipe says.

        Args:
            key: A key of `trainer`, `model` or `data`, as in `trainer.precision`.

        Returns:
            None where the class that it names has no such argument.
        """
        part, name = key.split(".")
        return self._config[part].get("init_args", self._config[part]).get(name)

    def settle(self, values: Mapping[str, Any]) -> None:
        """Puts values in the place of `auto` in all that is built from now on; `resolved` goes on to say `auto`.

        Args:
            values: By key, as in `trainer.precision`.
        """
        self._settled |= values

    def take_one_device(self) -> None:
        """Lets what is built from now on use one device, whatever the recipe says."""
        self._one_device = True

    @cached_property
    def base(self) -> Base:
        """The base, opened once for all that the recipe builds.

        Raises:
            CheckpointError: If `model.checkpoint` names none.
        """
        return Base.open(self.checkpoint)

    @property
    def resolved(self) -> str:
        """YAML with every value, which repeats the run from any folder; the run's own name is not in it."""
        config = self._config.clone()
        config.pop("config", None)
        config.run.pop("name", None)
        values = cast(str, self._parser.dump(config, skip_validation=True, skip_unset=False))
        return f"# Paths were given relative to {show(Path.cwd())}\n{values}"

    def build_data(self) -> ImageTextDataModule:
        """The data module."""
        data = cast(ImageTextDataModule, self._build("data"))
        if self.frame is not None:
            data.table = replace(data.table, path=self.frame)
        return data

    def reading(self, file: Path) -> "Recipe":
        """Returns the recipe as it is with a file in the place of the DataFrame, and the images where they are.

        Args:
            file: Holds what the DataFrame does.
        """
        other = copy.copy(self)
        other._config, other.frame = self._config.clone(), None
        table = other._config.data.init_args.table
        table.path, table.outside = str(file.absolute()), table.outside or table.images is None
        table.images = table.images or str(Path.cwd())
        return other

    def build_task(self, seed: int | None = None) -> AlignTask:
        """The task, adapters drawn anew from a seed, the run's own where none is given."""
        seed_everything(self.run.seed if seed is None else seed, verbose=False)
        return cast(AlignTask, self._build("model"))

    def build_trainable(self) -> AlignTask:
        """The task, for training.

        Raises:
            RecipeError: If nothing of it is trained, or several trainings of it cannot be averaged.
        """
        task = self.build_task()
        if not task.trains:
            raise RecipeError(
                "Expected something to train, but got none. Measure with `finetune test --config RECIPE`."
            )
        if self.run.soup > 1 and task.towers.has_magnitudes:
            raise RecipeError(
                f"Expected run.soup to be 1 with use_dora, but got {self.run.soup}. The average of several magnitudes "
                "is not that of the models: set use_dora to false, or train once."
            )
        return task

    def build_trainer(
        self, callbacks: Sequence[Callback] = (), loggers: Sequence[Logger] = (), bar: ProgressBar | None = None
    ) -> Trainer:
        """The trainer, with the run's callbacks before the recipe's own, and its loggers after them.

        Args:
            callbacks: What the run needs to follow the training.
            loggers: The run's own, whatever others the recipe names.
            bar: Shows how far the training is, unless the recipe names another bar, or wants none.

        Raises:
            RecipeError: If its values do not go together, or with this machine.
        """
        values = dict(self._build("trainer"))
        named = values["callbacks"] or []
        if values["precision"] == "auto":
            values["precision"] = None
        values["callbacks"] = [*callbacks, *([named] if isinstance(named, Callback) else named)]
        if self._one_device:
            values["devices"], values["num_nodes"] = 1, 1
        elif several := self.find_devices():
            values["devices"], values["num_nodes"] = several
            values["use_distributed_sampler"] = False
            if values["strategy"] == "auto":
                values["strategy"] = DataParallel(self.run.longest_wait)
        plugins = values["plugins"] or []
        values["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeFiles()]
        others = [] if isinstance(values["logger"], bool | None) else values["logger"]
        values["logger"] = [*([others] if isinstance(others, Logger) else others), *loggers]
        has_bar = any(isinstance(one, ProgressBar) for one in values["callbacks"])
        if bar is not None and values["enable_progress_bar"] is not False and not has_bar:
            values["callbacks"].append(bar)
        try:
            return Trainer(**values)
        except Exception as error:  # of many kinds, and all of them of these values
            raise RecipeError(
                f"Expected the trainer's values to suit each other and this machine, but got: {error}"
            ) from error

    def find_devices(self) -> tuple[Any, int] | None:
        """Returns the devices of a machine and the number of machines; None where there is one device.

        Raises:
            RecipeError: If `torchrun` or `srun` has started another number of processes than the recipe says.
        """
        devices, nodes = self._config.trainer.devices, self._config.trainer.num_nodes
        started = find_launched()
        one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
        if started is None:
            return None if one and nodes == 1 else (devices, nodes)
        if not one and str(devices) not in ("auto", "-1", str(started[0])):
            raise RecipeError(
                f"Expected trainer.devices to be the {started[0]} processes that were started on this machine, but got "
                f"{devices}. Leave it out: it follows the launcher."
            )
        return started

    @property
    def takes_tensorboard(self) -> bool:
        """Whether the recipe leaves loggers to the run: it names none, and does not refuse them."""
        return self._config.trainer.logger in (None, True)

    @property
    def device(self) -> torch.device:
        """Where models are measured: the trainer's device, of several the first.

        Raises:
            RecipeError: If this machine has no such accelerator.
        """
        trainer = self._config.trainer
        device = find_device(trainer.accelerator)
        if device.type == "cpu" or not isinstance(trainer.devices, list):
            return device
        return torch.device(device.type, trainer.devices[0])

    def _build(self, key: str) -> Any:
        values = self._config[key].clone()
        arguments = values.get("init_args", values)
        for name, value in self._settled.items():
            if name.startswith(f"{key}."):
                arguments[name.removeprefix(f"{key}.")] = value
        if "checkpoint" in values.get("init_args", {}) and _takes_base(values.class_path):
            values.init_args.checkpoint = self.base
        allow_modules(self._trust)
        try:
            return self._parser.instantiate(Namespace({key: values}))[key]
        except ValueError as error:
            raise _find_cause(error, key, self._trust) from None


def read_recipe(path: AnyPath, overrides: Overrides = (), trust: Sequence[str] = ()) -> Recipe:
    """Parses a recipe; no weights are loaded and no table is read.

    Args:
        path: The recipe's file, or the name of a shipped recipe.
        overrides: Values that replace the file's, as `{"data.batch_size": 32}` or `["--data.batch_size", "32"]`. In a
            mapping, `data.table.path` may be a DataFrame; its images are relative to the working directory.
        trust: Modules beside the toolkit's own that the recipe may name. Those that are not installed are looked for
            in the recipe's folder, in the working directory, and in the recipe's `run.module_folders`.

    Raises:
        RecipeError: If there is no such recipe; or at the first key or value that is not valid, with the nearest name
            that is.

    Example:
        >>> read_recipe("retrieval_lora", {"model.checkpoint": "align-mini", "data.batch_size": 32}).checkpoint
        'align-mini'
    """
    path = find_recipe(os.fspath(path))
    frame = None
    if isinstance(overrides, Mapping) and isinstance(overrides.get(TABLE), pd.DataFrame):
        frame, overrides = overrides[TABLE], {**overrides, TABLE: "DataFrame"}
    overrides = as_words(overrides)
    refuse_renamed(path, overrides)
    allow_modules(trust)
    found = find_modules(path, trust)
    parser = build_parser()
    try:
        settings = ["--config", str(path), *write_out_nulls(overrides)]
        config = parser.parse_args([*default_classes(path, overrides), *settings])
        parser.validate(config, skip_unset=False)
    except (ArgumentError, TypeError, ValueError, RecursionError) as error:  # a TypeError of a null, not of a fault
        raise RecipeError(f"{path}: {explain(str(error), parser)}") from error
    refuse_calls(config, trust)
    fix_places(config)
    if trust:
        config.run.module_folders = tuple(dict.fromkeys([*config.run.module_folders, *found]))
    for key in ("model", "data"):
        refuse_nulls(config[key].init_args, find_class(config[key].class_path), key)
    _check_trainer(config.trainer)
    return Recipe(config, parser, path.stem, trust, frame)


def open_recipe(recipe: Recipe | AnyPath) -> Recipe:
    """Returns a recipe as it is, or reads it from its file.

    Args:
        recipe: A recipe, its file, or the name of a shipped one.

    Raises:
        RecipeError: As `read_recipe`.
    """
    return recipe if isinstance(recipe, Recipe) else read_recipe(recipe)


def _check_trainer(trainer: Namespace) -> None:
    """Refuses what a run cannot prove: rounded weights."""
    if str(trainer.precision) in ("16-true", "bf16-true"):
        repair = f"{str(trainer.precision).removesuffix('true')}mixed"
        raise RecipeError(
            f"Expected trainer.precision to keep the weights in float32, but got {trainer.precision}: the base would "
            f"be rounded, and what is merged would not be what was trained. Set it to {repair}."
        )


def _takes_base(class_path: str) -> bool:
    """Whether a class can be given an open base; a user's may ask for the checkpoint's name alone."""
    hint = get_type_hints(find_class(class_path).__init__).get("checkpoint", Base)
    return hint is Any or Base in (hint, *get_args(hint))


def _find_cause(error: BaseException, key: str, own: Sequence[str]) -> BaseException:
    """What a constructor raised, which jsonargparse wraps in its own error.

    A fault in code of the toolkit, or of a module that the user trusts, stays what it is, unless it says that a value
    is wrong; all that libraries raise is about the values that they were given.
    """
    given = r"Problem with given class_path '([^']+)':\s+(?!Problem|Does not|Parser|Not a valid)(.+)"
    problem = re.search(given, str(error))
    pydantic = r"validation errors? for .+\n\s*(\S+)\n\s*(.+?) \[type=\w+, input_value=(.+?), input_"
    refused = re.search(pydantic, str(error))
    of_union = re.findall(r"^ *- (Expected (?!a <class).+)$", str(error), re.MULTILINE)
    known = (TableError, RecipeError, CheckpointError)
    while error.__cause__ and not isinstance(error, known):
        error = error.__cause__
    modules = [frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    is_fault = modules[-1:] == ["finetune"] or not {one.split(".")[0] for one in own}.isdisjoint(modules)
    if problem and "pip install" in problem[2]:  # as loggers say
        return RecipeError(f"Expected what {problem[1]} needs to be installed, but got: {problem[2]}")
    if isinstance(error, known) or (is_fault and not isinstance(error, ValueError | ImportError | RuntimeError)):
        return error
    if of_union and str(error).startswith("Expected a <class"):  # another type's refusal hides a constructor's own
        return RecipeError(of_union[-1])
    if refused:  # albumentations validates with pydantic
        name, reason, value = refused.groups()
        return RecipeError(f"{key}.augmentations: Expected {name} to be valid, but got {value}: {reason}.")
    return RecipeError(f"{key}: {problem[1]}: {problem[2]}" if problem else f"{key}: {error}")
