"""Prepares Wesnoth's units: hundreds of similar drawn figures, each in several poses and with a long description.

    python datasets/units.py --output data/units

Source: the Debian package `wesnoth-1.16-data` (The Battle for Wesnoth, David White and contributors): the folder
`data/core` of the installed copy, `--core DIR` or `--deb FILE`; without any of them, `apt-get download` gets the
package (146 MB), without root and without installing it. Licence: GPL-2.0-or-later for all of it.

Writes an RGB PNG of 128 x 128 pixels for each picture: the figure, cut out of the game's picture and enlarged, in
the middle of a white square. Its team colour is red: the palette that the package draws it in is replaced as the
game does it for the first player. The table `units.csv` has the columns

- image: path relative to the table;
- caption: the name and the first sentences of the description, so many that there are at most 50 words: *Dwarvish
  Fighter. The Dwarvish fighters wield ...*;
- description: all of it, 70 words in the middle, 340 in the longest;
- label: the name of the unit, such as *Elvish Captain*;
- race: elf, orc, undead, ...;
- pose: standing, moving, defending or attacking;
- split: standing, moving and defending units are train, attacking ones test; those of one unit in five are val;
- split_by_unit: 70/10/20 % by the hash of the family, for retrieving descriptions of units that were never trained on;
- family: units that become each other in the course of the game, and so resemble each other.

The frames of an animation differ by a few pixels, so `split` holds out a whole kind of animation, and no picture
occurs twice. It keeps at most four standing, two moving, two defending and four attacking pictures of a unit, evenly
spaced among its frames. Units without an attacking picture are for training only, so the test asks for fewer
names. Pictures of dying units, of those of the other sex and of mere effects are left out.
"""

import argparse
import io
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from finetune.core.csv_text import format_frame
from finetune.core.errors import FileError
from finetune.core.files import require_own, write_folder, write_text
from finetune.core.packages import DebianPackage, naming
from finetune.core.shipped import script
from finetune.data.table.even_splits import draw_number
from finetune.data.table.splits import SPLITS

PACKAGE = DebianPackage(
    "wesnoth-1.16-data",
    "wesnoth-1.16-data_1.16.9-1_all.deb",
    Path("/usr/share/games/wesnoth/1.16/data/core"),
    "--core",
)
SIDE = 128  # pixels
MARGIN = 4  # pixels of white around the figure
COLUMNS = ["image", "caption", "description", "label", "race", "pose", "split", "split_by_unit", "family"]
WRITTEN = {"images", "units.csv"}

MOST_WORDS = 50
MOST_PICTURES = {"standing": 4, "moving": 2, "defending": 2, "attacking": 4}
MOVING = {"run", "fly", "flying", "moving", "move", "takeoff", "soar", "launch", "swim"}
ATTACKING = {"attack", "melee", "ranged", "magic", "throw", "charge", "slash", "pierce", "impact", "fire", "lightning"}
ATTACKING |= {
    "bow",
    "crossbow",
    "sword",
    "blade",
    "axe",
    "hammer",
    "spear",
    "lance",
    "javelin",
    "jarid",
    "mace",
    "staff",
}
ATTACKING |= {"bite", "claws", "pincer", "kick", "tail", "stinger", "sting", "fist", "hand", "ftouch", "horn", "shield"}
LEFT_OUT = {"die", "death", "dying", "decay", "kill", "flame", "halo", "overlay", "shadow"}

RED, LIGHTEST, DARKEST = (np.array(colour) for colour in ((255, 0, 0), (255, 255, 255), (0, 0, 0)))
"""The game's colours for the first player: middle, lightest and darkest (`team-colors.cfg`)."""
PALETTE = """F49AC1 3F0016 55002A 690039 7B0045 8C0051 9E005D B10069 C30074 D6007F EC008C EE3D96 EF5BA1 F172AC F287B6
F6ADCD F8C1D9 FAD5E5 FDE9F1"""
"""The colours that the pictures have where the team's colour goes, the middle one first (`team-colors.cfg`)."""

Pixels = npt.NDArray[np.uint8]


def find_team_colours() -> dict[tuple[int, ...], tuple[int, ...]]:
    """Returns the team's colour for each colour of the palette, mixed by brightness as the game does it."""
    palette = [np.array(list(bytes.fromhex(code))) for code in PALETTE.split()]
    middle = palette[0].mean()
    colours = {}
    for colour in palette:
        brightness = colour.mean()
        if brightness <= middle:
            mixed = RED * (brightness / middle) + DARKEST * (1 - brightness / middle)
        else:
            share = (255 - brightness) / (255 - middle)
            mixed = RED * share + LIGHTEST * (1 - share)
        colours[tuple(colour.tolist())] = tuple(mixed.astype(int).tolist())
    return colours


TEAM_COLOURS = find_team_colours()


def read_units(text: str) -> Iterator[dict[str, str]]:
    r"""Yields the attributes of each unit in a file of Wesnoth's markup language, those of tags within it left out.

    Example:
        >>> list(read_units('[unit_type]\nid=A\nname= _ "An A"\n[attack]\nname=bow\n[/attack]\n[/unit_type]'))
        [{'id': 'A', 'name': 'An A'}]
    """
    for name, value in re.findall(r"^#define (\w+)\n(.*?)#enddef", text, re.M | re.S):
        text = text.replace(f"{{{name}}}", value.strip())
    text = re.sub(r"^#define .*?#enddef", "", text, flags=re.M | re.S)
    tags: list[str] = []
    unit: dict[str, str] = {}
    for tag, name, value in re.findall(r'\[(/?\+?\w+)\]|^[ \t]*(\w+)[ \t]*=[ \t_]*("(?:[^"]|"")*"|[^\n]*)', text, re.M):
        if tag.startswith("/"):
            tags.pop()
            if not tags and tag == "/unit_type":
                yield unit
        elif tag:
            tags.append(tag)
            unit = {} if tags == ["unit_type"] else unit
        elif tags == ["unit_type"]:
            unit[name] = value.strip('"').replace('""', '"')


def find_pose(words: set[str]) -> str:
    """Returns the pose that the words of a picture's name after the unit's say; an empty text: leave it out."""
    if words & LEFT_OUT:
        return ""
    if "defend" in words:
        return "defending"
    if words & ATTACKING:
        return "attacking"
    return "moving" if words & MOVING else "standing"


def find_stem(image: str) -> str:
    """Returns what the names of a unit's pictures begin with, given its own picture.

    Example:
        >>> find_stem("units/orcs/grunt.png"), find_stem("units/undead/ghost-s-2.png")
        ('images/units/orcs/grunt', 'images/units/undead/ghost')
    """
    return "images/" + re.sub(r"(-[ns]?[ew]?)?-?\d+$", "", image.removesuffix(".png"))


def find_pictures(images: list[str], stems: list[str]) -> dict[str, dict[str, list[str]]]:
    """Sorts the pictures to units and poses.

    Args:
        images: The pictures' paths without ending, sorted.
        stems: What the paths of the units' pictures begin with.
    """
    found: dict[str, dict[str, list[str]]] = {stem: defaultdict(list) for stem in stems}
    for image in images:
        ends = [place for place in range(len(image) + 1) if re.match(r"[-\d]|$", image[place:])]
        stem = next((image[:end] for end in reversed(ends) if image[:end] in found), None)
        if stem is not None:
            pose = find_pose(set(re.findall("[a-z]+", image[len(stem) :])))
            found[stem][pose].append(image)
    return found


def shorten(description: str) -> str:
    """Returns the first sentences of at most `MOST_WORDS` words, or the first sentence if it is longer."""
    first, *others = re.split(r"(?<=[.!?])\s+", " ".join(description.split()))
    for sentence in others:
        if len(f"{first} {sentence}".split()) > MOST_WORDS:
            break
        first = f"{first} {sentence}"
    return first


def find_families(units: list[dict[str, str]]) -> dict[str, str]:
    """Finds the family of each unit by its id: units that advance to each other, directly or through others."""
    leader = {unit["id"]: unit["id"] for unit in units}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for unit in units:
        for other in unit.get("advances_to", "").split(","):
            if other.strip() in leader:
                leader[find(other.strip())] = find(unit["id"])
    return {name: find(name) for name in leader}


def space_evenly(images: list[str], most: int) -> list[str]:
    """Returns at most `most` of the pictures, the first one and others evenly spaced."""
    count = min(most, len(images))
    return [images[place * len(images) // count] for place in range(count)]


def paint(data: bytes) -> Image.Image | None:
    """Puts the figure of a picture, enlarged and in the team's colour, on a white square; None for an empty picture."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as file:
        pixels: Pixels = np.array(file.convert("RGBA"))
    original = pixels[..., :3].copy()
    for colour, other in TEAM_COLOURS.items():
        pixels[(original == colour).all(axis=-1), :3] = other
    picture = Image.fromarray(pixels)
    box = picture.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    if box is None:
        return None
    figure = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB").crop(box)
    factor = (SIDE - 2 * MARGIN) / max(figure.size)
    width, height = (max(1, round(side * factor)) for side in figure.size)
    figure = figure.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(figure, ((SIDE - width) // 2, (SIDE - height) // 2))
    return square


def build_rows(files: dict[str, bytes]) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yields a row and its picture's PNG for each picture that is kept, unit after unit."""
    units: list[dict[str, str]] = []
    for name, content in sorted(files.items()):
        if name.endswith(".cfg"):
            with naming(name):
                units += read_units(content.decode("utf-8"))
    units = [unit for unit in units if unit.get("image", "").startswith("units/")]
    units = [unit for unit in units if all(unit.get(key) for key in ("id", "name", "race", "description"))]
    families = find_families(units)
    images = sorted(PurePosixPath(name).with_suffix("") for name in files if name.endswith(".png"))
    stems = [find_stem(unit["image"]) for unit in units]
    pictures = find_pictures([str(image) for image in images], stems)
    written: set[bytes] = set()
    for unit, stem in zip(units, stems, strict=True):
        name = unit["name"].rpartition("^")[2]  # the game's hint for translators stands before it
        family = draw_number(families[unit["id"]])
        for pose, most in MOST_PICTURES.items():
            for image in space_evenly(pictures[stem][pose], most) if pictures[stem][pose] else []:
                with naming(f"{image}.png"):
                    square = paint(files[f"{image}.png"])
                if square is None or square.tobytes() in written:
                    continue
                written.add(square.tobytes())
                buffer = io.BytesIO()
                square.save(buffer, "PNG")
                held_out = "val" if draw_number(f"pose {unit['id']}") < 0.2 else "test"
                row = {
                    "image": f"images/{image.removeprefix('images/units/')}.png",
                    "caption": f"{name}. {shorten(unit['description'])}",
                    "description": " ".join(unit["description"].split()),
                    "label": name,
                    "race": unit["race"],
                    "pose": pose,
                    "split": held_out if pose == "attacking" else "train",
                    "split_by_unit": "test" if family < 0.2 else "val" if family < 0.3 else "train",
                    "family": families[unit["id"]],
                }
                yield row, buffer.getvalue()


def is_wanted(path: PurePosixPath) -> bool:
    """Whether a file of the package tells of units or shows them."""
    return (path.parts[:1] == ("units",) and path.suffix == ".cfg") or (
        path.parts[:2] == ("images", "units") and path.suffix == ".png"
    )


def prepare(output: Path, files: dict[str, bytes]) -> str:
    """Writes pictures and table to `output`, replaces those of an earlier run, and describes them."""
    rows = list(build_rows(files))
    if not rows:
        raise FileError(
            "Expected units with a picture and a description, but got none. "
            "Let --core name the folder that holds `units` and `images`."
        )
    table = pd.DataFrame([row for row, _ in rows], columns=COLUMNS)
    with write_folder(output, overwrite=True) as folder:
        for row, picture in rows:
            (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / row["image"]).write_bytes(picture)
        write_text(folder / "units.csv", format_frame(table))
    units, races = table["label"].nunique(), table["race"].nunique()
    lines = [f"{output / 'units.csv'}: {len(table)} rows, {units} units of {races} races"]
    for column in ("split", "split_by_unit"):
        counts = table[column].value_counts()
        shown = table.groupby(column)["label"].nunique()
        shares = [f"{counts.get(split, 0)} {split} of {shown.get(split, 0)} units" for split in SPLITS]
        lines.append(f"  {column}: {', '.join(shares)}")
    return "\n".join(lines)


@script
def main(argv: list[str] | None = None) -> str:
    """Runs the script and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/units"), help="folder to write (%(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--core", type=Path, metavar="DIR", help="the package's data/core, if it is already here")
    source.add_argument("--deb", type=Path, metavar="FILE", help="the Debian package, if it is already here")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    require_own(output, lambda names: names == WRITTEN)
    return prepare(output, PACKAGE.find(arguments.core, arguments.deb, is_wanted))


if __name__ == "__main__":
    sys.exit(main())
