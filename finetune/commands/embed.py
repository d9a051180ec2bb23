"""`finetune embed`: vectors of images or texts, in one file or a folder of them."""

import argparse
from typing import TYPE_CHECKING

from finetune.commands.options import Commands, add_output, add_separator, whole_number
from finetune.core.console import say
from finetune.core.cores import count_processes
from finetune.core.errors import RecipeError

if TYPE_CHECKING:
    from finetune.inference.make_vectors import Made

SHOWN = 20
"""Images that were left out and are listed; the output holds all."""


def add(commands: Commands) -> None:
    """Adds the command.

    Args:
        commands: Those of `finetune`.
    """
    embed = commands.add_parser(
        "embed",
        help="vectors of images or texts, as a file or a folder of files",
        description="Embeds images, or the texts of a column. A command that was stopped goes on where it was; started "
        "several times, by torchrun, srun or hand, its processes share the work.",
    )
    embed.add_argument("model", metavar="MODEL", help="a hub id, a folder, align-mini, or a run")
    embed.add_argument("named", metavar="INPUT", nargs="+", help="image files, folders, tables, tars; - for lines")
    add_output(
        embed, "PLACE", "a .parquet, .npy or .safetensors file; any other name is a folder with a file a part", True
    )
    embed.add_argument("--texts", metavar="COLUMN", help="embed the texts of this column; of tars, such as txt")
    embed.add_argument("--column", default="image", help="a table's column of images (default: image)")
    add_separator(embed)
    embed.add_argument("--format", choices=("parquet", "npy", "safetensors"), help="of a folder's files (parquet)")
    embed.add_argument("--float16", action="store_true", help="keep vectors in half precision")
    embed.add_argument("--raw", action="store_true", help="keep the length of vectors, which is 1 otherwise")
    embed.add_argument("--device", default="auto", help="cpu, gpu, or auto for the fastest (default)")
    embed.add_argument("--batch-size", type=whole_number, metavar="N", help="images or texts at a time (32, 256)")
    embed.add_argument(
        "--part-rows", type=whole_number, default=2048, metavar="N", help="rows a part (2048); a tar is one"
    )
    embed.set_defaults(command=_embed)


def _embed(options: argparse.Namespace) -> None:
    if "-" in options.named and count_processes() > 1:
        raise RecipeError("Expected one process to read standard input, but got several. Save the list as a table.")
    from finetune.inference.make_vectors import embed
    from finetune.inference.write_vectors import share_machine

    made = embed(
        options.model,
        options.named,
        options.output,
        options.texts,
        options.column,
        options.overwrite,
        options.format,
        options.float16,
        options.raw,
        share_machine(options.device),
        options.batch_size,
        options.part_rows,
        options.separator,
    )
    _report(made)


def _report(made: "Made") -> None:
    """Says what was done, what was left out, and where the vectors are."""
    from finetune.data.checks.concerns import count

    place, facts, tally, parts, hidden = made
    what = ("image", "images") if facts.space.tower == "image" else ("text", "texts")
    if tally.found == parts:
        say(f"nothing to do: all {count(facts.rows, *what)} {'was' if facts.rows == 1 else 'were'} embedded already")
    elif tally.found:
        say(f"went on     {tally.found:,} of {count(parts, 'part was', 'parts were')} whole already")
    if tally.parts:
        done = f"{count(tally.rows, *what)} in {count(tally.parts, 'part', 'parts')}"
        say(f"embedded    {done}, {tally.rate:.1f} {what[1]}/s")
    if facts.skipped:
        say(f"skipped     {count(len(facts.skipped), *what)}, as they cannot be read")
    for skipped in facts.skipped[:SHOWN]:
        say(f"  {skipped.place}: {skipped.reason}")
    if len(facts.skipped) > SHOWN:
        say(f"  and {len(facts.skipped) - SHOWN:,} more, which {place} lists")
    if hidden:
        say(f"left out    {count(len(hidden), 'hidden file', 'hidden files')}, such as {hidden[0]}")
    kind = f"{'normalised' if facts.space.normalised else 'raw'}, {facts.space.dtype}"
    say(f"vectors     {place}: {facts.rows:,} of {facts.space.dimension} numbers, {kind}, by {facts.space.model}")
