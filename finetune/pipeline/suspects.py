"""Rows whose caption or label fits worse than others would, judged by adapters that never saw the row."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from finetune.core.errors import RecipeError
from finetune.core.places import AnyPath
from finetune.core.types import Answers
from finetune.data.checks.concerns import count
from finetune.data.checks.unreadable import SkippedRow, describe_skipped
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.prepare.members import place_of
from finetune.data.table.cells import Integers, Mask
from finetune.data.table.rows import Rows
from finetune.data.table.splits import SPLITS, UNKNOWN
from finetune.inference.embed import embed
from finetune.pipeline.check_recipe import check_trainer
from finetune.pipeline.recipe import Recipe, open_recipe
from finetune.pipeline.run_recipe import quieten
from finetune.pipeline.suspect_scores import Suspicion, compare_rows, score_captions, score_labels
from finetune.pipeline.train import fit
from finetune.run.folder import RunFolder
from finetune.training.task import AlignTask

BLOCK = 4096
"""Rows of a caption table that are compared with each other at a time."""

SHOWN = 10
"""Rows that a screen shows."""

_TRAIN, _VAL, _TEST = (SPLITS.index(split) for split in ("train", "val", "test"))


class Suspects(NamedTuple):
    """What is said of a table.

    Attributes:
        rows: The training rows, the worst fitting first. Columns `file`, `row`, `image`, `caption` or `label`, `score`
            (higher is worse), and `better`: the caption or label of the table that fits better, empty where none does.
        skipped: Rows that were left out, as their images cannot be read.
    """

    rows: pd.DataFrame
    skipped: tuple[SkippedRow, ...]

    def lines(self) -> list[str]:
        """The first rows for a screen, how many there are, and what was left out."""
        rows = self.rows
        shown = [
            f"{file}:{row}: {text!r}" + (f", better {better!r}" if better else "")
            for file, row, _, text, _, better in rows.head(SHOWN).itertuples(index=False)
        ]
        total = f"{count(len(rows), 'row', 'rows')} scored, the worst fitting first"
        return [*shown, *describe_skipped(self.skipped), total]


def find_suspects(recipe: Recipe | AnyPath, folds: int = 4) -> Suspects:
    """Ranks the training rows of a table by how badly caption or label and image fit; nothing is written.

    The images are dealt into folds. For each fold the recipe's task is trained on the training rows of the others, and
    then says how well image and text of the rows held out fit each other. Labels are judged by
    `finetune.metrics.judge_labels`, captions by `finetune.metrics.judge_captions`.

    Args:
        recipe: What is trained: a recipe, its file, or the name of a shipped one.
        folds: Number of folds.

    Raises:
        TableError: If the table has a fault.
        RecipeError: If there are fewer than 2 folds, or more than training images, a row may have several labels, the
            recipe trains nothing, or its trainer does what a run refuses.
    """
    quieten()
    recipe = open_recipe(recipe)
    recipe.take_one_device()
    check_trainer(recipe.build_trainer())
    data = recipe.build_data()
    data.rows.require("train")
    fold_ids = deal_folds(data.rows, folds, recipe.run.seed)
    ranked = rank_rows(recipe.device, cross_fit(recipe, data, fold_ids), data, fold_ids)
    return Suspects(ranked, data.skipped)


def deal_folds(table: Rows, folds: int, seed: int) -> Integers:
    """Deals the training rows into folds: all rows of an image into the same one, and each label evenly.

    Args:
        table: The rows.
        folds: Number of folds.
        seed: Another number deals otherwise.

    Returns:
        The fold of each row of the table, -1 for those of the other splits.

    Raises:
        RecipeError: If there are fewer than 2 folds, or more than training images, or a row may have several labels, or
            all have the same one.
    """
    if table.label_sets is not None:
        raise RecipeError(
            "Expected a table with a caption or one label a row, but got several labels a row, of which none can be "
            "told to fit worse than another. Name one column in data.table.label without a separator."
        )
    if len(table.classes) == 1:
        raise RecipeError(
            f"Expected a table with a caption a row or several classes, but got {table.classes[0]!r} alone: no label "
            "can fit better. Name another column in data.table.label."
        )
    rows = table.indices("train")
    _, firsts, positions = np.unique(table.image_ids[rows], return_index=True, return_inverse=True)
    if not 2 <= folds <= len(firsts):
        raise RecipeError(f"Expected --folds to be from 2 to {len(firsts):,}, the training images, but got {folds}.")
    mixed = np.random.default_rng(seed).permutation(len(firsts))
    dealt = np.empty(len(firsts), dtype=np.int64)
    dealt[mixed[np.argsort(table.label_ids[rows[firsts[mixed]]], kind="stable")]] = np.arange(len(firsts)) % folds
    found = np.full(len(table), -1)
    found[rows] = dealt[positions]
    return found


def cross_fit(recipe: Recipe, data: ImageTextDataModule, fold_ids: Integers) -> Iterator[AlignTask]:
    """Trains the recipe's task once for each fold, on the training rows of the others.

    The rows held out are the validation rows of that training, so that of the weights after each epoch those count that
    fit them best as a whole.

    Args:
        recipe: What is trained.
        data: The table.
        fold_ids: See `deal_folds`.

    Yields:
        The trained tasks, in the order of the folds.
    """
    folds = int(fold_ids.max()) + 1
    for fold in range(folds):
        print(f"fold {fold + 1} of {folds}", file=sys.stderr)
        task = recipe.build_trainable()
        others = data.with_splits(np.select([fold_ids == fold, fold_ids >= 0], [_VAL, _TRAIN], UNKNOWN))
        with TemporaryDirectory() as folder:
            fit(recipe, task, others, RunFolder(Path(folder) / "fold"))
        yield task


def rank_rows(
    device: torch.device, tasks: Iterable[AlignTask], data: ImageTextDataModule, fold_ids: Integers
) -> pd.DataFrame:
    """Ranks rows by what a task says of each, the worst fitting first.

    Args:
        device: Where the tasks' models run.
        tasks: For each fold the task that judges its rows.
        data: The table.
        fold_ids: See `deal_folds`.

    Returns:
        See `Suspects`. Rows whose image cannot be read are left out where `data.on_bad_image` is `skip`.
    """
    table = data.rows
    judge = _judge_labels if table.classes else _judge_captions
    rows, found = judge(device, tasks, data, fold_ids)
    texts = np.array(table.classes)[table.label_ids[rows]] if table.classes else table.captions[rows]
    alternatives = np.array(table.classes) if table.classes else texts
    lines = pd.DataFrame(
        {
            "file": [table.file(row) for row in rows],
            "row": table.numbers[rows],
            "image": [place_of(str(image)) for image in table.images[rows]],
            "label" if table.classes else "caption": texts,
            "score": found.scores.numpy(),
            "better": np.where(found.better < 0, "", alternatives[found.better]),
        }
    )
    return lines.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def _judge_labels(
    device: torch.device, tasks: Iterable[AlignTask], data: ImageTextDataModule, fold_ids: Integers
) -> tuple[Integers, Suspicion]:
    """Judges labels by the classes' scores for the images. Returns the rows too; `better` counts classes."""
    parts = [_ask(device, task, data, fold_ids == fold) for fold, task in enumerate(tasks)]
    rows = torch.cat([part.rows for part in parts]).numpy()
    scores = torch.cat([part.class_scores for part in parts if part.class_scores is not None])
    return rows, score_labels(scores, torch.from_numpy(data.rows.label_ids[rows]))


def _judge_captions(
    device: torch.device, tasks: Iterable[AlignTask], data: ImageTextDataModule, fold_ids: Integers
) -> tuple[Integers, Suspicion]:
    """Judges captions beside those of a block of rows. Returns the rows too; `better` counts these."""
    models = []
    for task in tasks:
        part = _ask(device, task, data, fold_ids >= 0)
        assert part.image_features is not None
        assert part.text_features is not None
        features = (part.image_features, part.text_features)
        models.append([normalize(found, dim=-1).half() for found in features])
    rows = part.rows.numpy()
    image_ids, caption_ids = (torch.from_numpy(ids[rows]) for ids in (data.rows.image_ids, data.rows.caption_ids))
    scores = torch.empty(len(rows), dtype=torch.float64)
    better = torch.empty(len(rows), dtype=torch.int64)
    mixed = np.random.default_rng(0).permutation(len(rows))
    for block in map(torch.from_numpy, np.array_split(mixed, -(-len(rows) // BLOCK))):
        embeds = [(image_embeds[block].float(), text_embeds[block].float()) for image_embeds, text_embeds in models]
        similarities = compare_rows(embeds, torch.from_numpy(fold_ids[rows[block]]))
        scores[block], found = score_captions(similarities, image_ids[block], caption_ids[block])
        better[block] = block[found].where(found >= 0, -1)
    return rows, Suspicion(scores, better)


def _ask(device: torch.device, task: AlignTask, data: ImageTextDataModule, chosen: Mask) -> Answers:
    """What a task's model says of the chosen rows."""
    task.eval().to(device)
    return embed(task.model(data.class_prompts), data.loader(np.flatnonzero(chosen)), device, progress="rows")
