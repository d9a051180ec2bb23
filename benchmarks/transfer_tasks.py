"""The tasks of the transfer benchmark: the table that is learned, and the pictures that are measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.table.table import Table

MOVE = {
    "class_path": "albumentations.Affine",
    "init_args": {"translate_percent": [-0.08, 0.08], "scale": [0.9, 1.1], "border_mode": 1, "p": 1.0},
}
FLIP = {"class_path": "albumentations.HorizontalFlip"}
SHIFT = {
    "class_path": "albumentations.Affine",
    "init_args": {"translate_percent": [-0.1, 0.1], "rotate": [-15, 15], "scale": [0.9, 1.1], "fill": 255, "p": 1.0},
}


@dataclass(frozen=True)
class Gallery:
    """A table of pictures that is measured.

    Args:
        table: CSV below the folder of data.
        split: Column of the splits; the rows of `test` are measured.
        image_size: Side of the image that the towers see, in pixels.
        caption: Column of captions, for retrieval; None for a table of labels.
        label: Column of labels, for classification; None for a table of captions.
        template: Sentence into which labels are written.
        half: Keeps every other label in alphabetical order, from the first (0) or the second (1); None keeps all.
    """

    table: str
    split: str
    image_size: int
    caption: str | None = None
    label: str | None = None
    template: str = "a picture of {}."
    half: int | None = None

    @property
    def source(self) -> str:
        """The data set it comes from: other domains come from another data set."""
        return self.table.split("/")[0]

    def read(self, folder: Path) -> Table:
        """Opens the table as the toolkit does.

        Args:
            folder: The folder of data.
        """
        table = Table(str(folder / self.table), caption=self.caption, label=self.label, split=self.split)
        if self.half is None or self.label is None:
            return table
        labels = pd.read_csv(table.path, usecols=[self.label], dtype=str, keep_default_na=False)[self.label]
        kept = sorted({*labels})[self.half :: 2]
        return replace(table, filter=f"{self.label} in {kept!r}")


@dataclass(frozen=True)
class Task:
    """What is learned and where it is measured.

    Args:
        name: Name of the task's file of results.
        title: Name in the tables.
        home: The training table; its test rows are the target.
        epochs: Passes over the training rows, the same for each method.
        augmentations: Albumentations transforms as in a recipe, the same for each method that augments.
        shift: The same concepts drawn by another vendor, None without such a table.
        new: Classes without training rows, recognised by their names; None without such a table.
        shots: Training and validation rows of each class, drawn by the seed; None for all rows.
        seeds: How often a method that draws anything is repeated.
        trials: Settings that each method may try on the validation rows.
        tuned_like: Name of the task whose choice of settings is taken over, None to choose here.
    """

    name: str
    title: str
    home: Gallery
    epochs: int
    augmentations: tuple[dict[str, Any], ...]
    shift: Gallery | None = None
    new: Gallery | None = None
    shots: int | None = None
    seeds: int = 3
    trials: int = 2
    tuned_like: str | None = None

    def table(self, folder: Path, seed: int) -> Table:
        """Opens the training table; with `shots` it is drawn and written first.

        Args:
            folder: The folder of data.
            seed: Draws the rows.
        """
        if self.shots is None:
            return self.home.read(folder)
        drawn = folder / "transfer" / f"{self.name}-seed{seed}.csv"
        drawn.parent.mkdir(exist_ok=True)
        rows = pd.read_csv(folder / self.home.table, dtype=str, keep_default_na=False)
        assert self.home.label is not None
        draw_shots(rows, self.home.label, self.home.split, self.shots, seed).to_csv(drawn, index=False)
        images = str((folder / self.home.table).parent)
        return Table(str(drawn), label=self.home.label, split=self.home.split, images=images)

    def places(self) -> dict[str, Gallery]:
        """What is measured, by name: `target`, `shift` and `new` where there are such tables, and the other domains."""
        own = {"target": self.home, "shift": self.shift, "new": self.new}
        return {name: gallery for name, gallery in own.items() if gallery} | self.retention()

    def retention(self) -> dict[str, Gallery]:
        """The other domains by name: pictures of other data sets."""
        return {name: gallery for name, gallery in RETENTION.items() if gallery.source != self.home.source}


def draw_shots(rows: pd.DataFrame, label: str, split: str, shots: int, seed: int) -> pd.DataFrame:
    """Draws at most `shots` training and validation rows of each class, and keeps all test rows.

    Args:
        rows: The whole table.
        label: Column of labels.
        split: Column of splits.
        shots: Rows of each class.
        seed: Draws them.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = rows.iloc[order]
    place = shuffled.groupby([label, split]).cumcount()
    kept = shuffled[(place < shots) | (shuffled[split] == "test")]
    return kept.sort_index()


def _digits(shots: int | None, epochs: int, trials: int) -> Task:
    home = Gallery("digits/digits.csv", "split", 64, label="label", template="a photo of the handwritten digit {}.")
    name = "full" if shots is None else str(shots)
    title = "digits, all rows" if shots is None else f"digits, {shots} a class"
    return Task(f"digits-{name}", title, home, epochs, (SHIFT,), shots=shots, seeds=5 if shots else 3, trials=trials)


def _half(gallery: Gallery, half: int) -> Gallery:
    return replace(gallery, half=half)


GOOGLE = Gallery("emoji/google.csv", "split", 96, caption="caption")
TWITTER = Gallery("emoji/twitter.csv", "split", 96, caption="caption")
KINDS = Gallery("emoji/google.csv", "split_by_picture", 96, label="subcategory", template="an emoji of {}.")
OTHER_KINDS = Gallery("emoji/twitter.csv", "split_by_picture", 96, label="subcategory", template="an emoji of {}.")
DRAWINGS = Gallery("stamps/stamps.csv", "split_by_kind", 96, caption="caption")
FOODS = Gallery("foods/foods.csv", "split", 128, caption="caption")
FOOD_GROUPS = Gallery("foods/foods.csv", "split_by_picture", 128, label="label", template="a photo of food, {}.")
UNITS = Gallery("units/units.csv", "split", 96, label="label", template="a drawing of a {}.")
UNIT_TEXTS = Gallery("units/units.csv", "split_by_unit", 96, caption="caption")
ICONS = Gallery("icons/icons.csv", "split", 64, label="label", template="an icon of {}.")
PHOTOGRAPHS = Gallery("stamps/photographs.csv", "split", 160, caption="caption")

RETENTION = {"photographs": PHOTOGRAPHS, "names": GOOGLE}
"""Domains on which zero-shot align-mini is at least five times chance; drawings, sub-categories and digits are not."""

TASKS: Sequence[Task] = (
    Task("names-google", "emoji names, Google", GOOGLE, 3, (MOVE,), shift=TWITTER, seeds=5),
    Task(
        "names-twitter", "emoji names, Twitter", TWITTER, 3, (MOVE,), shift=GOOGLE, seeds=5, tuned_like="names-google"
    ),
    Task("kinds", "emoji sub-categories", KINDS, 4, (MOVE, FLIP), shift=OTHER_KINDS),
    Task("stamps", "stamps, photograph to drawing", DRAWINGS, 6, (MOVE,)),
    _digits(1, epochs=40, trials=2),
    _digits(4, epochs=40, trials=2),
    _digits(16, epochs=20, trials=2),
    _digits(None, epochs=6, trials=2),
    Task("foods", "foods by name", FOODS, 12, (MOVE, FLIP)),
    Task("food-groups", "foods by group", FOOD_GROUPS, 12, (MOVE, FLIP)),
    Task("icons", "icons of another set", ICONS, 6, (MOVE,)),
    Task("units", "units in another pose", UNITS, 8, (MOVE, FLIP)),
    Task("unit-texts", "units by description", UNIT_TEXTS, 3, (MOVE, FLIP)),
    Task("kinds-new", "emoji sub-categories, half of them", _half(KINDS, 0), 4, (MOVE, FLIP), new=_half(KINDS, 1)),
    Task("icons-new", "icons, half of them", _half(ICONS, 0), 6, (MOVE,), new=_half(ICONS, 1)),
)
