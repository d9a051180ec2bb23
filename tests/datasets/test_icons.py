import builtins
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from finetune.core.files import fingerprint_file
from finetune.data.table.table import Table

from .scripts import contents, load_script, read

PATHS = {
    "bootstrap": "icons/{}.svg",
    "boxicons": "svg/solid/bxs-{}.svg",
    "fontawesome": "svgs/solid/{}.svg",
    "iconoir": "icons/regular/{}.svg",
    "ionicons": "dist/svg/{}-outline.svg",
    "lucide": "icons/{}.svg",
    "mdi": "svg/{}.svg",
    "phosphor": "assets/regular/{}.svg",
    "remix": "icons/System/{}-line.svg",
    "tabler": "icons/outline/{}.svg",
}
VENDORS = list(PATHS)
NAMES = [f"thing-{chr(97 + i)}{chr(98 + i)}" for i in range(20)]


def draw_bar(place: int, width: int = 24) -> bytes:
    """An icon of the colour of the text around it: a bar at the left, as long as its number says."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 24" fill="currentColor">'
    return f'{svg}<path d="M0 0h6v{place + 1}h-6z"/></svg>'.encode()


def list_icons(vendor: str) -> dict[str, bytes]:
    """What a vendor draws: all names, some in another order, one that few have, and an alias."""
    place = VENDORS.index(vendor)
    icons = {name: draw_bar(number) for number, name in enumerate(NAMES)}
    turned = "circle-check" if place < 6 else "check-circle"
    icons[turned] = draw_bar(21)
    if place < 4:
        icons["rare"] = draw_bar(22)
    if place < 5:
        icons["alias"] = icons[NAMES[0]]
    if vendor == "fontawesome":
        icons[NAMES[1]] = draw_bar(1, width=12)
    return icons


def build_packages(folder: Path) -> None:
    for vendor, place in PATHS.items():
        with tarfile.open(folder / f"{vendor}.tgz", "w:gz") as archive:
            files = {place.format(name): data for name, data in list_icons(vendor).items()}
            files["other/icon.svg"] = draw_bar(23)
            files["package.json"] = b"{}"
            for name, data in files.items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def load_with_packages(folder: Path) -> ModuleType:
    """The script, with the fingerprints of the small packages in a folder."""
    module = load_script("icons")
    for vendor, package in module.PACKAGES.items():
        module.PACKAGES[vendor] = replace(package, sha256=fingerprint_file(folder / f"{vendor}.tgz"))
    return module


def run(script: ModuleType, folder: Path, output: Path) -> int:
    packages = [word for vendor in VENDORS for word in (f"--{vendor}-tgz", str(folder / f"{vendor}.tgz"))]
    code: int = script.main(["--output", str(output), *packages])
    return code


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    build_packages(folder)
    return folder


@pytest.fixture(scope="module")
def output(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "icons"
    assert run(load_with_packages(source), source, folder) == 0
    return folder


def test_the_table_has_the_names_that_five_vendors_draw(output: Path) -> None:
    table = read(output / "icons.csv")
    assert " ".join(table.columns) == "image caption label vendor split split_by_picture split_by_name"
    labels = {name.replace("-", " ") for name in NAMES} | {"circle check"}
    assert set(table["label"]) == labels
    assert (table["caption"] == table["label"]).all()
    for _, rows in table.groupby("label"):
        assert sorted(rows["vendor"]) == VENDORS
    assert {path.relative_to(output).as_posix() for path in output.rglob("*.png")} == set(table["image"])


def test_split_holds_out_vendors(output: Path) -> None:
    table = read(output / "icons.csv")
    splits = table.groupby("vendor")["split"].agg(set)
    assert splits["remix"] == {"val"}
    for vendor in ("boxicons", "iconoir", "mdi"):
        assert splits[vendor] == {"test"}
    assert set(table[table["split"] == "train"]["label"]) == set(table["label"])


def test_other_splits_hold_out_pictures_and_names(output: Path) -> None:
    table = read(output / "icons.csv")
    assert set(table["split_by_name"]) == {"train", "val", "test"}
    assert (table.groupby("label")["split_by_name"].nunique() == 1).all()
    assert set(table[table["split_by_picture"] == "train"]["label"]) == set(table["label"])
    shares = table["split_by_picture"].value_counts(normalize=True)
    assert shares["val"] == pytest.approx(0.1, abs=0.01)
    assert shares["test"] == pytest.approx(0.2, abs=0.01)


def test_icons_are_black_in_the_middle_of_white(output: Path) -> None:
    def find_ink(image: str) -> tuple[slice, slice]:
        with Image.open(output / image) as picture:
            assert (picture.mode, picture.size) == ("RGB", (128, 128))
            pixels = np.asarray(picture)
        ink = pixels < 128
        assert set(np.unique(pixels[ink])) == {0}
        rows, columns = ink[..., 0].any(axis=1).nonzero()[0], ink[..., 0].any(axis=0).nonzero()[0]
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)

    unit = 112 / 24
    assert find_ink("lucide/thing-bc.png") == (slice(8, round(8 + 2 * unit)), slice(8, round(8 + 6 * unit)))
    assert find_ink("fontawesome/thing-bc.png") == (slice(8, round(8 + 2 * unit)), slice(36, round(36 + 6 * unit)))


def test_table_reads_it(output: Path) -> None:
    rows = Table(str(output / "icons.csv"), label="label", split="split").read()
    assert len(rows.classes) == 21


def test_a_second_run_writes_the_same_bytes(source: Path, output: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second replaces the first
        assert run(load_with_packages(source), source, tmp_path / "again") == 0
    assert contents(output) == contents(tmp_path / "again")


def test_another_package_is_refused_and_nothing_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(load_script("icons"), source, tmp_path / "icons") == 2
    message = capsys.readouterr().err
    assert "to be bootstrap-icons 1.13.2 with SHA-256" in message
    assert "npm pack bootstrap-icons@1.13.2" in message
    assert not (tmp_path / "icons").exists()


def test_missing_npm_names_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_script("icons").main(["--output", str(tmp_path / "icons")]) == 2
    assert "--bootstrap-tgz FILE" in capsys.readouterr().err


def test_a_missing_renderer_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., ModuleType] = builtins.__import__

    def refuse(name: str, *arguments: object, **options: object) -> ModuleType:
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "resvg_py", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_script("icons").main(["--output", str(tmp_path / "icons")]) == 2  # before it misses npm
    assert "Run: pip install 'align-finetune[icons]'." in capsys.readouterr().err
    assert not (tmp_path / "icons").exists()


@pytest.mark.network
def test_the_real_packages(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    command = [npm, "view", "lucide-static@1.62.0", "version"]
    if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("the npm registry is not reachable")
    assert load_script("icons").main(["--output", str(tmp_path / "icons")]) == 0
    table = read(tmp_path / "icons" / "icons.csv")
    assert table["label"].nunique() == 442
    assert table["split"].value_counts().to_dict() == {"train": 1817, "val": 282, "test": 808}
    assert table["split_by_picture"].value_counts().to_dict() == {"train": 2035, "val": 291, "test": 581}
    assert table["split_by_name"].value_counts().to_dict() == {"train": 2004, "val": 274, "test": 629}
