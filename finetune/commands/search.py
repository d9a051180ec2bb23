"""`finetune search`: the images or texts of an index that are most similar to a query."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.options import Commands, add_output, add_separator, check_file, whole_number
from finetune.core.console import say
from finetune.core.errors import RecipeError
from finetune.core.places import show

if TYPE_CHECKING:
    from finetune.inference.search import Answers, Queries
    from finetune.inference.vectors import Skipped


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    search = commands.add_parser(
        "search",
        help="what is most similar to a text or image, among vectors of finetune embed",
        description="Compares queries with all vectors of an index, and lists the most similar ones.",
    )
    search.add_argument("model", metavar="MODEL", help="a hub id, a folder, align-mini, or a run")
    search.add_argument("--index", metavar="PLACE", required=True, help="a file or folder that finetune embed wrote")
    search.add_argument("--text", action="append", default=[], help="what to search for; may be repeated")
    search.add_argument("--image", metavar="FILE", action="append", default=[], help="an image to search for")
    search.add_argument("--queries", metavar="TABLE", help="a table of images to search for, or of --texts")
    search.add_argument("--texts", metavar="COLUMN", help="the column of texts in --queries")
    search.add_argument("--top", type=whole_number, default=10, metavar="K", help="answers to each query (10)")
    search.add_argument("--filter", metavar="EXPR", help="rows of the table that was embedded, as 'clip_score > 0.3'")
    search.add_argument("--table", metavar="TABLE", help="that table, where it was moved")
    search.add_argument("--column", default="image", help="its column of images or texts, and that of --queries")
    add_separator(search)
    search.add_argument("--approximate", metavar="FACTORY", help="search by faiss, as IVF1024,Flat (extra search)")
    search.add_argument("--parameters", metavar="P", default="", help="those of faiss, as nprobe=16")
    search.add_argument("--page", metavar="HTML", type=Path, help="write a page with the images, and list none")
    search.add_argument("--device", default="auto", help="cpu, gpu, or auto for the fastest (default)")
    add_output(search, "TABLE", "write all answers, as .csv or .parquet, instead of listing them")
    search.set_defaults(command=_search)


def _search(options: argparse.Namespace) -> None:
    from finetune.core.frame_files import check_ending, write_frame

    for file, option in ((options.output, "--output"), (options.page, "--page")):
        check_file(file, options.overwrite, option)
    check_ending(options.output)
    from finetune.inference.embed import find_device
    from finetune.inference.search import answer, choose_way

    device = find_device(options.device, "--device")
    queries, left_out = _read_queries(options)
    way = choose_way(
        options.index,
        options.filter,
        options.table,
        options.column,
        options.approximate,
        options.parameters,
        options.separator,
    )
    found = answer(options.model, options.index, queries, options.top, way, device)
    if found.notice:
        say(f"warning: {found.notice}", file=sys.stderr)
    if options.output:
        write_frame(options.output, found.rows)
    if options.page:
        _write_page(options, found, queries)
    _show(found, options.output, options.page)
    for path, reason in (*left_out, *found.skipped):
        say(f"left out    {path}: {reason}")


def _read_queries(options: argparse.Namespace) -> tuple["Queries", list["Skipped"]]:
    """Returns what is searched for, and what was left out: rows with a fault, and hidden files."""
    given = [name for name in ("text", "image", "queries") if getattr(options, name)]
    if len(given) != 1:
        raise RecipeError(
            "Expected one of --text, --image and --queries to say what to search for, but got "
            + (" and ".join(f"--{name}" for name in given) or "none")
            + '. Pass one of them, as --text "a red boat".'
        )
    from finetune.inference.embedder import ImageEmbedder, TextEmbedder
    from finetune.inference.list_parts import list_images, list_texts
    from finetune.inference.search import Queries
    from finetune.inference.vectors import Skipped

    if options.text:
        if empty := [text for text in options.text if not text.strip()]:
            raise RecipeError(f"Expected each --text to be a text, but got {empty[0]!r}. Word it, or leave it out.")
        return Queries([*map(str, range(1, len(options.text) + 1))], options.text, TextEmbedder), []
    named = options.image or [options.queries]
    found = (
        list_texts(named, options.texts, separator=options.separator)
        if options.texts
        else list_images(named, options.column, separator=options.separator)
    )
    entries = [part.read() for part in found.parts]
    ids = [row for entry in entries for row in entry.ids]
    values = [value for entry in entries for value in entry.values]
    left_out = [skipped for entry in entries for skipped in entry.skipped]
    left_out += [Skipped(path, "a hidden file") for path in found.hidden]
    return Queries(ids, values, TextEmbedder if options.texts else ImageEmbedder), left_out


def _show(found: "Answers", output: Path | None, page: Path | None) -> None:
    """Shows all answers, or where they are, and how they were found."""
    if output or page:
        _show_place(found, output, page)
    else:
        _show_answers(found)
    if found.compared is not None:
        say(f"compared    {found.compared:,} vectors, all exactly")
    else:
        queries = "1 query" if found.asked == 1 else f"{found.asked} queries"
        say(f"recall      {found.recall:.3f} of the exact answers, measured on {queries}")


def _show_place(found: "Answers", output: Path | None, page: Path | None) -> None:
    from finetune.data.checks.concerns import count

    queries = count(found.rows["query_id"].nunique(), "query", "queries")
    say(f"answers     {len(found.rows):,} to {queries}, in {' and '.join(map(show, filter(None, (output, page))))}")
    if found.goes_on:
        say(f"cut off     {count(len(found.goes_on), 'query', 'queries')} with others as similar as the last answer")


def _show_answers(found: "Answers") -> None:
    value = found.rows.columns[-2]
    for query, rows in found.rows.groupby("query_id", sort=False):
        say(rows["query"].iloc[0])
        for rank, shown, similarity in zip(rows["rank"], rows[value], rows["similarity"], strict=True):
            say(f"  {rank:>4}  {similarity:.6f}  {shown}")
        if query in found.goes_on:
            say("        and others that are as similar as the last one")


def _write_page(options: argparse.Namespace, found: "Answers", queries: "Queries") -> None:
    from finetune.report.contact_sheet import Answered, Item, write_contact_sheet

    value = found.rows.columns[-2]
    answered = [
        Answered(
            Item(rows["query"].iloc[0], queries.embedder.tower.name == "image"),
            [
                Item(row[value], value == "path", row["id"], row["rank"], row["similarity"])
                for row in rows.to_dict("records")
            ],
            query in found.goes_on,
        )
        for query, rows in found.rows.groupby("query_id", sort=False)
    ]
    told = [f"{options.index}, searched by {options.model}.", *([found.notice] if found.notice else [])]
    write_contact_sheet(options.page, answered, told)
