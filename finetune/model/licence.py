"""The licence of a base, as its own model card states it: what is derived of it is under the same terms."""

import re
from typing import NamedTuple

from finetune.core.errors import FileError, RecipeError
from finetune.core.files import read_text
from finetune.core.yaml_text import parse_yaml
from finetune.model.base import CARD_FILE, Base
from finetune.model.mini import MINI

_METADATA = re.compile(r"---\n(.*?\n)---(\n|$)", re.DOTALL)
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class Licence(NamedTuple):
    """A licence, in the words of the hub's metadata.

    Attributes:
        identifier: Such as `apache-2.0`; `other` for one that `name` and `link` stand for.
        source: Who says so, a clause.
        name: Its name, where it has no identifier of its own.
        link: Where its text is.
    """

    identifier: str
    source: str
    name: str | None = None
    link: str | None = None


OF_MINI = Licence(
    "apache-2.0",
    "as its parts are: EfficientNet-Lite0, the weights of all-MiniLM-L6-v2 (whose package is under MIT), and the "
    "projection of align-finetune",
)


def read_licence(base: Base) -> Licence | None:
    """Returns the licence that a base's model card states in its metadata; None where it states none.

    Nothing is guessed: not from the name, and not from a text.

    Args:
        base: The base.
    """
    if base.name == MINI:
        return OF_MINI
    try:
        return parse_licence(read_text(base.folder / CARD_FILE))
    except (FileNotFoundError, FileError):
        return None


def parse_licence(card: str) -> Licence | None:
    """Returns the licence that the metadata of a model card state; None where they state none, or are none.

    Args:
        card: The card's text.
    """
    found = _METADATA.match(card.replace("\r\n", "\n"))
    try:
        values = parse_yaml(found[1], CARD_FILE) if found else None
    except RecipeError:  # a stranger's text, of which nothing can be known then
        return None
    if not isinstance(values, dict):
        return None
    stated = values.get("license")
    if not isinstance(stated, str) or not _IDENTIFIER.fullmatch(stated):
        return None
    name, link = (values.get(key) for key in ("license_name", "license_link"))
    return Licence(stated, "as the base's own model card states", _as_line(name), _as_line(link))


def _as_line(value: object) -> str | None:
    return " ".join(value.split()) if isinstance(value, str) and value.strip() else None
