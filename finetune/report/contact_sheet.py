"""The answers of a search as a page: one file without scripts that loads nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from finetune.core.files import write_text
from finetune.report.page import STYLE, open_template
from finetune.report.thumbnails import draw_thumbnail


class Item(NamedTuple):
    """A query or an answer.

    Attributes:
        value: Its text, or the path of its image.
        is_image: Which of the two.
        id: What an answer is known by; empty of a query.
        rank: Its place among the answers; 0 of a query.
        similarity: The cosine with the query.
    """

    value: str
    is_image: bool
    id: str = ""
    rank: int = 0
    similarity: float = 1.0

    @property
    def thumbnail(self) -> str | None:
        """The image, made small; None of a text, or where there is no image any more."""
        return draw_thumbnail(self.value) if self.is_image else None


class Answered(NamedTuple):
    """A query with its answers, the best first.

    Attributes:
        query: What was searched for.
        answers: What was found.
        goes_on: Whether an answer that was left out is as similar as the last one.
    """

    query: Item
    answers: Sequence[Item]
    goes_on: bool


def write_contact_sheet(page: Path, answered: Sequence[Answered], told: Sequence[str]) -> None:
    """Writes the page; every text of it is escaped.

    Args:
        page: The file.
        answered: The queries.
        told: Sentences on what was searched, and by what.
    """
    template = open_template("contact_sheet.html.j2")
    write_text(page, template.render(answered=answered, told=told, style=Markup(STYLE.read_text(encoding="utf-8"))))
