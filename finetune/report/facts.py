"""The content of the files in a run's folder, as the page needs it."""

import re
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from finetune.core.csv_text import read_frame
from finetune.core.errors import RecipeError
from finetune.core.files import read_json, read_text
from finetune.run.folder import RunFolder
from finetune.run.results import PROOF_FILE

_TEXTS = ("row", "label", "caption", "prediction", "before", "retrieved", "file")


@dataclass(frozen=True, eq=False)
class Facts:
    """A run that was measured.

    Attributes:
        name: The run's name.
        metrics: `metrics.json`.
        environment: `environment.json`; the base has its public name there, see `Base.public_name`.
        recipe: `recipe.yaml`, as text, where the base has that name too.
        logged: `metrics.csv`; of several trainings, the mean at each step.
        trainings: How many trainings logged values.
        predictions: `predictions.csv`, after the column `place`: where the row stands, as `file:row`.
        proofs: `merge_proof.json` of each exported folder, by its name.
        cards: The Python of each exported folder's model card, likewise.
    """

    name: str
    metrics: dict[str, Any]
    environment: dict[str, Any]
    recipe: str
    logged: pd.DataFrame
    trainings: int
    predictions: pd.DataFrame
    proofs: dict[str, dict[str, Any]]
    cards: dict[str, str]

    @classmethod
    def read(cls, run: RunFolder) -> Self:
        """Reads a run's folder.

        Raises:
            RecipeError: If the run stopped before it was measured.
        """
        if not run.metrics.is_file():
            raise RecipeError(
                f"Expected {run.path} to be measured, but it has no {run.metrics.name}, as it stopped before. "
                f"Finish it with `finetune resume {run.path}`."
            )
        environment = read_json(run.environment)
        checkpoint = environment["checkpoint"]
        checkpoint["name"] = checkpoint.get("public_name", checkpoint["name"])  # which runs of older versions lack
        exported = [path.parent for path in sorted(run.path.glob(f"[!.]*/{PROOF_FILE}"))]
        return cls(
            name=run.path.resolve().name,
            metrics=read_json(run.metrics),
            environment=environment,
            recipe=_name_base(read_text(run.recipe), checkpoint["name"]),
            logged=_read_logged(run),
            trainings=len(run.logs),
            predictions=_read_predictions(run, environment),
            proofs={folder.name: read_json(folder / PROOF_FILE) for folder in exported},
            cards={folder.name: find_python((folder / "README.md").read_text(encoding="utf-8")) for folder in exported},
        )

    @property
    def headline(self) -> list[str]:
        """The metrics that the summary speaks of."""
        after = self.metrics["after"]
        known = ("test/accuracy", "test/image_to_text/R@1", "test/text_to_image/R@1")
        return [key for key in known if key in after] or list(after)[:1]

    @property
    def is_classified(self) -> bool:
        """Whether each test row has one label and one prediction."""
        return "test/accuracy" in self.metrics["after"]

    @property
    def is_retrieved(self) -> bool:
        """Whether test rows are queries, from images to captions and back."""
        return "retrieved" in self.predictions


def _name_base(recipe: str, name: str) -> str:
    """Puts a name in place of the first `checkpoint`, that of the model, which may go on in deeper lines."""
    return re.sub(
        r"^( *)checkpoint: .*(?:\n\1 +\S.*)*", lambda key: f"{key[1]}checkpoint: {name}", recipe, count=1, flags=re.M
    )


def _read_logged(run: RunFolder) -> pd.DataFrame:
    logs = [pd.read_csv(path) for path in run.logs]
    if len(logs) < 2:
        return logs[0] if logs else pd.DataFrame()
    return pd.concat(logs).groupby("step", as_index=False).mean()


def _read_predictions(run: RunFolder, environment: dict[str, Any]) -> pd.DataFrame:
    found = read_frame(run.predictions, _TEXTS)
    tables = [table["path"] for table in environment["table"]]
    only = tables[0] if len(tables) == 1 else "row"  # a DataFrame has no file
    files = found["file"] if "file" in found else pd.Series(only, found.index)
    found.insert(0, "place", files + ":" + found["row"])
    return found


def find_python(card: str) -> str:
    """The first Python of a model card; empty where there is none."""
    _, _, rest = card.partition("```python\n")
    return rest.partition("```")[0]
