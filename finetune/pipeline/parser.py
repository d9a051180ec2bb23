"""The parser of recipes, and what it says of keys and values that are not valid."""

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from jsonargparse import ActionConfigFile, Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from finetune.core.errors import RecipeError, did_you_mean
from finetune.core.yaml_text import read_yaml
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.run.settings import RunSettings
from finetune.training.classification_task import ClassificationTask
from finetune.training.task import AlignTask

_DEFAULTS = {"trainer.devices": 1, "trainer.log_every_n_steps": 5, "trainer.enable_model_summary": False}
TRUSTED = (
    "finetune",
    "torch.optim",
    "torch.nn",
    "lightning.pytorch",
    "lightning.fabric",
    "torchmetrics",
    "albumentations",
    "transformers.optimization",
)
"""Modules of which recipes may name classes. Others of torch and transformers load pickles or run code of the hub."""


def build_parser() -> LightningArgumentParser:
    """The parser of recipes: `model`, `data`, `trainer` and `run`."""
    parser = LightningArgumentParser(prog="finetune fit", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="Recipe: a path or a shipped recipe's name.")
    parser.add_lightning_class_args(AlignTask, "model", subclass_mode=True)
    parser.add_lightning_class_args(ImageTextDataModule, "data", subclass_mode=True)
    _add_trainer(parser)
    parser.add_class_arguments(RunSettings, "run")
    parser.set_defaults(_DEFAULTS)
    parser.link_arguments("model.init_args.checkpoint", "data.init_args.checkpoint")
    parser.link_arguments("run.seed", "data.init_args.seed")
    return parser


def _add_trainer(parser: LightningArgumentParser) -> None:
    """Adds Lightning's trainer, whose precision may be left to the machine."""
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False, instantiate=False, skip={"precision"})
    parser.add_argument(
        "--trainer.precision",
        type=get_type_hints(Trainer.__init__)["precision"] | Literal["auto"],
        default=None,
        help="As Lightning's, such as bf16-mixed; null is float32, and auto times float32 and bf16-mixed at the start "
        "of a run and takes the faster.",
    )


def default_classes(path: Path, overrides: Sequence[str]) -> list[str]:
    """Options that name the toolkit's own classes where the recipe names none.

    As defaults of the parser they would carry their own default arguments into a subclass that has others.
    """
    values = read_yaml(path)
    options: list[str] = []
    for key, name in (("model", "finetune.AlignTask"), ("data", "finetune.ImageTextDataModule")):
        section = values.get(key) if isinstance(values, dict) else None
        is_named = isinstance(section, dict) and "class_path" in section
        if not is_named and not any(re.match(rf"--{key}(=|\.class_path|$)", word) for word in overrides):
            options += [f"--{key}", name]
    return options


def describe_keys() -> str:
    """Every recipe key with its type, default and meaning."""
    return "\n".join(parser.format_help() for parser in _build_key_parsers())


def list_keys() -> list[str]:
    """Every recipe key as an option, such as `--data.batch_size`."""
    options = (option for parser in _build_key_parsers() for option in parser._option_string_actions)
    return [option for option in options if not option.endswith(".help")]


def _build_key_parsers() -> tuple[LightningArgumentParser, LightningArgumentParser]:
    """Parsers whose help explains the keys: those of every recipe, and those that a head adds."""
    parser = _build_key_parser("Every recipe key.")
    parser.add_class_arguments(AlignTask, "model")
    parser.add_class_arguments(ImageTextDataModule, "data", skip={"checkpoint", "seed"})
    parser.add_class_arguments(RunSettings, "run")
    _add_trainer(parser)
    parser.set_defaults(_DEFAULTS)
    parser._option_string_actions["--model.checkpoint.help"].help = argparse.SUPPRESS  # recipes name it by a text
    of_head = _build_key_parser("With `model.class_path: finetune.ClassificationTask`, as in classify_head, also:")
    of_head.add_class_arguments(ClassificationTask, "model", skip={*inspect.signature(AlignTask).parameters})
    return parser, of_head


def _build_key_parser(description: str) -> LightningArgumentParser:
    return LightningArgumentParser(
        prog="finetune fit", usage=argparse.SUPPRESS, description=description, add_help=False
    )


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
        place = ".".join(where) or "every value"
        return (
            f"Expected {place} to name a class of {', '.join(TRUSTED)}, but got {denied[1]!r}. "
            f"If you trust that module, pass --trust {module}."
        )
    absent = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    if absent and absent[1] in sys.modules:
        module, name = absent.groups()
        known = [each for each in dir(sys.modules[module]) if each[0].isupper()]
        return f"Expected {'.'.join(where)} to name a class of {module}, but got {name!r}. {did_you_mean(name, known)}"
    if unknown is None:
        return _innermost(message, ".".join(where))
    inner = ".".join(filter(None, unknown.groups())).split(".")
    known_class = next(filter(None, map(find_class, reversed(classes))), None)
    valid = _argument_names(known_class, inner[:-1]) if known_class else _parser_keys(parser, inner[:-1])
    return f"Expected every key to be known, but got {'.'.join(where + inner)!r}. {did_you_mean(inner[-1], valid)}"


def refuse_nulls(values: Namespace, kind: Any, key: str) -> None:
    """Refuses a null that an argument of a class does not take; jsonargparse takes any null for "not given".

    Args:
        values: The arguments of the class.
        kind: The class.
        key: Where they stand in the recipe.

    Raises:
        RecipeError: At the first one.
    """
    hints, parameters = get_type_hints(kind.__init__), inspect.signature(kind).parameters
    for name, value in vars(values).items():
        if name not in parameters or name not in hints:
            continue
        hint, where = hints[name], f"{key}.{name}"
        if (
            value is None
            and parameters[name].default is not None
            and hint is not Any
            and NoneType not in get_args(hint)
        ):
            raise RecipeError(f"Expected {where} to have a value, but got null. Leave it out for the default.")
        if not isinstance(value, Namespace):
            continue
        if "class_path" in value:
            refuse_nulls(value.get("init_args", Namespace()), find_class(value.class_path), where)
        elif inner := _class_within(hint):
            refuse_nulls(value, inner, where)


def _class_within(hint: Any) -> Any:
    """The class of the toolkit's or of a library's that an argument takes, or None."""
    kinds = (*get_args(hint), hint)
    return next((kind for kind in kinds if inspect.isclass(kind) and kind.__init__ is not object.__init__), None)


def _innermost(message: str, where: str) -> str:
    """The deepest complaint of a nested message that names no unknown key."""
    lines = [line.strip(" -") for line in message.splitlines()]
    complaints = [
        line
        for line in lines
        if line and not re.match(r"Parser key|Problem with|Does not validate|Subtypes|Errors:|Given value", line)
    ]
    # Complaints of a union's other types, beside that of the one that was meant.
    others = re.compile(r"NoneType|not correspond to a subclass|Not a valid subclass")
    wanted = [line for line in complaints if not others.search(line)] or complaints or lines
    found = wanted[0]
    given = re.search(r"Given value: (.+)", message)
    if given and all(line.startswith("Expected a ") for line in wanted):  # one for each type of a union
        found = f"{' or '.join(wanted).replace(' or Expected', ' or')}. Got value: {given[1]}"
    return f"{where}: {found}" if where else found


def _parser_keys(parser: LightningArgumentParser, outer: Sequence[str]) -> set[str]:
    """Names of the parser's keys directly below `outer`."""
    keys = [action.dest.split(".") for action in parser._actions if not action.dest.endswith("help")]
    return {key[len(outer)] for key in keys if len(key) > len(outer) and key[: len(outer)] == list(outer)}


def _argument_names(found: Any, outer: Sequence[str]) -> list[str]:
    """Names of the arguments of a class, or of the class that its argument `outer[0]` takes, and so on."""
    for argument in outer:
        inner = _class_within(get_type_hints(found.__init__).get(argument))
        if inner is None:  # what is inside of a number or of an unknown argument has no names
            break
        found = inner
    return [argument for argument in inspect.signature(found).parameters if argument != "self"]


def find_class(class_path: str) -> Any:
    """Returns the class of a dotted name, or None. Nothing is imported: what a recipe may name, the parser imported."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
