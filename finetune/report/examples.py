"""Test rows worth looking at: confident mistakes, and queries that went best and worst."""

from collections.abc import Hashable
from pathlib import PurePath
from typing import Any, NamedTuple

import pandas as pd

from finetune.report.pictures import Pictures

MOST_MISTAKES = 24
MOST_QUERIES = 6


class Example(NamedTuple):
    """A row with what was said of it.

    Attributes:
        place: Where it stands, see `show_place`.
        picture: Its image as a data URI, or None.
        text: Its label or caption.
        prediction: What the model said instead, or its best caption.
        score: How sure it was: a probability of a class, a cosine similarity of a caption.
        before: What the base had said.
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
        surest: Those of which the model is surest.
    """

    total: int
    surest: list[Example]


class Query(NamedTuple):
    """A row as a query, from its image to texts or from its caption to images.

    Attributes:
        example: The row.
        rank: Where the best correct item stands.
        similarity: Of the row's own image and caption.
        retrieved: Place of the nearest image, likewise.
        retrieved_text: Its caption.
        retrieved_picture: That image as a data URI, or None.
    """

    example: Example
    rank: float
    similarity: float
    retrieved: str
    retrieved_text: str
    retrieved_picture: str | None


def find_mistakes(predictions: pd.DataFrame, pictures: Pictures) -> Mistakes:
    """The rows that the model gets wrong, the surest first.

    Args:
        predictions: Of a table with labels.
        pictures: Of that table.
    """
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    surest = wrong.sort_values("score", ascending=False, kind="stable").head(MOST_MISTAKES)
    return Mistakes(len(wrong), [_as_example(row, "label", pictures) for row in surest.to_dict("records")])


def find_queries(predictions: pd.DataFrame, direction: str, is_best: bool, pictures: Pictures) -> list[Query]:
    """The queries of one direction whose correct item stands first or last.

    Of equal ranks those of the most similar pairs are the best, those of the least similar the worst.

    Args:
        predictions: Of a table with captions.
        direction: `image_to_text` or `text_to_image`.
        is_best: Whether the best are wanted.
        pictures: Of that table.
    """
    same = ["caption"] if direction == "text_to_image" else ["prediction", "score"]
    ordered = predictions.sort_values(
        [f"{direction}_rank", "similarity"], ascending=[is_best, not is_best], kind="stable"
    )
    rows = ordered.drop_duplicates(same).head(MOST_QUERIES).to_dict("records")
    captions = predictions.drop_duplicates("place").set_index("place")["caption"]
    return [
        Query(
            example=_as_example(row, "caption", pictures),
            rank=float(row[f"{direction}_rank"]),
            similarity=float(row["similarity"]),
            retrieved=show_place(row, "retrieved"),
            retrieved_text=str(captions.get(row["retrieved"], "")),
            retrieved_picture=pictures(str(row["retrieved"])),
        )
        for row in rows
    ]


def show_place(row: dict[Hashable, Any], column: str) -> str:
    """A place as it is shown: `file:row`, with the file's folder where the table has several files.

    Example:
        >>> show_place({"place": "data/birds.csv:7", "row": "7"}, "place")
        'birds.csv:7'
    """
    place = str(row[column])
    if "file" in row:
        return place
    file = str(row["place"]).removesuffix(f":{row['row']}")
    return PurePath(file).name + place.removeprefix(file)


def _as_example(row: dict[Hashable, Any], text: str, pictures: Pictures) -> Example:
    return Example(
        place=show_place(row, "place"),
        picture=pictures(str(row["place"])),
        text=str(row[text]),
        prediction=str(row["prediction"]),
        score=float(row["score"]),
        before=str(row["before"]) if "before" in row else None,
    )
