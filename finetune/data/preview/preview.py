"""Shows examples of training data as a picture or as a self-contained page."""

import base64
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from finetune.core.errors import RecipeError
from finetune.core.files import write_bytes

if TYPE_CHECKING:
    from finetune.data.loading.dataset import ImageTextDataset
    from finetune.data.preview.examples import Example

EXTENSIONS = (".html", ".png")
LONGEST_TEXT = 300  # letters shown of the cut-off end of a text
TILE, TEXT, GAP, LINE = 150, 290, 14, 19  # pixels: side of a picture, column of texts, space between, line of text
WIDTH = GAP + TEXT + 4 * (GAP + TILE) + GAP
BLACK, GREY, RED, EDGE = "#1a1a1a", "#666666", "#b3261e", "#c8c8c8"
FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")  # Pillow's own has only English letters

STYLE = """
:root { color-scheme: light dark; --grey: #5f5f5f; --edge: #c8c8c8; --red: #b3261e }
@media (prefers-color-scheme: dark) { :root { --grey: #a8a8a8; --edge: #555; --red: #ff8a80 } }
body { font: 1rem/1.4 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.3rem; margin: 0 }
h2 { font-size: 1rem; margin: 0 }
p { margin: .2rem 0; overflow-wrap: anywhere }
.place, .about, figcaption { color: var(--grey); font-size: .85rem }
article { display: grid; grid-template-columns: 18rem 1fr; gap: 1rem; border-top: 1px solid var(--edge);
  margin-top: 1rem; padding-top: 1rem }
.pictures { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; align-items: start }
figure { margin: 0 }
img { display: block; max-width: 100%; box-sizing: border-box; border: 1px solid var(--edge) }
.cut, .reason { color: var(--red) }
@media (max-width: 45rem) {
  article { grid-template-columns: 1fr; gap: .5rem }
  .pictures { grid-template-columns: repeat(2, 1fr) }
}
"""

_Line = tuple[str, ImageFont.FreeTypeFont, str]  # text, font, colour


class Preview(NamedTuple):
    """Examples under a heading.

    Attributes:
        title: The table.
        about: What the preview shows of it.
        examples: The rows.
    """

    title: str
    about: str
    examples: list["Example"]


def check_preview_name(path: Path) -> None:
    """Checks that the name of a preview's file says what to write.

    Raises:
        RecipeError: If the file ends in neither `.png` nor `.html`.
    """
    if path.suffix.lower() not in EXTENSIONS:
        raise RecipeError(
            f"Expected --preview to be a file that ends in .png or .html, but got {str(path)!r}. Name it preview.html."
        )


def write_preview(path: Path, dataset: "ImageTextDataset") -> str:
    """Writes a preview of training rows.

    Args:
        path: A file that ends in `.png` or `.html`.
        dataset: The training rows, with the augmentation.

    Returns:
        A line that says what was written where.
    """
    from finetune.data.preview.examples import EPOCHS, collect_examples  # imports torch; checking a name needs none

    check_preview_name(path)
    examples = collect_examples(dataset)
    how = "without augmentation" if dataset.augmentation is None else "augmented"
    about = (
        f"{len(examples)} of {len(dataset):,} training rows: each original beside what the model gets in the first "
        f"{EPOCHS} epochs ({how}, resized and cropped), and the text as the model reads it."
    )
    preview = Preview(dataset.rows.source, about, examples)
    if path.suffix.lower() == ".html":
        write_bytes(path, build_page(preview).encode())
    else:
        write_bytes(path, _as_png(draw_sheet(preview)))
    return f"preview: {len(examples)} of {len(dataset):,} training rows in {path}"


# ---- the picture


def draw_sheet(preview: Preview) -> Image.Image:
    """Draws a band for each example, with its texts on the left and its pictures beside them."""
    heading = [(line, _font(15), BLACK) for line in _wrap(preview.title, _font(15), WIDTH - 2 * GAP)]
    heading += [(line, _font(13), GREY) for line in _wrap(preview.about, _font(13), WIDTH - 2 * GAP)]
    bands = [_draw_band(heading, []), *(_draw_band(list(_lines(it)), _pictures(it)) for it in preview.examples)]
    sheet = Image.new("RGB", (WIDTH, GAP + sum(band.height for band in bands)), "white")
    top = GAP
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    return sheet


def _draw_band(lines: Sequence[_Line], pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    height = max(LINE * len(lines), LINE + TILE if pictures else 0) + GAP
    band = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(band)
    for at, (text, font, colour) in enumerate(lines):
        draw.text((GAP, at * LINE), text, fill=colour, font=font)
    for at, (name, picture) in enumerate(pictures):
        left, shown = 2 * GAP + TEXT + at * (GAP + TILE), _fit(picture, TILE)
        draw.text((left, 0), name, fill=GREY, font=_font(13))
        draw.rectangle((left - 1, LINE - 1, left + shown.width, LINE + shown.height), outline=EDGE)
        band.paste(shown, (left, LINE))
    return band


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # a Pillow built without FreeType has only a bitmap font
    return font


def _lines(example: "Example") -> Iterator[_Line]:
    parts = [(example.class_name, _font(15), BLACK), (example.place, _font(13), GREY)]
    for name, text, cut_off in _texts(example):
        parts += [(f"{name}{text}", _font(13), BLACK), (cut_off, _font(13), RED)]
    parts.append((example.reason, _font(13), RED))
    for text, font, colour in parts:
        yield from ((line, font, colour) for line in _wrap(text, font, TEXT))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    rest = " ".join(text.split())
    while rest:
        lengths = [font.getlength(rest[:length]) for length in range(len(rest) + 1)]
        fits = max(1, bisect_right(lengths, width) - 1)
        space = rest.rfind(" ", 0, fits + 1)
        end = space if fits < len(rest) and space > 0 else fits
        yield rest[:end]
        rest = rest[end:].lstrip()


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Shrinks a large picture, and enlarges each pixel of a small one to a square."""
    factor = side // max(picture.size)
    if factor:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)


# ---- the page


def build_page(preview: Preview) -> str:
    """Writes HTML without scripts that holds every picture and fetches nothing."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;"""
            """ style-src 'unsafe-inline'">""",
            f"<title>{escape(preview.title)}</title>\n<style>{STYLE}</style>",
            f'<h1>{escape(preview.title)}</h1>\n<p class="about">{escape(preview.about)}</p>',
            *map(_article, preview.examples),
            "</html>\n",
        ]
    )


def _article(example: "Example") -> str:
    texts = [
        f"<p>{escape(name + text)}{f' <span class=cut>{escape(cut_off)}</span>' if cut_off else ''}</p>"
        for name, text, cut_off in _texts(example)
    ]
    heading = f"<h2>{escape(example.class_name)}</h2>" if example.class_name else ""
    reason = f'<p class="reason">{escape(example.reason)}</p>' if example.reason else ""
    figures = "".join(_figure(name, picture) for name, picture in _pictures(example))
    place = f'<p class="place">{escape(example.place)}</p>'
    return (
        f"<article>\n<div>{heading}{place}{''.join(texts)}{reason}</div>\n"
        f'<div class="pictures">{figures}</div>\n</article>'
    )


def _figure(name: str, picture: Image.Image) -> str:
    content = base64.b64encode(_as_png(_fit(picture, 2 * TILE))).decode()
    return f'<figure><img src="data:image/png;base64,{content}" alt="{name}"><figcaption>{name}</figcaption></figure>'


# ---- both


def _pictures(example: "Example") -> list[tuple[str, Image.Image]]:
    if example.original is None:
        return []
    seen = [(f"epoch {epoch}", view.picture) for epoch, view in enumerate(example.views)]
    return [("original", example.original), *seen]


def _texts(example: "Example") -> list[tuple[str, str, str]]:
    """Lists epoch, text and cut-off end, once for all epochs if they are alike."""
    found = [(view.place, view.text, _shorten(view.cut_off)) for view in example.views]
    if len(set(found)) <= 1:
        return [("", text, cut_off) for _, text, cut_off in found[:1]]
    return [
        (f"epoch {epoch}{'' if place == example.place else f', {place}'}: ", text, cut_off)
        for epoch, (place, text, cut_off) in enumerate(found)
    ]


def _shorten(cut_off: str) -> str:
    text = cut_off if len(cut_off) <= LONGEST_TEXT else f"{cut_off[:LONGEST_TEXT]}…"
    return f"[cut off: {text}]" if text else ""


def _as_png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()
