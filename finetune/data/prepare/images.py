"""Opens image files, and resizes images as a checkpoint's processor does."""

import os
import platform
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import PIL
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from finetune.core.errors import CheckpointError, TableError
from finetune.data.prepare.members import Member, place_of, size_of
from finetune.data.remote.transfer import RemoteError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # out of 43 that Pillow would open
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MOST_BYTES = 1 << 30  # of an image's file, which `MOST_PIXELS` of 16 bits and four channels do not fill
MOST_PIXELS = 89_478_485  # 256 MiB as RGB; a small file with more is probably a decompression bomb
# Metadata of a PNG may be as long as Pillow lets it be in all (64 MiB), which is less than `MOST_PIXELS` take. Pillow's
# own limit of 1 MiB a chunk refuses pictures with long workflows or edit histories, whose pixels are sound.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF

Pixels = npt.NDArray[np.uint8]


def open_image(path: str | Path, content: bytes = b"") -> Image.Image:
    """Opens an image file as RGB, upright, as its author saw it.

    Applies the EXIF orientation, puts transparent pixels on white, scales 12- and 16-bit grey to 8 bits, and takes the
    first frame of an animation. Decodes the whole file, so that a truncated one is found here.

    Args:
        path: A file in one of `FORMATS`, whatever its extension, or the address of one in a tar (see `Member`).
        content: What the file holds, where it was read before.

    Raises:
        TableError: If the file is missing, damaged, in another format, or has more than `MOST_PIXELS` pixels.
        RemoteError: If its shard cannot be fetched.
    """
    member = Member.parse(str(path))
    if member is None and not os.path.isfile(path):  # noqa: PTH113 (never raises); opening a pipe would wait
        raise TableError(f"Expected {path} to be an image file, but got none. Correct the path or remove its rows.")
    try:
        size = size_of(str(path))
        if not 0 < size <= MOST_BYTES:
            raise ValueError(f"{size:,} bytes, more than {MOST_BYTES:,}" if size else "an empty file")
        if member is not None:
            content = content or member.read()
        with Image.open(BytesIO(content) if content else path, formats=FORMATS) as image:
            return view_image(image)
    except RemoteError:
        raise
    except Exception as error:  # decoders raise all kinds: OSError, SyntaxError, struct.error, ...
        raise TableError(
            f"Expected {place_of(str(path))} to be a whole image ({', '.join(FORMATS)}), but got: {_explain(error)}. "
            "Save it again as a PNG or JPEG of ordinary size, or remove its rows."
        ) from error


def view_image(image: Image.Image) -> Image.Image:
    """Returns an image that Pillow has opened as RGB, upright, as its author saw it; the image stays as it is.

    Args:
        image: What `Image.open` returned, or an image made otherwise, in any mode.

    Raises:
        Exception: If it cannot be decoded, or is too large; decoders raise all kinds.
    """
    check_pixels(image)
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # a copy knows less of how a TIFF counts its grey
        image = ImageOps.exif_transpose(image)
    return convert_to_rgb(image)


def try_image(image: str | Path | Image.Image, content: bytes = b"") -> Image.Image | str:
    """Opens an image as `open_image` does, or returns in a few words why it cannot be read.

    Args:
        image: A path as for `open_image`, or an image as for `view_image`.
        content: As for `open_image`.

    Raises:
        RemoteError: If its shard cannot be fetched, which says nothing of the image.
    """
    if isinstance(image, Image.Image):
        try:
            return view_image(image)
        except Exception as error:  # as in `open_image`
            return _explain(error)
    try:
        return open_image(image, content)
    except TableError as error:
        return "no file" if error.__cause__ is None else _explain(error.__cause__)


def _explain(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is of none of these formats"
    return str(error) or type(error).__name__


def check_pixels(image: Image.Image) -> None:
    """Refuses an image of more than `MOST_PIXELS` pixels before it is decoded.

    Raises:
        Image.DecompressionBombError: If the image is too large.
    """
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB; transparent pixels are put on white, 12- and 16-bit grey is scaled to 8 bits.

    Raises:
        ValueError: If the image has grey levels of unknown range.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(_scale_grey(image)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit grey levels, or signed ones, whose range the file does not state")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_grey(image: Image.Image) -> Pixels:
    """Scales 12- or 16-bit grey to 8 bits. TIFF may count from white, which Pillow ignores; PNG may hide one level."""
    tags = getattr(image, "tag_v2", {})
    highest = 4_095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65_535
    grey = np.asarray(image).astype(np.uint32)
    scaled = ((grey * 255 + highest // 2) // highest).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:
        scaled = 255 - scaled
    if "transparency" in image.info:
        scaled[grey == image.info["transparency"]] = 255
    return scaled


@dataclass(frozen=True, eq=False)
class ImagePreparation:
    """Resizes and crops an image as a checkpoint's processor does, bit for bit; the model scales its pixels.

    Args:
        size: Height and width in pixels to resize to, whatever the aspect ratio; None keeps the size.
        resample: Pillow's resize filter.
        crop: Height and width in pixels of the centre crop, black beyond the borders; None crops nothing.
    """

    size: tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None

    @classmethod
    def from_processor(cls, image_processor: Any) -> Self:
        """Reads the settings of an image processor of transformers.

        Args:
            image_processor: An `EfficientNetImageProcessor` with the Pillow backend.

        Raises:
            CheckpointError: If the processor runs on another backend, or resizes an edge rather than height and width.
        """
        if image_processor.backend != "pil":
            raise CheckpointError(
                f"Expected the image processor to run on Pillow, but got the backend {image_processor.backend!r}, "
                "which computes different pixels. Load it with backend='pil'."
            )
        return cls(
            size=_read_sides(image_processor.size) if image_processor.do_resize else None,
            resample=Image.Resampling(image_processor.resample),
            crop=_read_sides(image_processor.crop_size) if image_processor.do_center_crop else None,
        )

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """The shape of every prepared image, (3, H, W); None where it is that of the image."""
        sides = self.crop or self.size
        return None if sides is None else (3, *sides)

    @cached_property
    def fingerprint(self) -> str:
        """What decides, beside an image's file, on the pixels that are made of it: settings, Pillow, and this code."""
        codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "libtiff", "webp", "zlib")}
        settings = (self.size, int(self.resample), self.crop, PIL.__version__, codecs, platform.machine())
        return blake2b(repr(settings).encode() + Path(__file__).read_bytes(), digest_size=8).hexdigest()

    def __call__(self, image: Image.Image) -> Pixels:
        """Prepares an RGB image.

        Returns:
            Uint8 array of shape (3, H, W).
        """
        if self.size is not None:
            height, width = self.size
            image = image.resize((width, height), self.resample)
        if self.crop is not None:
            height, width = self.crop
            top, left = (image.height - height) // 2, (image.width - width) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _read_sides(size: Any) -> tuple[int, int]:
    sides = {side: pixels for side, pixels in dict(size).items() if pixels is not None}
    if sides.keys() != {"height", "width"}:
        raise CheckpointError(
            f"Expected the image processor's sizes to be a height and a width, but got {sides}. "
            "Set them in its preprocessor_config.json."
        )
    return sides["height"], sides["width"]
