"""A recipe: YAML and command-line values turned into objects by LightningCLI's parser."""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, Namespace, set_parsing_settings
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from finetune.core.errors import CheckpointError, RecipeError, TableError, did_you_mean
from finetune.core.files import read_text
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.model.base import Base
from finetune.pipeline.renamed import refuse_renamed
from finetune.run.settings import RunSettings
from finetune.training.task import AlignTask

TRUSTED = ("finetune", "torch", "lightning", "torchmetrics", "albumentations", "transformers", "peft")


class Recipe:
    """A parsed recipe; nothing heavy is built before it is asked for.

    Args:
        config: The parsed values.
        parser: The parser they come from.
        name: Name of the run.
    """

    def __init__(self, config: Namespace, parser: LightningArgumentParser, name: str) -> None:
        self._config = config
        self._parser = parser
        self.run = RunSettings(**config.run.as_dict())
        self.name = self.run.name or name

    @property
    def checkpoint(self) -> str:
        """What the recipe names as its base: hub id, local folder, or `align-mini`."""
        return cast(str, self._config.model.init_args.checkpoint)

    @cached_property
    def base(self) -> Base:
        """The base, opened once for all that the recipe builds.

        Raises:
            CheckpointError: If `model.checkpoint` names none.
        """
        return Base.open(self.checkpoint)

    @property
    def resolved(self) -> str:
        """YAML with every value, which repeats the run; the run's own name is not in it."""
        config = self._config.clone()
        config.pop("config", None)
        config.run.pop("name", None)
        return cast(str, self._parser.dump(config, skip_validation=True, skip_unset=False))

    def build_data(self) -> ImageTextDataModule:
        """The data module."""
        return cast(ImageTextDataModule, self._build("data"))

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

    def build_trainer(self, callbacks: Sequence[Callback], logger: Logger) -> Trainer:
        """The trainer, with the run's callbacks after the recipe's own.

        Args:
            callbacks: What the run needs to follow the training.
            logger: Used where the recipe names none.

        Raises:
            RecipeError: If its values do not go together, or with this machine.
        """
        values = dict(self._build("trainer"))
        values["callbacks"] = [*(values["callbacks"] or []), *callbacks]
        values["logger"] = values["logger"] or logger
        try:
            return Trainer(**values)
        except (MisconfigurationException, ValueError, ImportError) as error:
            raise RecipeError(
                f"Expected the trainer's values to suit each other and this machine, but got: {error}"
            ) from error

    @property
    def accelerator(self) -> str:
        """The recipe's accelerator."""
        return cast(str, self._config.trainer.accelerator)

    def _build(self, key: str) -> Any:
        values = self._config[key].clone()
        if "checkpoint" in values.get("init_args", {}) and _takes_base(values.class_path):
            values.init_args.checkpoint = self.base
        try:
            return self._parser.instantiate(Namespace({key: values}))[key]
        except ValueError as error:
            raise _find_cause(error, key) from None


def read_recipe(path: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> Recipe:
    """Parses a recipe; no weights are loaded and no table is read.

    Args:
        path: The recipe's file.
        overrides: Values that replace the file's, as `["--data.batch_size", "32"]`.
        trust: Modules beside the toolkit's own that the recipe may name; they are looked for in the working
            directory too.

    Raises:
        RecipeError: At the first key or value that is not valid, with the nearest valid name.
    """
    if trust and "" not in sys.path:
        sys.path.insert(0, "")
    refuse_renamed(Path(path), overrides)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*TRUSTED, *trust])
    parser = build_parser()
    try:
        settings = ["--config", str(path), *_write_out_nulls(overrides)]
        config = parser.parse_args([*_default_classes(Path(path), overrides), *settings])
    except ArgumentError as error:
        raise RecipeError(f"{path}: {explain(str(error), parser)}") from error
    _check_trainer(config.trainer)
    return Recipe(config, parser, Path(path).stem)


def _check_trainer(trainer: Namespace) -> None:
    """Refuses what a run cannot prove or do: rounded weights, and several processes that write one folder."""
    if str(trainer.precision) in ("16-true", "bf16-true"):
        repair = f"{str(trainer.precision).removesuffix('true')}mixed"
        raise RecipeError(
            f"Expected trainer.precision to keep the weights in float32, but got {trainer.precision}: the base would "
            f"be rounded, and what is merged would not be what was trained. Set it to {repair}."
        )
    one_device = trainer.devices in (1, "1") or (isinstance(trainer.devices, list) and len(trainer.devices) == 1)
    if not one_device or trainer.num_nodes != 1:
        raise RecipeError(
            f"Expected a run on one device, but got trainer.devices {trainer.devices} and trainer.num_nodes "
            f"{trainer.num_nodes}. Set both to 1, or trainer.devices to a list of one, such as [1] for the second GPU."
        )


def build_parser() -> LightningArgumentParser:
    """The parser of recipes: `model`, `data`, `trainer` and `run`."""
    parser = LightningArgumentParser(prog="finetune fit", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="Recipe: a path or a shipped recipe's name.")
    parser.add_lightning_class_args(AlignTask, "model", subclass_mode=True)
    parser.add_lightning_class_args(ImageTextDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_class_arguments(RunSettings, "run")
    parser.set_defaults({"trainer.devices": 1, "trainer.log_every_n_steps": 5, "trainer.enable_model_summary": False})
    parser.link_arguments("model.init_args.checkpoint", "data.init_args.checkpoint")
    parser.link_arguments("run.seed", "data.init_args.seed")
    return parser


def _default_classes(path: Path, overrides: Sequence[str]) -> list[str]:
    """Options that name the toolkit's own classes where the recipe names none.

    As defaults of the parser they would carry their own default arguments into a subclass that has others.
    """
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: Expected valid YAML, but got: {error}") from error
    options: list[str] = []
    for key, name in (("model", "finetune.AlignTask"), ("data", "finetune.ImageTextDataModule")):
        section = values.get(key) if isinstance(values, dict) else None
        is_named = isinstance(section, dict) and "class_path" in section
        if not is_named and not any(re.match(rf"--{key}(=|\.class_path|$)", word) for word in overrides):
            options += [f"--{key}", name]
    return options


def _write_out_nulls(words: Sequence[str]) -> list[str]:
    """Writes `--a.b.c null` as a piece of YAML: jsonargparse hands a null that lies deep on as the text "None"."""

    def write(option: re.Match[str]) -> str:
        keys = option[1].split(".")
        return "--config\0{" + ": {".join(keys) + ": null" + "}" * len(keys)

    joined = re.sub(r"(?<![^\0])--(\w+(?:\.\w+){2,})[\0=]null(?![^\0])", write, "\0".join(words))
    return joined.split("\0") if words else []


def describe_keys() -> str:
    """Every recipe key with its type, default and meaning."""
    parser = LightningArgumentParser(
        prog="finetune fit", usage=argparse.SUPPRESS, description="Every recipe key.", add_help=False
    )
    parser.add_class_arguments(AlignTask, "model")
    parser.add_class_arguments(ImageTextDataModule, "data", skip={"checkpoint", "seed"})
    parser.add_class_arguments(RunSettings, "run")
    parser.add_lightning_class_args(Trainer, "trainer")
    return parser.format_help()


def explain(message: str, parser: LightningArgumentParser) -> str:
    """Reduces jsonargparse's nested message to the key, what is wrong with it, and the nearest valid name.

    Args:
        message: What the parser raised.
        parser: The parser, for the names of its groups.
    """
    where = re.findall(r'Parser key "([^"]+)"', message)
    classes = re.findall(r"class_path[ =]'([^']+)'", message)
    unknown = re.search(
        r"(?:Group '([^']+)' does not accept option|(?:Option)) '([^']+)'|arguments: --([\w.]+)", message
    )
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        module = denied[1].split(".")[0]
        return (
            f"Expected {'.'.join(where)} to name a class of {', '.join(TRUSTED)}, but got {denied[1]!r}. "
            f"If you trust that module, pass --trust {module}."
        )
    if unknown is None:
        return _innermost(message, ".".join(where))
    inner = ".".join(filter(None, unknown.groups())).split(".")
    valid = _argument_names(classes[-1], inner[:-1]) if classes else _parser_keys(parser, inner[:-1])
    return f"Expected every key to be known, but got {'.'.join(where + inner)!r}. {did_you_mean(inner[-1], valid)}"


def _takes_base(class_path: str) -> bool:
    """Whether a class can be given an open base; a user's may ask for the checkpoint's name alone."""
    hint = get_type_hints(_find_class(class_path).__init__).get("checkpoint", Base)
    return hint is Any or Base in (hint, *get_args(hint))


def _find_cause(error: BaseException, key: str) -> Exception:
    """What a constructor raised, which jsonargparse wraps in its own error."""
    while not isinstance(error, TableError | RecipeError | CheckpointError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, TableError | RecipeError | CheckpointError):
        return error
    return RecipeError(f"{key}: {error}")


def _innermost(message: str, where: str) -> str:
    """The deepest complaint of a nested message that names no unknown key."""
    lines = [line.strip(" -") for line in message.splitlines()]
    complaints = [
        line
        for line in lines
        if line and not re.match(r"Parser key|Problem with|Does not validate|Subtypes|Errors:|Given value", line)
    ]
    wanted = [line for line in complaints if "NoneType" not in line] or complaints or lines
    found = wanted[0]
    given = re.search(r"Given value: (.+)", message)
    if given and all(line.startswith("Expected a ") for line in wanted):  # one for each type of a union
        found = f"{' or '.join(wanted).replace(' or Expected', ' or')}. Got value: {given[1]}"
    return f"{where}: {found}" if where else found


def _parser_keys(parser: LightningArgumentParser, outer: Sequence[str]) -> set[str]:
    """Names of the parser's keys directly below `outer`."""
    keys = [action.dest.split(".") for action in parser._actions if not action.dest.endswith("help")]
    return {key[len(outer)] for key in keys if len(key) > len(outer) and key[: len(outer)] == list(outer)}


def _argument_names(class_path: str, outer: Sequence[str]) -> list[str]:
    """Names of the arguments of a class, or of the class that its argument `outer[0]` takes, and so on."""
    found = _find_class(class_path)
    for argument in outer:
        hint = get_type_hints(found.__init__)[argument]
        found = next(
            kind for kind in (*get_args(hint), hint) if inspect.isclass(kind) and kind.__init__ is not object.__init__
        )
    return [argument for argument in inspect.signature(found).parameters if argument != "self"]


def _find_class(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)
