"""How many planted mistakes `finetune suspects` finds: exchanged captions or labels in 5 % of the training rows.

    finetune prepare emoji && python benchmarks/suspects.py emoji data/emoji/emoji.csv

Prints a Markdown table. "Found" is the share of exchanged rows among as many of the worst rows, which is precision and
recall at that depth; guessing finds 5 %. Beside it stands what the untouched base finds, judged in the same way.
"Right" is the share of the rows found whose own text is named as the better one.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from finetune.core.shipped import find_recipe
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.run_recipe import quieten
from finetune.pipeline.suspects import cross_fit, deal_folds, rank_rows
from finetune.training.task import AlignTask

SHARE = 0.05
CASES = {
    "emoji": ("retrieval_lora", "caption", {"--data.image_size": 96}),
    "digits": ("quickstart", "label", {}),
}


def exchange(table: pd.DataFrame, column: str, seed: int) -> pd.Series:
    """Exchanges the texts of some training rows; returns the true text of each changed row, by row number."""
    train = np.flatnonzero(table["split"] == "train")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(generator.choice(train, round(SHARE * len(train)), replace=False))
    before = table[column].copy()
    table.loc[chosen, column] = before[np.roll(chosen, 1)].to_numpy()
    true = before[table[column] != before]
    return true.set_axis(true.index + 2)  # as a spreadsheet numbers them


def describe(ranked: pd.DataFrame, true: pd.Series) -> str:
    worst = ranked.head(len(true)).set_index("row")
    found = worst[worst.index.isin(true.index)]
    right = (found["better"] == true[found.index]).mean() if len(found) else 0.0
    return f"{100 * len(found) / len(true):.0f} % | {100 * right:.0f} %"


def measure(case: str, table_file: Path, folds: int, seed: int, overrides: list[str]) -> str:
    """Plants mistakes, looks for them, and returns a line of the table."""
    name, column, own_settings = CASES[case]
    table = pd.read_csv(table_file, dtype=str, keep_default_na=False)
    true = exchange(table, column, seed)
    with tempfile.TemporaryDirectory() as folder:
        table.to_csv(Path(folder) / "table.csv", index=False)
        settings = {
            "--model.checkpoint": "align-mini",
            "--data.table.path": f"{folder}/table.csv",
            "--data.table.images": table_file.parent,
            "--data.table.split": "split",
            "--data.num_workers": 0,
            "--trainer.accelerator": "cpu",
            "--trainer.precision": "bf16-mixed",
            "--trainer.enable_progress_bar": "false",
            "--run.seed": seed,
        } | own_settings
        words = [str(word) for pair in settings.items() for word in pair]
        recipe = read_recipe(find_recipe(name), [*words, *overrides])
        data = recipe.build_data()
        fold_ids = deal_folds(data.rows, folds, seed)
        device = torch.device("cpu")
        untouched = rank_rows(device, [AlignTask("align-mini", None, None)], data, np.minimum(fold_ids, 0))
        start = time.perf_counter()
        adapted = rank_rows(device, cross_fit(recipe, data, fold_ids), data, fold_ids)
        minutes = (time.perf_counter() - start) / 60
    cells = [table_file.stem, seed, f"{len(adapted):,}", len(true), describe(untouched, true), describe(adapted, true)]
    return f"| {' | '.join(map(str, cells))} | {minutes:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES, help="recipe and column; any recipe key may follow as an option")
    parser.add_argument("table", type=Path, help="as `finetune prepare` wrote it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=4)
    options, overrides = parser.parse_known_args()
    quieten()
    sides = "found, untouched | right | found, adapted | right"
    print(f"| table | seed | rows | exchanged | {sides} | minutes |\n| --- |{' ---: |' * 8}")
    for seed in options.seeds:
        print(measure(options.case, options.table, options.folds, seed, overrides), flush=True)


if __name__ == "__main__":
    main()
