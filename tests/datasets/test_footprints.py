import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.table.table import Table

from .scripts import build_deb, contents, load_script, read

INSIDE = "usr/share/kicad/footprints"


WHITE, RED, YELLOW, BLUE = (255, 255, 255), (200, 52, 52), (214, 164, 30), (77, 127, 196)


footprints = load_script("footprints")


def write_footprint(pads: int, description: str) -> str:
    """A footprint with so many pads in a row, in the format of KiCad 6."""
    lines = [
        '(footprint "NAME" (version 20211014) (generator pcbnew)',
        '  (layer "F.Cu")',
        f'  (descr "{description}")' if description else "",
        '  (fp_text reference "REF**" (at 0 -2.45) (layer "F.SilkS") (effects (font (size 1 1) (thickness 0.15))))',
        '  (fp_line (start 0 -3) (end 10 -3) (layer "F.SilkS") (width 0.12) (tstamp 0a90ae2f))',
        '  (fp_line (start -50 0) (end 50 0) (layer "F.CrtYd") (width 0.05))',
    ]
    lines += [
        f'  (pad "{i}" smd rect (at {i} 0 90) (size 2 0.5) (layers "F.Cu" "F.Paste" "F.Mask"))' for i in range(pads)
    ]
    return "\n".join([*lines, ")"])


def build_folder(folder: Path) -> Path:
    """A folder like the installed one: two large libraries, one small one, and a footprint without a description."""
    for library, kind in (("Package_SO", "SOIC"), ("Connector_JST", "JST header"), ("Sensor", "sensor")):
        (folder / f"{library}.pretty").mkdir(parents=True)
        count = 5 if library == "Sensor" else 30
        for i in range(count):
            pads = i + {"Package_SO": 2, "Connector_JST": 40, "Sensor": 80}[library]
            text = write_footprint(pads, f"{kind}, {i} Pin (see https://example.org/{i}.pdf), generated with script.py")
            shape = chr(97 + i // 2)
            (folder / f"{library}.pretty" / f"{kind.split()[0]}-{shape}-{i}.kicad_mod").write_text(text)
    (folder / "Package_SO.pretty" / "silent.kicad_mod").write_text(write_footprint(77, ""))
    copy = (folder / "Package_SO.pretty" / "SOIC-a-0.kicad_mod").read_text()
    (folder / "Package_SO.pretty" / "copy.kicad_mod").write_text(copy)
    (folder / "README.md").write_text("#")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("source") / "footprints")


@pytest.fixture(scope="module")
def output(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("written") / "footprints"
    assert footprints.main(["--footprints", str(source), "--output", str(folder)]) == 0
    return folder


def test_the_table_has_at_most_so_many_of_each_large_library(source: Path, output: Path, tmp_path: Path) -> None:
    table = read(output / "footprints.csv")
    assert " ".join(table.columns) == "image caption label split split_by_picture family"
    assert table["label"].value_counts().to_dict() == {"Package SO": 24, "Connector JST": 24}
    assert {path.relative_to(output).as_posix() for path in output.rglob("*.png")} == set(table["image"])
    words = ["--footprints", str(source), "--output", str(tmp_path / "more"), "--most", "40"]
    assert footprints.main(words) == 0
    more = read(tmp_path / "more" / "footprints.csv")
    assert more["label"].value_counts().to_dict() == {"Package SO": 30, "Connector JST": 30}
    assert set(table["image"]) - {"images/Package_SO/copy.png", "images/Package_SO/SOIC-a-0.png"} <= set(more["image"])


def test_captions_are_descriptions_without_addresses(output: Path) -> None:
    captions = read(output / "footprints.csv")["caption"]
    assert captions.str.fullmatch(r"(SOIC|JST header), \d+ Pin").all()
    assert captions.is_unique


def test_families_differ_in_numbers_only_and_are_not_split(output: Path) -> None:
    table = read(output / "footprints.csv")
    assert set(table["split"]) == {"train", "val", "test"}
    assert (table.groupby("family")["split"].nunique() == 1).all()
    assert table["family"].str.fullmatch(r"Package_SO/(SOIC-[a-o]-0|copy)|Connector_JST/JST-[a-o]-0").all()
    assert set(table[table["split_by_picture"] == "train"]["label"]) == set(table["label"])


def test_no_picture_occurs_twice(output: Path) -> None:
    pictures = []
    for image in read(output / "footprints.csv")["image"]:
        with Image.open(output / image) as picture:
            assert (picture.mode, picture.size) == ("RGB", (128, 128))
            pictures.append(picture.tobytes())
    assert len(set(pictures)) == len(pictures)


def paint(nodes: str) -> np.ndarray[Any, Any]:
    """Draws a footprint; one pixel is as long as the drawing's longer side divided by 116."""
    return np.asarray(footprints.paint(footprints.read_shapes(footprints.parse(f'(footprint "F" {nodes})'))))


def test_a_turned_pad_stands_upright() -> None:
    pixels = paint('(pad "1" smd rect (at 5 5 90) (size 4 1) (layers "F.Cu"))')
    red = (pixels == RED).all(axis=-1)
    assert red[8:120].sum(axis=0).max() == 112
    assert abs(int(red[64].sum()) - 116 // 4) <= 1
    assert (pixels[64, :48] == 255).all()


def test_a_pad_is_turned_counter_clockwise() -> None:
    pixels = paint('(pad "1" smd rect (at 0 0 45) (size 10 1) (layers "F.Cu"))')
    assert tuple(pixels[24, 104]) == RED  # y points downwards
    assert tuple(pixels[104, 104]) == WHITE


def test_a_hole_is_white_in_a_ring_of_the_right_area() -> None:
    pixels = paint('(pad "1" thru_hole circle (at 3 -2) (size 2 2) (drill 1) (layers "*.Cu" "*.Mask"))')
    assert tuple(pixels[64, 64]) == WHITE
    covered = (255 - pixels[..., 2].astype(float)) / (255 - YELLOW[2])  # of each pixel
    assert covered.sum() == pytest.approx(math.pi * (58**2 - 29**2), rel=0.02)


def test_what_lies_below_is_drawn_below() -> None:
    large = '(pad "2" smd rect (at 0 0) (size 4 4) (layers "B.Cu"))'
    pixels = paint(f'(pad "1" smd rect (at 0 0) (size 2 2) (layers "F.Cu")) {large}')
    assert tuple(pixels[64, 64]) == RED
    assert tuple(pixels[64, 20]) == BLUE


def test_paste_alone_is_not_drawn() -> None:
    paste = '(pad "" smd rect (at 0 0) (size 2 2) (layers "F.Paste"))'
    pixels = paint(f'{paste} (pad "1" smd rect (at 9 0) (size 1 1) (layers "F.Cu"))')
    assert (pixels[64, 8:120] == RED).all()


def test_an_arc_passes_through_its_middle() -> None:
    points = footprints.bend((1.0, 0.0), (math.sqrt(0.5), -math.sqrt(0.5)), (-1.0, 0.0))
    assert all(math.hypot(*point) == pytest.approx(1) for point in points)
    assert all(y <= 1e-9 for _, y in points)
    assert points[0] == pytest.approx((1, 0))
    assert points[-1] == pytest.approx((-1, 0))


def test_table_reads_it(output: Path) -> None:
    rows = Table(str(output / "footprints.csv"), label="label", split="split_by_picture").read()
    assert rows.classes == ("Connector JST", "Package SO")


def test_package_and_folder_give_the_same_bytes(source: Path, output: Path, tmp_path: Path) -> None:
    package = build_deb(source, INSIDE, tmp_path / "kicad.deb")
    for _ in range(2):  # the second replaces the first
        assert footprints.main(["--deb", str(package), "--output", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--footprints", "none"], "Expected --footprints to be a folder, but got none"),
        (["--deb", "none.deb"], "Expected --deb to be a file, but got none.deb"),
        (["--footprints", "."], "Expected libraries of at least 10 footprints, but got none"),
        (["--footprints", ".", "--most", "9"], "Expected --most to be at least 10, but got 9"),
        (["--footprints", ".", "--most", "-1"], "Expected --most to be at least 10, but got -1"),
    ],
)
def test_a_wrong_source_is_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert footprints.main([*arguments, "--output", "written"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b")",
        b"\xff",
        b'(footprint "F" (pad "1" smd rect (at 1) (size 1 1) (layers "F.Cu")))',
        b'(footprint "F" (pad "1" smd rect (at 0 x) (size 1 1) (layers "F.Cu")))',
        b'(footprint "F" (fp_poly (pts) (layer "F.SilkS")))',
        b'(footprint "F" (descr "A line") (fp_line (start 0 0) (end 9 0) (layer "F.SilkS") (width 1e999)))',
    ],
)
def test_a_damaged_footprint_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source" / "A.pretty").mkdir(parents=True)
    (tmp_path / "source" / "A.pretty" / "odd.kicad_mod").write_bytes(content)
    assert footprints.main(["--footprints", str(tmp_path / "source"), "--output", str(tmp_path / "written")]) == 2
    assert (
        "Expected A.pretty/odd.kicad_mod of the package to be whole, but reading it failed: " in capsys.readouterr().err
    )


def test_no_source_at_all_names_the_repairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(footprints, "PACKAGE", replace(footprints.PACKAGE, installed=tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert footprints.main(["--output", str(tmp_path / "written")]) == 2
    message = capsys.readouterr().err
    assert "apt install kicad-footprints" in message
    assert "--deb FILE" in message


@pytest.mark.network
def test_the_real_package(tmp_path: Path) -> None:
    if shutil.which("apt-cache") is None:
        pytest.skip("apt is not installed")
    command = ["apt-cache", "show", "kicad-footprints"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Version: 6.0.11-1" not in shown.stdout:
        pytest.skip("apt does not know release 6.0.11-1 of kicad-footprints")
    assert footprints.main(["--output", str(tmp_path / "footprints")]) == 0
    table = read(tmp_path / "footprints" / "footprints.csv")
    assert table["label"].nunique() == 104
    assert table["split"].value_counts().to_dict() == {"train": 1582, "val": 250, "test": 451}
    assert table["split_by_picture"].value_counts().to_dict() == {"train": 1598, "val": 228, "test": 457}
    assert not table["caption"].str.contains("http|generated", regex=True).any()
