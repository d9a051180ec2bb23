"""What the stages of a run share: its recipe, its folder, what is opened of them, and what has changed of them."""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.loggers import Logger

from finetune.core.files import fingerprint_file, read_text
from finetune.core.sealed import fingerprint_once
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.remote.places import is_remote
from finetune.data.remote.store import open_store
from finetune.data.remote.transfer import RemoteFile
from finetune.model.base import Base
from finetune.pipeline.check_recipe import check_recipe
from finetune.pipeline.recipe import Recipe
from finetune.run.folder import RunFolder
from finetune.training.task import AlignTask


class Work:
    """A run that is worked on. What its recipe names is opened at first use, once for all stages.

    Args:
        recipe: What to run.
        run: The run's folder.

    Attributes:
        loggers: Those that the recipe names, once they have logged a training in this process.
    """

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe = recipe
        self.run = run
        self.loggers: list[Logger] = []

    @property
    def base(self) -> Base:
        """The base of the training."""
        return self.recipe.base

    @cached_property
    def data(self) -> ImageTextDataModule:
        """The tables."""
        return self.recipe.build_data()

    @cached_property
    def task(self) -> AlignTask:
        """What is trained, adapters freshly drawn."""
        return self.recipe.build_trainable()

    @cached_property
    def device(self) -> torch.device:
        """Where models are measured."""
        return self.recipe.device

    @property
    def title(self) -> str:
        """What the run is called: its folder's name."""
        return self.run.path.resolve().name

    def check(self) -> None:
        """Finds what is wrong with tables and recipe before anything is written, see `check_recipe`."""
        self.task = check_recipe(self.recipe, self.data)

    @property
    def tables(self) -> list[Path]:
        """The files of the table and of its retention tables, with those that name labels."""
        modules = (self.data, *self.data.retention.values())
        names = [Path(one.table.names).expanduser() for one in modules if one.table.names]
        files = [Path(file) for one in modules for file in one.rows.files]
        return [file for file in dict.fromkeys([*files, *names]) if file.is_file()]  # a DataFrame is none

    @property
    def remote_tables(self) -> list[RemoteFile]:
        """The files of the table and of its retention tables that lie on servers."""
        modules, store = (self.data, *self.data.retention.values()), open_store()
        return [store.known(file) for one in modules for file in one.rows.files if is_remote(file)]

    @cached_property
    def sources(self) -> dict[str, str]:
        """The fingerprints of what measuring and training read: the base with its processor, and the tables."""
        prepares = [*sorted(self.base.folder.glob("*.json")), *self.base.folder.glob("vocab.txt")]
        return {
            "base": self.base.fingerprint,
            **{f"base/{file.name}": fingerprint_file(file) for file in prepares},
            **{str(file): fingerprint_once(file) for file in self.tables},
            **{file.url: file.fingerprint for file in self.remote_tables},
        }

    def settings(self, *keys: str) -> dict[str, str]:
        """Returns the fingerprints of parts of the run's recipe.

        Args:
            keys: Recipe keys, such as `data` or `run.seed`.
        """
        return {key: hashlib.sha256(json.dumps(self._find(key), sort_keys=True).encode()).hexdigest() for key in keys}

    def _find(self, key: str) -> Any:
        value = self._values
        for name in key.split("."):
            value = value.get(name)  # a recipe of an older version may lack it
        return value

    @cached_property
    def _values(self) -> Any:
        return yaml.safe_load(read_text(self.run.recipe))

    def fingerprints(self, *paths: Path) -> dict[str, str]:
        """Returns the fingerprints of files in the run's folder by their places in it, which moving it does not change.

        Args:
            paths: Files, and folders of files; what is not there is left out.
        """
        return {name: fingerprint_file(self.run.path / name) for name in self.places(paths)}

    def places(self, paths: Iterable[Path]) -> list[str]:
        """Returns where files lie in the run's folder.

        Args:
            paths: Files, and folders of files; what is not there is left out.
        """
        files = [file for path in paths for file in (path, *sorted(path.rglob("*"))) if file.is_file()]
        return [file.relative_to(self.run.path).as_posix() for file in files]
