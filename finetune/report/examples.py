"""Test rows worth a look: confident mistakes, and the best and worst queries."""

from collections.abc import Hashable
from pathlib import PurePath
from typing import Any, NamedTuple

import pandas as pd

from finetune.report.thumbnails import Thumbnails

MOST_MISTAKES = 24
MOST_QUERIES = 6


class PredictedRow(NamedTuple):
    """A test row and what the models predict for it.

    Attributes:
        place: Where the row stands, see `show_place`.
        picture: Its image as a data URI, or None.
        text: Its label or caption.
        prediction: The class or caption that the model predicts.
        score: Its probability for a class, its cosine similarity for a caption.
        before: The base's prediction, or None.
    """

    place: str
    picture: str | None
    text: str
    prediction: str
    score: float
    before: str | None


class Mistakes(NamedTuple):
    """The rows that a model gets wrong.

    Attributes:
        total: How many there are.
        shown: Those of which the model is most confident.
    """

    total: int
    shown: list[PredictedRow]


class Query(NamedTuple):
    """A row as a query, from its image to texts or from its caption to images.

    Attributes:
        own: The row.
        rank: Rank of the best correct item.
        similarity: Of the row's own image and caption.
        retrieved: Place of the nearest image, see `show_place`.
        retrieved_text: Its caption.
        retrieved_picture: That image as a data URI, or None.
    """

    own: PredictedRow
    rank: float
    similarity: float
    retrieved: str
    retrieved_text: str
    retrieved_picture: str | None


def find_mistakes(predictions: pd.DataFrame, thumbnails: Thumbnails) -> Mistakes:
    """The rows that the model gets wrong, the most confident first.

    Args:
        predictions: Of a table with labels.
        thumbnails: Of that table.
    """
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    shown = wrong.sort_values("score", ascending=False, kind="stable").head(MOST_MISTAKES)
    return Mistakes(len(wrong), [_as_predicted(row, "label", thumbnails) for row in shown.to_dict("records")])


def find_queries(predictions: pd.DataFrame, direction: str, is_best: bool, thumbnails: Thumbnails) -> list[Query]:
    """The queries of one direction whose correct item ranks first or last.

    Among equal ranks, the most similar pairs are the best and the least similar the worst.

    Args:
        predictions: Of a table with captions.
        direction: `image_to_text` or `text_to_image`.
        is_best: Whether to find the best or the worst.
        thumbnails: Of that table.
    """
    same = ["caption"] if direction == "text_to_image" else ["prediction", "score"]
    ordered = predictions.sort_values(
        [f"{direction}_rank", "similarity"], ascending=[is_best, not is_best], kind="stable"
    )
    rows = ordered.drop_duplicates(same).head(MOST_QUERIES).to_dict("records")
    captions = predictions.drop_duplicates("place").set_index("place")["caption"]
    return [
        Query(
            own=_as_predicted(row, "caption", thumbnails),
            rank=float(row[f"{direction}_rank"]),
            similarity=float(row["similarity"]),
            retrieved=show_place(row, "retrieved"),
            retrieved_text=str(captions.get(row["retrieved"], "")),
            retrieved_picture=thumbnails(str(row["retrieved"])),
        )
        for row in rows
    ]


def show_place(row: dict[Hashable, Any], column: str) -> str:
    """A place as the page shows it: `file:row`, with the file's folder where the table has several files.

    Example:
        >>> show_place({"place": "data/birds.csv:7", "row": "7"}, "place")
        'birds.csv:7'
    """
    place = str(row[column])
    if "file" in row:
        return place
    file = str(row["place"]).removesuffix(f":{row['row']}")
    return PurePath(file).name + place.removeprefix(file)


def _as_predicted(row: dict[Hashable, Any], text: str, thumbnails: Thumbnails) -> PredictedRow:
    return PredictedRow(
        place=show_place(row, "place"),
        picture=thumbnails(str(row["place"])),
        text=str(row[text]),
        prediction=str(row["prediction"]),
        score=float(row["score"]),
        before=str(row["before"]) if "before" in row else None,
    )
