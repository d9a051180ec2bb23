"""Rows whose caption or label fits worse than others would, judged by adapters that never saw the row."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from torch.nn.functional import normalize

from finetune.data.cells import Integers, Mask
from finetune.data.concerns import count
from finetune.data.datamodule import ImageTextDataModule
from finetune.data.rows import Rows
from finetune.data.splits import SPLITS, UNKNOWN
from finetune.errors import RecipeError
from finetune.evaluation import Collect, build_trainer
from finetune.experiment import fit, quieten
from finetune.metrics import Suspicion, compare_rows, judge_captions, judge_labels
from finetune.recipe import Recipe
from finetune.run_folder import RunFolder
from finetune.task import AlignTask

BLOCK = 4096
"""Rows of a caption table that are compared with each other at a time."""

SHOWN = 10
"""Rows that a screen shows."""

_TEST = SPLITS.index("test")


def find_suspects(recipe: Recipe, folds: int) -> pd.DataFrame:
    """Ranks the training rows of a table, the worst fitting first; nothing is written.

    The images are dealt into folds. For each fold the recipe's task is trained on the training rows of the others, and
    then says how well image and text of the rows held out fit each other. Labels are judged by
    `finetune.metrics.judge_labels`, captions by `finetune.metrics.judge_captions`.

    Args:
        recipe: What is trained.
        folds: Number of folds.

    Returns:
        Columns `file`, `row`, `image`, `caption` or `label`, `score` (higher is worse), and `better`: the caption or
        label of the table that fits better, empty where none does.

    Raises:
        TableError: If the table has a fault.
        RecipeError: If there are fewer than 2 folds, or more than training images, or a row may have several labels.
    """
    quieten()
    data = recipe.build_data()
    data.rows.require("train")
    fold_ids = deal_folds(data.rows, folds, recipe.run.seed)
    return rank_rows(recipe.accelerator, cross_fit(recipe, data, fold_ids), data, fold_ids)


def describe_suspects(found: pd.DataFrame) -> str:
    """The first rows for a screen, and how many there are.

    Args:
        found: See `find_suspects`.
    """
    texts = found.columns[3]
    lines = [
        f"{line['file']}:{line['row']}: {line[texts]!r}" + (f", better {line['better']!r}" if line["better"] else "")
        for line in found.head(SHOWN).to_dict("records")
    ]
    return "\n".join([*lines, f"{count(len(found), 'row', 'rows')} scored, the worst fitting first"])


def deal_folds(table: Rows, folds: int, seed: int) -> Integers:
    """Deals the training rows into folds: all rows of an image into the same one, and each label evenly.

    Args:
        table: The rows.
        folds: Number of folds.
        seed: Another number deals otherwise.

    Returns:
        The fold of each row of the table, -1 for those of the other splits.

    Raises:
        RecipeError: If there are fewer than 2 folds, or more than training images, or a row may have several labels.
    """
    if table.label_sets is not None:
        raise RecipeError(
            "Expected a table with a caption or one label a row, but got several labels a row, of which none can be "
            "told to fit worse than another. Name one column in data.table.label without a separator."
        )
    rows = table.indices("train")
    images = len(np.unique(table.image_ids[rows]))
    if not 2 <= folds <= images:
        raise RecipeError(f"Expected --folds to be from 2 to {images:,}, the training images, but got {folds}.")
    splitter = (StratifiedGroupKFold if table.classes else GroupKFold)(folds, shuffle=True, random_state=seed)
    found = np.full(len(table), -1)
    for fold, (_, held) in enumerate(splitter.split(rows, table.label_ids[rows], table.image_ids[rows])):
        found[rows[held]] = fold
    return found


def cross_fit(recipe: Recipe, data: ImageTextDataModule, fold_ids: Integers) -> Iterator[AlignTask]:
    """Trains the recipe's task once for each fold, on the training rows of the others.

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
        task = recipe.build_task()
        others = data.with_splits(np.where(fold_ids == fold, UNKNOWN, data.rows.splits))
        with TemporaryDirectory() as folder:
            fit(recipe, task, others, RunFolder(Path(folder) / "fold"))
        yield task


def rank_rows(
    accelerator: str, tasks: Iterable[AlignTask], data: ImageTextDataModule, fold_ids: Integers
) -> pd.DataFrame:
    """Ranks rows by what a task says of each, the worst fitting first.

    Args:
        accelerator: As for Lightning's `Trainer`.
        tasks: For each fold the task that judges its rows.
        data: The table.
        fold_ids: See `deal_folds`.

    Returns:
        See `find_suspects`. Rows whose image cannot be read are left out where `data.on_bad_image` is `skip`.
    """
    table = data.rows
    judge = _judge_labels if table.classes else _judge_captions
    rows, found = judge(accelerator, tasks, data, fold_ids)
    texts = np.array(table.classes)[table.label_ids[rows]] if table.classes else table.captions[rows]
    alternatives = np.array(table.classes) if table.classes else texts
    lines = pd.DataFrame(
        {
            "file": [str(table.file(row)) for row in rows],
            "row": table.numbers[rows],
            "image": table.images[rows],
            "label" if table.classes else "caption": texts,
            "score": found.scores.numpy(),
            "better": np.where(found.better < 0, "", alternatives[found.better]),
        }
    )
    return lines.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def _judge_labels(
    accelerator: str, tasks: Iterable[AlignTask], data: ImageTextDataModule, fold_ids: Integers
) -> tuple[Integers, Suspicion]:
    """Judges labels by the classes' scores for the images. Returns the rows too; `better` counts classes."""
    parts = [_collect(accelerator, task, data, fold_ids == fold) for fold, task in enumerate(tasks)]
    rows = torch.cat([part.joined("rows") for part in parts]).long().numpy()
    scores = torch.cat([part.joined("class_scores") for part in parts])
    return rows, judge_labels(scores, torch.from_numpy(data.rows.label_ids[rows]))


def _judge_captions(
    accelerator: str, tasks: Iterable[AlignTask], data: ImageTextDataModule, fold_ids: Integers
) -> tuple[Integers, Suspicion]:
    """Judges captions beside those of a block of rows. Returns the rows too; `better` counts these."""
    models, temperatures = [], []
    for task in tasks:
        part = _collect(accelerator, task, data, fold_ids >= 0)
        models.append([normalize(part.joined(f"{tower}_features"), dim=-1).half() for tower in ("image", "text")])
        temperatures.append(task.towers.temperature.item())
    rows = part.joined("rows").long().numpy()
    images, captions = data.rows.image_ids[rows], data.rows.caption_ids[rows]
    scores = torch.empty(len(rows), dtype=torch.float64)
    better = torch.empty(len(rows), dtype=torch.int64)
    mixed = np.random.default_rng(0).permutation(len(rows))
    for block in map(torch.from_numpy, np.array_split(mixed, -(-len(rows) // BLOCK))):
        embeds = [(image_embeds[block].float(), text_embeds[block].float()) for image_embeds, text_embeds in models]
        similarities = compare_rows(embeds, torch.from_numpy(fold_ids[rows[block]]))
        is_same = torch.from_numpy(_equal_pairs(images[block]) | _equal_pairs(captions[block]))
        scores[block], found = judge_captions(similarities, is_same, float(np.mean(temperatures)))
        better[block] = block[found].where(found >= 0, -1)
    return rows, Suspicion(scores, better)


def _equal_pairs(ids: Integers) -> Mask:
    equal: Mask = np.equal.outer(ids, ids)
    return equal


def _collect(accelerator: str, task: AlignTask, data: ImageTextDataModule, chosen: Mask) -> Collect:
    """What a task's test step returns of the chosen rows."""
    collect = Collect()
    only = data.with_splits(np.where(chosen, _TEST, UNKNOWN))
    build_trainer(accelerator, [collect]).test(task, only, verbose=False)
    return collect
