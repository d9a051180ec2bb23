"""The page of a run: one file without scripts that loads nothing."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune.core.files import write_text
from finetune.report.facts import Facts
from finetune.report.sections import build_sections
from finetune.report.thumbnails import Thumbnails
from finetune.report.words import describe_verdict, summarise
from finetune.run.folder import open_run

_FOLDER = Path(__file__).parent
_TEMPLATE, _STYLE = "report.html.j2", "style.css"


def write_report(run: str | Path) -> Path:
    """Writes `report.html` of a run from the files of its folder and the images of its table.

    Args:
        run: The run's folder.

    Returns:
        The page.

    Raises:
        RecipeError: If there is no such run, or it stopped before it was measured.
    """
    folder = open_run(run)
    facts = Facts.read(folder)
    thumbnails = Thumbnails.find(folder.recipe, facts.environment["table"])
    write_text(folder.report, render(facts, thumbnails))
    return folder.report


def render(facts: Facts, thumbnails: Thumbnails) -> str:
    """The page as HTML; every text of the run is escaped.

    Args:
        facts: The run.
        thumbnails: Of its table.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(_TEMPLATE).render(
        facts=facts,
        sections=build_sections(facts, thumbnails),
        style=Markup((_FOLDER / _STYLE).read_text(encoding="utf-8")),
        summary=summarise(facts),
        verdict=describe_verdict(facts),
        without_images=thumbnails.absence,
    )
