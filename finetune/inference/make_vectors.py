"""Vectors in a line of Python: as files, which `finetune embed` makes, or as an array, of images or texts at hand."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from finetune.core.errors import TableError
from finetune.core.places import AnyPath
from finetune.inference.checkpoint import find_checkpoint
from finetune.inference.embed import find_device
from finetune.inference.embed_parts import Tally
from finetune.inference.embedder import Embedder, ImageEmbedder, Storage, TextEmbedder
from finetune.inference.inputs import Images, Places, list_given_texts, list_pictures, list_places
from finetune.inference.list_parts import FRAME, IMAGE, ROWS, list_images, list_texts
from finetune.inference.outputs import open_output
from finetune.inference.pictures import Picture
from finetune.inference.vectors import Facts, Skipped, Vectors
from finetune.inference.write_vectors import share_machine, write_vectors


class Made(NamedTuple):
    """What became of images or texts that were embedded into files.

    Attributes:
        place: The file or folder, which `read_vectors` and `search` read.
        facts: What it says of itself: the model, how many vectors there are, and what has none.
        tally: What this process has done of it, and how fast.
        parts: Number of its parts.
        hidden: Files in folders that were left out, as they or a folder around them are hidden.
    """

    place: Path
    facts: Facts
    tally: Tally
    parts: int
    hidden: tuple[str, ...]


def embed(
    model: AnyPath,
    inputs: Places,
    output: AnyPath,
    texts: str | None = None,
    column: str = IMAGE,
    overwrite: bool = False,
    format: Literal["parquet", "npy", "safetensors"] | None = None,  # noqa: A002 (as the command's option)
    float16: bool = False,
    raw: bool = False,
    device: torch.device | None = None,
    batch_size: int | None = None,
    part_rows: int = ROWS,
    separator: str | None = None,
) -> Made:
    """Embeds images, or the texts of a column, into a file or a folder, which `read_vectors` and `search` read.

    A call that was stopped goes on where it was; made in several processes at once, they share the work.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run.
        inputs: Image files, folders, tables, tars and patterns of these by their paths, and DataFrames; one or several.
        output: A file that ends in `.parquet`, `.npy` or `.safetensors`, or a folder, which holds a file for each part.
        texts: The column whose texts are embedded, in tars the ending of their files, as `txt`; None embeds images.
        column: The column of images in tables and DataFrames.
        overwrite: Whether what is there of something else is replaced.
        format: Ending of a folder's files; None for Parquet.
        float16: Whether vectors are kept in half precision.
        raw: Whether vectors keep their length, which is 1 otherwise.
        device: Where the model runs; None for the fastest, of several processes each its own.
        batch_size: Images or texts at a time; None for 32 images or 256 texts.
        part_rows: Rows of a part; a tar is one part.
        separator: The character between fields of a table; None for tabs in `.tsv` files and commas in others.

    Raises:
        CheckpointError: If the model cannot be opened, or is a run that is not finished.
        FileExistsError: If `output` holds something else and `overwrite` is false.
        RecipeError: If `output` can be no file or folder of vectors.
        TableError: If something is no path and no DataFrame, is not there, or cannot be read.

    Example:
        >>> from finetune import embed
        >>> embed("runs/mine", "shards/*.tar", "vectors").facts.rows  # doctest: +SKIP
    """
    opened = open_output(Path(output), overwrite, format)
    device = device or share_machine("auto")
    named = list_places(inputs)
    found = (
        list_images(named, column, part_rows, separator)
        if texts is None
        else list_texts(named, texts, part_rows, separator)
    )
    kind: type[Embedder] = ImageEmbedder if texts is None else TextEmbedder
    storage = Storage(not raw, "float16" if float16 else "float32")
    embedder = kind(*find_checkpoint(os.fspath(model)), device, storage, batch_size)
    source = [word if isinstance(word, str) else FRAME for word in named]
    facts, tally = write_vectors(embedder, found.parts, source, opened)
    return Made(opened.place, facts, tally, len(found.parts), tuple(found.hidden))


def embed_images(
    model: AnyPath,
    images: Images,
    column: str = IMAGE,
    raw: bool = False,
    device: torch.device | None = None,
) -> Vectors:
    """Embeds images into an array. Those that cannot be read have no vector, and `facts.skipped` lists them.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run.
        images: Images, as `classify` takes them.
        column: The column of images in tables and DataFrames.
        raw: Whether vectors keep their length, which is 1 otherwise.
        device: Where the model runs; None for the fastest.

    Returns:
        The vectors, float32 of shape (images that were read, dimension). `ids` counts the images from 1, and `values`
        names them: the path, or `image N` of an open one.

    Raises:
        CheckpointError: If the model cannot be opened, or is a run that is not finished.
        TableError: If no image is given, something is no image, or a file does not exist.
    """
    listed = list_pictures(images, column)
    skipped = tuple(Skipped(*left_out) for left_out in listed.skipped)
    return _embed_now(ImageEmbedder, model, listed.pictures, listed.names, raw, device, skipped)


def embed_texts(
    model: AnyPath, texts: str | Iterable[str], raw: bool = False, device: torch.device | None = None
) -> Vectors:
    """Embeds texts into an array, each worded as the model reads it.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run.
        texts: One or several texts, such as a column of a DataFrame.
        raw: Whether vectors keep their length, which is 1 otherwise.
        device: Where the model runs; None for the fastest.

    Returns:
        The vectors, float32 of shape (texts, dimension). `ids` counts the texts from 1, `values` holds them.

    Raises:
        CheckpointError: If the model cannot be opened, or is a run that is not finished.
        TableError: If there is no text, or something is none.
    """
    words = list_given_texts(texts)
    if not words:
        raise TableError("Expected at least one text, but got none.")
    return _embed_now(TextEmbedder, model, words, words, raw, device)


def _embed_now(
    kind: type[Embedder],
    model: AnyPath,
    values: "list[Picture] | list[str]",
    names: list[str],
    raw: bool,
    device: torch.device | None,
    skipped: tuple[Skipped, ...] = (),
) -> Vectors:
    embedder = kind(*find_checkpoint(os.fspath(model)), device or find_device(), Storage(not raw))
    found = embedder.embed(values, lambda _: None)
    facts = Facts(embedder.space, (), len(found.kept), "", (*skipped, *found.skipped))
    return Vectors(facts, [str(at + 1) for at in found.kept], [names[at] for at in found.kept], found.vectors)
