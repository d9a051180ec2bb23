"""Draws KiCad's footprints: technical drawings with exact descriptions, for retrieval and for their libraries.

    python datasets/footprints.py --output data/footprints

Source: the Debian package `kicad-footprints` (KiCad community): the folder of the installed copy, `--footprints DIR`
or `--deb FILE`; without any of them, `apt-get download` gets the package (23 MB), without root and without installing
it. Licence: CC BY-SA 4.0, with an exception for electronic designs that use the footprints.

A footprint is the pattern of copper that a part of an electronic circuit is soldered to. Draws an RGB PNG of 128 x 128
pixels for each: on white, copper in red, with holes in yellow, on the lower side in blue; the print on the board in
black, the outline of the part in grey. Drawings fill the picture, so sizes can only be told from each other. The table
`footprints.csv` has the columns

- image: path relative to the table;
- caption: the source's description, without addresses and without what says which program made it: *JST XH series
  connector, B2B-XH-A, top entry*;
- label: the library, such as *Package SO*; libraries of fewer than ten footprints are left out;
- split: 70/10/20 % by the hash of the family, for retrieving descriptions;
- split_by_picture: 70/10/20 % of each library, for classifying `label`; each library occurs in train;
- family: the names of one library that differ only in their numbers.

At most 24 footprints of a library are drawn, chosen by the hash of their names; `--most` draws more. No picture
occurs twice.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from finetune.core.csv_text import format_frame
from finetune.core.errors import FileError
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.packages import DebianPackage, naming
from finetune.core.shipped import script
from finetune.data.table.even_splits import draw_evenly, draw_number
from finetune.data.table.splits import SPLITS

PACKAGE = DebianPackage(
    "kicad-footprints",
    "kicad-footprints_6.0.11-1_all.deb",
    Path("/usr/share/kicad/footprints"),
    "--footprints",
)
SIDE = 128  # pixels
MARGIN = 6  # pixels of white around the drawing
FINER = 4  # a drawing is made this much larger, then reduced
THINNEST = 3  # pixels of a line in the larger drawing
FEWEST = 10  # footprints of a library
COLUMNS = ["image", "caption", "label", "split", "split_by_picture", "family"]
WRITTEN = {"images", "footprints.csv"}

RED, YELLOW, BLUE = (200, 52, 52), (214, 164, 30), (77, 127, 196)
COLOURS = {"F.Fab": (150, 150, 150), "F.SilkS": (0, 0, 0)}
"""The layers whose lines are drawn, the lowest first."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A line or a filled shape, in millimetres, y downwards.

    Args:
        points: Its corners, or the points that the line joins.
        colour: Red, green, blue.
        width: Of the line; None fills the shape.
    """

    points: list[Point]
    colour: tuple[int, int, int]
    width: float | None = None


def parse(text: str) -> list[Any]:
    """Parses an S-expression into nested lists of texts.

    Example:
        >>> parse('(pad "1" (at 0 -2.5))')
        ['pad', '1', ['at', '0', '-2.5']]
    """
    stack: list[list[Any]] = [[]]
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+', text):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token[1:-1].replace('\\"', '"') if token.startswith('"') else token)
    first: list[Any] = stack[0][0]
    return first


def find(node: list[Any], name: str) -> list[str]:
    """Returns what a node says under a name, an empty list if nothing."""
    return next((child[1:] for child in node if isinstance(child, list) and child[:1] == [name]), [])


def read_point(words: list[str]) -> Point:
    """Reads the first two numbers."""
    return float(words[0]), float(words[1])


def turn(point: Point, centre: Point, degrees: float) -> Point:
    """Turns a point counter-clockwise and moves it by `centre`."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = point
    return centre[0] + x * cosine + y * sine, centre[1] - x * sine + y * cosine


def round_corners(width: float, height: float, radius: float) -> list[Point]:
    """Returns the outline of a rectangle around the origin, whose corners are arcs."""
    points = []
    for corner, (right, down) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        x, y = right * (width / 2 - radius), down * (height / 2 - radius)
        for step in range(9 if radius else 1):
            angle = math.pi / 2 * (corner + step / 8)
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def bend(start: Point, middle: Point, end: Point) -> list[Point]:
    """Returns points of the arc from start to end through the middle; the three points if they lie in a line.

    Example:
        >>> [(round(x, 3), round(y, 3)) for x, y in bend((1, 0), (0, 1), (-1, 0))[::8]]
        [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]
    """
    a, b, c = (complex(*point) for point in (start, middle, end))
    cross = ((b - a).conjugate() * (c - a)).imag
    if abs(cross) < 1e-9:
        return [start, middle, end]
    offset = ((c - a) * abs(b - a) ** 2 - (b - a) * abs(c - a) ** 2) / (2j * cross)
    centre = a + offset
    first, through, last = (math.atan2((p - centre).imag, (p - centre).real) for p in (a, b, c))
    sweep = (last - first) % (2 * math.pi)
    if (through - first) % (2 * math.pi) > sweep:
        sweep -= 2 * math.pi
    angles = [first + sweep * step / 16 for step in range(17)]
    radius = abs(a - centre)
    return [(centre.real + radius * math.cos(angle), centre.imag + radius * math.sin(angle)) for angle in angles]


def read_pad(node: list[Any]) -> Iterator[Shape]:
    """Yields the copper of a pad, and its hole."""
    layers = find(node, "layers")
    x, y, *degrees = (float(word) for word in find(node, "at"))
    angle = degrees[0] if degrees else 0.0
    width, height = read_point(find(node, "size"))
    drill = [word for word in find(node, "drill") if isinstance(word, str) and word != "oval"]
    radius = {
        "rect": 0.0,
        "trapezoid": 0.0,
        "custom": 0.0,
        "roundrect": min(width, height) * float((find(node, "roundrect_rratio") or ["0.25"])[0]),
    }.get(node[3], min(width, height) / 2)
    colour = YELLOW if drill else RED if {"F.Cu", "*.Cu", "F&B.Cu"} & set(layers) else BLUE
    if node[2] != "np_thru_hole" and any(layer.endswith(".Cu") for layer in layers):
        outlines = [round_corners(width, height, radius)]
        outlines += [
            [read_point(point[1:]) for point in find(shape, "pts")]
            for shape in find(node, "primitives")
            if shape[0] == "gr_poly"
        ]
        for outline in outlines:
            yield Shape([turn(point, (x, y), angle) for point in outline], colour)
    if drill:
        across, along = (float(drill[0]), float(drill[-1]))
        hole = [turn(point, (x, y), angle) for point in round_corners(across, along, min(across, along) / 2)]
        yield Shape(hole, (255, 255, 255))
        if node[2] == "np_thru_hole":
            yield Shape([*hole, hole[0]], YELLOW, 0.1)


def read_line(node: list[Any], layer: str) -> Iterator[Shape]:
    """Yields a line, circle, arc, rectangle or polygon of a layer; nothing for anything else."""
    if find(node, "layer") != [layer]:
        return
    width = float((find(node, "width") or ["0.1"])[0])
    kind = node[0]
    if kind == "fp_poly":
        points = [read_point(point[1:]) for point in find(node, "pts")]
        points.append(points[0])
    elif kind == "fp_circle":
        centre, end = read_point(find(node, "center")), read_point(find(node, "end"))
        radius = math.dist(centre, end)
        points = [turn(point, centre, 0) for point in round_corners(2 * radius, 2 * radius, radius)]
        points.append(points[0])
    elif kind == "fp_arc" and find(node, "mid"):
        points = bend(*(read_point(find(node, name)) for name in ("start", "mid", "end")))
    elif kind == "fp_line":
        points = [read_point(find(node, "start")), read_point(find(node, "end"))]
    elif kind == "fp_rect":
        (left, top), (right, bottom) = read_point(find(node, "start")), read_point(find(node, "end"))
        points = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    else:
        return
    yield Shape(points, COLOURS[layer], None if find(node, "fill") == ["solid"] else width)


def read_shapes(footprint: list[Any]) -> list[Shape]:
    """Returns what is drawn of a footprint, the lowest first."""
    nodes = [node for node in footprint if isinstance(node, list)]
    shapes = [shape for node in nodes for shape in read_line(node, "F.Fab")]
    pads = [shape for node in nodes if node[0] == "pad" for shape in read_pad(node)]
    shapes += sorted(pads, key=lambda shape: shape.colour != BLUE)  # what is on the lower side lies below
    shapes += [shape for node in nodes for shape in read_line(node, "F.SilkS")]
    return shapes


def paint(shapes: list[Shape]) -> Image.Image:
    """Draws shapes as large as they fit on a white square."""
    points = np.array([point for shape in shapes for point in shape.points])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (SIDE - 2 * MARGIN) * FINER / max(float((high - low).max()), 1e-3)
    offset = SIDE * FINER / 2 - scale * (low + high) / 2
    large = Image.new("RGB", (SIDE * FINER, SIDE * FINER), "white")
    canvas = ImageDraw.Draw(large)
    for shape in shapes:
        placed = [(x * scale + offset[0], y * scale + offset[1]) for x, y in shape.points]
        if shape.width is None:
            canvas.polygon(placed, fill=shape.colour)
        else:
            canvas.line(placed, fill=shape.colour, width=max(THINNEST, round(shape.width * scale)), joint="curve")
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


def clean_caption(description: str) -> str:
    """Returns a description without addresses, and without what says which program made it.

    Example:
        >>> clean_caption("SOIC, 8 Pin (see https://x.org/a.pdf), generated with kicad-footprint-generator so.py")
        'SOIC, 8 Pin'
    """
    text = re.sub(r"[,;]?\s*\(?(script[- ]?)?generated\b.*", "", description, flags=re.I)
    text = re.sub(r"(\bsee\s+(e\.g\.\s+)?)?(https?://|www\.)\S+", "", text)
    text = re.sub(r"\b(see|e\.g\.|source|from|datasheet|and)[\s:,]*(?=[\s)]*$)", "", text, flags=re.I)
    if text.count("(") != text.count(")"):
        text = text.replace("(", "").replace(")", "")
    text = re.sub(r"\((\s|see|e\.g\.|[,;:/])*\)|\[\s*\]", "", text)
    text = re.sub(r"\s+([,;.)])", r"\1", " ".join(text.split()))
    return re.sub(r"([,;])(\s*[,;])+", r"\1", text).strip(" ,;:-/")


def build_rows(files: dict[str, bytes], most: int) -> Iterator[tuple[dict[str, str], Image.Image]]:
    """Yields a row and its picture for each footprint that is drawn, library after library."""
    libraries: dict[str, list[str]] = {}
    for name in sorted(files):
        libraries.setdefault(PurePosixPath(name).parts[0].removesuffix(".pretty"), []).append(name)
    drawn: set[bytes] = set()
    for library, names in libraries.items():
        rows = []
        for name in sorted(names, key=draw_number):
            if len(rows) == most:
                break
            with naming(name):
                footprint = parse(files[name].decode("utf-8"))
                shapes = read_shapes(footprint)
                caption = clean_caption(" ".join(find(footprint, "descr")))
                if len(caption.split()) < 2 or not shapes:
                    continue
                picture = paint(shapes)
            if picture.tobytes() in drawn:
                continue
            drawn.add(picture.tobytes())
            stem = PurePosixPath(name).stem
            row = {
                "image": f"images/{library}/{stem}.png",
                "caption": caption,
                "label": re.sub(r"[_-]", " ", library),
                "family": f"{library}/{re.sub(r'[0-9]+([.][0-9]+)?', '0', stem)}",
            }
            rows.append((row, picture))
        if len(rows) >= FEWEST:
            yield from sorted(rows, key=lambda pair: pair[0]["image"])


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a file of the package is a footprint."""
    return path.suffix == ".kicad_mod"


def prepare(output: Path, files: dict[str, bytes], most: int) -> str:
    """Writes pictures and table to `output`, replaces those of an earlier run, and describes them."""
    rows = list(build_rows(files, most))
    if not rows:
        raise FileError(
            f"Expected libraries of at least {FEWEST} footprints, but got none. "
            "Let --footprints name the folder that holds `Package_SO.pretty`."
        )
    table = pd.DataFrame([row for row, _ in rows])
    drawn = table["family"].map(draw_number)
    table["split"] = pd.Series("train", table.index).mask(drawn < 0.3, "val").mask(drawn < 0.2, "test")
    labels = table["label"].astype("category").cat.codes.to_numpy(dtype=np.int64)
    table["split_by_picture"] = [SPLITS[code] for code in draw_evenly(table["image"].tolist(), labels, 0.1, 0.2)]
    with write_folder(output, overwrite=True) as folder:
        for row, picture in rows:
            (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            picture.save(folder / row["image"])
        write_text(folder / "footprints.csv", format_frame(table[COLUMNS]))
    sizes = f"{len(table)} rows, {table['label'].nunique()} libraries, {table['family'].nunique()} families"
    lines = [f"{output / 'footprints.csv'}: {sizes}"]
    for column in ("split", "split_by_picture"):
        counts = table[column].value_counts()
        lines.append(f"  {column}: {', '.join(f'{counts.get(split, 0)} {split}' for split in SPLITS)}")
    return "\n".join(lines)


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/footprints"), help="folder to write (%(default)s)")
    parser.add_argument("--most", type=int, default=24, metavar="N", help="footprints of a library (%(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--footprints", type=Path, metavar="DIR", help="unpacked footprints, if they are already here")
    source.add_argument("--deb", type=Path, metavar="FILE", help="the Debian package, if it is already here")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    if arguments.most < FEWEST:
        raise FileError(
            f"Expected --most to be at least {FEWEST}, but got {arguments.most}. Smaller libraries are left out."
        )
    require_own(output, lambda names: names == WRITTEN)
    return prepare(output, PACKAGE.find(arguments.footprints, arguments.deb, is_wanted), arguments.most)


if __name__ == "__main__":
    sys.exit(main())
