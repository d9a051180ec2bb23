"""The page of a run: one file without scripts that loads nothing."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from finetune.core.errors import RecipeError
from finetune.core.files import read_text, write_text
from finetune.core.places import AnyPath
from finetune.report.facts import Facts
from finetune.report.sections import build_sections
from finetune.report.thumbnails import Thumbnails
from finetune.report.words import describe_verdict, summarise
from finetune.run.folder import open_run

_FOLDER = Path(__file__).parent
_PICTURE = "data:image/"
STYLE = _FOLDER / "style.css"
"""What all pages look like."""


def write_report(run: AnyPath) -> Path:
    """Writes `report.html` of a run from the files of its folder and the images of its table.

    Args:
        run: The run's folder.

    Returns:
        The page.

    Raises:
        RecipeError: If there is no such run, it stopped before it was measured, or a page with pictures would be
            replaced by one without.
    """
    folder = open_run(run)
    facts = Facts.read(folder)
    thumbnails = Thumbnails.find(folder.recipe, facts.environment["table"])
    is_gone = any(not Path(table["path"]).is_file() for table in facts.environment["table"] if "sha256" in table)
    if is_gone and folder.report.is_file() and _PICTURE in read_text(folder.report):
        raise RecipeError(
            f"Expected {folder.path} to find its table, for the pictures of its page, but got none. "
            f"{thumbnails.absence} Put it back, or remove {folder.report} for a page without pictures."
        )
    write_text(folder.report, render(facts, thumbnails))
    return folder.report


def render(facts: Facts, thumbnails: Thumbnails) -> str:
    """The page as HTML; every text of the run is escaped.

    Args:
        facts: The run.
        thumbnails: Of its table.
    """
    return open_template("report.html.j2").render(
        facts=facts,
        sections=build_sections(facts, thumbnails),
        style=Markup(STYLE.read_text(encoding="utf-8")),
        summary=summarise(facts),
        verdict=describe_verdict(facts),
        without_images=thumbnails.absence,
    )


def open_template(name: str) -> Template:
    """Opens the template of a page, which escapes whatever is put into it.

    Args:
        name: A file of this package.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)
