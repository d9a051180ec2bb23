"""What code hands over as images or texts: paths, tables, DataFrames, and images that are open already."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from finetune.core.errors import TableError
from finetune.inference.list_parts import IMAGE, read_images
from finetune.inference.listing import is_table, require_files
from finetune.inference.pictures import Picture, SkippedImage, name_picture

AnImage: TypeAlias = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]
"""An image: a file's path, what Pillow has opened, or its pixels as a uint8 array of shape (H, W, 3)."""

Images: TypeAlias = AnImage | pd.DataFrame | Iterable[AnImage | pd.DataFrame]
"""One or several images; or folders, tables, tars and patterns of these by their paths, and DataFrames."""

Places: TypeAlias = str | os.PathLike[str] | pd.DataFrame | Sequence[str | os.PathLike[str] | pd.DataFrame]
"""What can be read again later, in another process: files, folders, tables and tars by their paths, and DataFrames."""


class Listed(NamedTuple):
    """Images in the order in which they were handed over.

    Attributes:
        pictures: Paths, addresses in tars, and open images.
        skipped: Rows of tables that name none.
        tables: The tables, tars and DataFrames among what was handed over.
    """

    pictures: list[Picture]
    skipped: list[SkippedImage]
    tables: list[str | pd.DataFrame]

    @property
    def paths(self) -> list[str]:
        """The path or address of each image, an empty text for one that is open."""
        return [picture if isinstance(picture, str) else "" for picture in self.pictures]

    @property
    def names(self) -> list[str]:
        """What each image is called, see `name_picture`."""
        return [name_picture(picture, number) for number, picture in enumerate(self.pictures, 1)]


def list_pictures(images: Images, column: str = IMAGE) -> Listed:
    """Lists images, of folders and tables each once.

    Args:
        images: The images.
        column: The column of tables and DataFrames that holds the paths of images.

    Raises:
        TableError: If there is none, something is no image, a file does not exist, or a table cannot be read.
    """
    given = [images] if _is_one(images) else [*cast("Iterable[Any]", images)]
    if not given:
        raise TableError("Expected at least one image, but got none.")
    found = [_read(one, number) for number, one in enumerate(given, 1)]
    require_files(one for one in found if isinstance(one, str) and not _names_several(one))
    listed = Listed([], [], [])
    for one in found:
        if isinstance(one, Image.Image) or (isinstance(one, str) and not _names_several(one)):
            listed.pictures.append(one)
            continue
        inside = read_images([one], column)
        listed.pictures.extend(inside.images)
        listed.skipped.extend(SkippedImage(*left_out) for left_out in inside.skipped)
        if isinstance(one, pd.DataFrame) or not Path(one).is_dir():
            listed.tables.append(one)
    return listed


def list_places(inputs: Places) -> list[str | pd.DataFrame]:
    """Lists what can be read again: paths as texts, and DataFrames.

    Args:
        inputs: What is handed over.

    Raises:
        TableError: If there is nothing, or something else.
    """
    given = [inputs] if isinstance(inputs, str | os.PathLike | pd.DataFrame) else [*inputs]
    if not given:
        raise TableError("Expected at least one file, folder, table or tar, but got none.")
    for one in given:
        if not isinstance(one, str | os.PathLike | pd.DataFrame):
            raise TableError(
                f"Expected the paths of files, folders, tables or tars, or DataFrames, but got {_describe(one)}, which "
                "a file of vectors cannot name. Save it, or call embed_images, which returns the vectors."
            )
    return [one if isinstance(one, pd.DataFrame) else os.fspath(one) for one in given]


def list_given_texts(texts: str | Iterable[str]) -> list[str]:
    """Lists texts: a single one, or those of a list, a Series or the like.

    Args:
        texts: The texts.

    Raises:
        TableError: If one is no text, or an empty one.
    """
    found = [texts] if isinstance(texts, str) else [*texts]
    for at, text in enumerate(found, 1):
        if not isinstance(text, str) or not text.strip():
            but = repr(text) if isinstance(text, str) else _describe(text)
            raise TableError(
                f"Expected text {at} of {len(found)} to be a text, but got {but}. Word it, or leave it out."
            )
    return found


def _is_one(images: object) -> bool:
    """Whether something is a single image, table or DataFrame, and no sequence of them; an array may be either."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4 and images.dtype != object
    return isinstance(images, str | os.PathLike | Image.Image | pd.DataFrame) or not isinstance(images, Iterable)


def _read(one: object, number: int) -> str | Image.Image | pd.DataFrame:
    if isinstance(one, np.ndarray) and one.dtype == np.uint8 and one.ndim == 3 and one.shape[2] == 3:
        return Image.fromarray(one)
    if isinstance(one, str | os.PathLike):
        return os.fspath(one)
    if isinstance(one, Image.Image | pd.DataFrame):
        return one
    raise TableError(
        f"Expected image {number} to be a path, an image that Pillow has opened, or a uint8 array of shape (H, W, 3), "
        f"but got {_describe(one)}. Image.fromarray makes an image of other arrays."
    )


def _names_several(path: str) -> bool:
    return is_table(Path(path)) or Path(path).is_dir()


def _describe(one: object) -> str:
    if isinstance(one, np.ndarray):
        return f"an array of {one.dtype} of shape {one.shape}"
    return f"a {type(one).__name__}"
