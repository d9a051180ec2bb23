"""The images or texts that are most similar to queries, among those that `finetune embed` has embedded."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from transformers import AlignProcessor

from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.places import AnyPath
from finetune.inference.approximate import Faiss
from finetune.inference.checkpoint import find_checkpoint
from finetune.inference.embed import find_device
from finetune.inference.embedder import Embedder, ImageEmbedder, TextEmbedder, describe_processor
from finetune.inference.index_rows import choose_rows, take_names
from finetune.inference.inputs import Images, list_given_texts, list_pictures
from finetune.inference.list_parts import IMAGE
from finetune.inference.nearest import Nearest
from finetune.inference.pictures import Picture, name_picture
from finetune.inference.vector_folder import open_vectors
from finetune.inference.vectors import Skipped, Space, VectorSource
from finetune.inference.ways import Exact, Way
from finetune.model.base import Base
from finetune.model.layers import TOWERS


class Queries(NamedTuple):
    """What is searched for.

    Attributes:
        ids: What each is known by.
        values: Texts, or images: paths, addresses, or open ones.
        embedder: The kind that embeds them.
    """

    ids: Sequence[str]
    values: Sequence[Picture]
    embedder: type[Embedder]


class Answers(NamedTuple):
    """What was found.

    Attributes:
        rows: Columns `query_id`; `query`, the text or path, or `image N` of an open image; `rank`, which equally
            similar answers share; `id`; `path` or `text`; and `similarity`, the cosine. The best answers come first.
        goes_on: Ids of queries of which an answer that was left out is as similar as the last one.
        compared: With how many vectors each query was compared; None where that is not known.
        recall: Share of the exact answers that are among these; None where these are the exact ones.
        asked: Number of queries on which that was measured.
        notice: What has to be known where model and index are of two checkpoints; None where they are of one.
        skipped: Queries that cannot be read.
    """

    rows: pd.DataFrame
    goes_on: tuple[str, ...]
    compared: int | None
    recall: float | None
    asked: int
    notice: str | None
    skipped: tuple[Skipped, ...]


def search(
    model: AnyPath,
    index: AnyPath,
    texts: str | Iterable[str] = (),
    images: Images = (),
    top: int = 10,
    filter: str | None = None,  # noqa: A002 (as in a table)
    table: AnyPath | pd.DataFrame | None = None,
    column: str = IMAGE,
    approximate: str | None = None,
    parameters: str = "",
    device: torch.device | None = None,
) -> Answers:
    """Finds what is most similar to texts or to images, by cosine. All vectors of the index are compared.

    Args:
        model: As for `answer`.
        index: Likewise.
        texts: What is searched for, one or several texts, such as a column of a DataFrame; or
        images: images, as `classify` takes them.
        top: Answers to each.
        filter: Which rows of the table that was embedded to compare, in the words of `Table.filter`.
        table: That table, where it was moved, or is a DataFrame.
        column: Its column of images or texts, and that of images in tables that are searched for.
        approximate: What faiss builds to look at a part of the vectors alone, such as `IVF1024,Flat`; see `Faiss`.
        parameters: Those of faiss, such as `nprobe=16`.
        device: Where the model runs; None for the fastest.

    Raises:
        CheckpointError: If the model cannot be opened, or the index is of another one.
        FileError: If the index is no whole file or folder of vectors.
        RecipeError: If there are both texts and images or neither, the filter cannot be read, or faiss is asked for
            beside it or not installed.
        TableError: If something is no text or image, no query can be read, or no row meets the filter.

    Example:
        >>> from finetune import search
        >>> search("runs/mine", "photos.npy", texts=["a red boat"]).rows  # doctest: +SKIP
    """
    words = list_given_texts(texts)
    is_image = not (isinstance(images, Sequence) and not len(images))
    if bool(words) == is_image:
        raise RecipeError(f"Expected texts or images to search for, but got {'both' if words else 'neither'}.")
    values = list_pictures(images, column).pictures if is_image else words
    queries = Queries([*map(str, range(1, len(values) + 1))], values, ImageEmbedder if is_image else TextEmbedder)
    way = choose_way(index, filter, table, column, approximate, parameters)
    return answer(model, index, queries, top, way, device)


def choose_way(
    index: AnyPath,
    condition: str | None = None,
    table: AnyPath | pd.DataFrame | None = None,
    column: str = IMAGE,
    approximate: str | None = None,
    parameters: str = "",
    separator: str | None = None,
) -> Way:
    """Chooses how an index is searched.

    Args:
        index: Its file or folder.
        condition: The filter, as for `search`.
        table: Likewise.
        column: Likewise.
        approximate: Likewise.
        parameters: Likewise.
        separator: The character between fields of the table; None goes by its name.

    Raises:
        RecipeError: If the filter cannot be read, or faiss is asked for beside it or not installed.
        TableError: If no row meets the filter.
    """
    if approximate is None:
        named = os.fspath(table) if isinstance(table, str | os.PathLike) else table
        if condition is None:
            return Exact(None)
        return Exact(choose_rows(open_vectors(Path(index)), condition, named, column, separator))
    if condition is not None:
        raise RecipeError("Expected --filter without --approximate, but got both. The exact search takes filters.")
    return Faiss(Path(index), approximate, parameters)


def answer(
    model: AnyPath,
    index: AnyPath,
    queries: Queries,
    top: int = 10,
    way: Way | None = None,
    device: torch.device | None = None,
) -> Answers:
    """Finds what is most similar to queries, see `search`.

    Args:
        model: Hub id, folder, `align-mini`, or a finished run: the checkpoint by which the index was made, or one that
            differs from it in the other tower alone.
        index: A file or folder of `finetune embed`.
        queries: What is searched for.
        top: Answers to each.
        way: How; None compares all vectors of the index.
        device: Where the model runs; None for the fastest.

    Raises:
        CheckpointError: If the model cannot be opened, or the index is of another one.
        FileError: If the index is no whole file or folder of vectors.
        TableError: If no query can be read.
    """
    opened = open_vectors(Path(index))
    base, processor = find_checkpoint(os.fspath(model))
    space = opened.read_facts().space
    notice = require_same(space, base, processor)
    embedded = queries.embedder(base, processor, device or find_device()).embed(queries.values, lambda _: None)
    if not len(embedded.kept):
        place, reason = embedded.skipped[0]
        raise TableError(f"Expected something to search for, but got nothing that can be read: {place}: {reason}.")
    found = (way or Exact()).find(opened, embedded.vectors, top)
    named = [_name(value, number) for number, value in enumerate(queries.values, 1)]
    asked = [(queries.ids[at], named[at]) for at in embedded.kept]
    goes_on = (query for (query, _), more in zip(asked, found.nearest.goes_on, strict=True) if more)
    rows = tabulate(opened, space.column, asked, found.nearest)
    return Answers(rows, (*goes_on,), found.compared, found.recall, found.asked, notice, tuple(embedded.skipped))


def _name(query: Picture, number: int) -> str:
    return query if isinstance(query, str) else name_picture(query, number)


def require_same(space: Space, base: Base, processor: AlignProcessor) -> str | None:
    """Refuses vectors that another model has made.

    Args:
        space: What made the vectors.
        base: The model.
        processor: Its processor.

    Returns:
        What has to be known where only the tower that made them is the same; None where the whole checkpoint is.

    Raises:
        CheckpointError: If they cannot be compared with what the model embeds.
    """
    repair = f"Name the checkpoint that made it, {space.model}, or embed again with this one."
    notice = None
    if space.fingerprint != base.fingerprint:
        tower = next(tower for tower in TOWERS if tower.name == space.tower)
        if space.tower_fingerprint != base.fingerprint_tower(tower):
            raise CheckpointError(
                f"Expected an index of {base.public_name}, but got one of {space.model}, whose {space.tower} tower has "
                f"other weights: its vectors mean something else to this model. {repair}"
            )
        notice = (
            f"The index is of {space.model}, another checkpoint than {base.public_name}. Their {space.tower} towers "
            f"have equal weights (SHA-256 {space.tower_fingerprint[:12]}): its vectors are those that this one gives."
        )
    described = describe_processor(processor)
    if space.processor != described:
        name = next(name for name in described if space.processor.get(name) != described[name])
        raise CheckpointError(
            f"Expected an index whose inputs were prepared as those of {base.public_name} are, but got {name} "
            f"{space.processor.get(name)} there and {described[name]} here. {repair}"
        )
    return notice


def tabulate(index: VectorSource, column: str, asked: Sequence[tuple[str, str]], found: Nearest) -> pd.DataFrame:
    """Returns one line per query and answer, see `Answers.rows`.

    Args:
        index: Where the answers are.
        column: What stands beside an id there, see `Space.column`.
        asked: Id and value of each query.
        found: The answers.
    """
    names = take_names(index, found.rows.reshape(-1).tolist())
    return pd.DataFrame(
        [
            (query_id, query, rank, *names[row], similarity)
            for (query_id, query), *answers in zip(asked, found.ranks, found.rows, found.similarity, strict=True)
            for rank, row, similarity in zip(*(part.tolist() for part in answers), strict=True)
            if row >= 0
        ],
        columns=["query_id", "query", "rank", "id", column, "similarity"],
    )
