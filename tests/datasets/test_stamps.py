import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from finetune.core.errors import FileError

from .scripts import build_deb, contents, load_script, read

INSIDE = "usr/share/tuxpaint/stamps"


STAMPS = {
    "animals/birds/crow": "A crow.\nes.utf8=Un cuervo.\n",
    "animals/birds/crow2": "A crow.\n",
    "animals/birds/cartoon/owl": "An owl.\n",
    "food/fruit/räuchermännchen": "A “Fuji” apple.\n",
    "symbols/shapes/square": "A square.\n",
    "town/houses/hut": "A hut.\n",
    "vehicles/7": "A wheel!",
    "household/empty": "\n",
}


def build_stamps(folder: Path) -> Path:
    """A folder like the installed one: cut-outs of several sizes, a sound, a mirrored copy."""
    for name, text in STAMPS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
        picture = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
        picture.paste((0, 0, 255, 255), (10, 0, 30, 20))
        if name.endswith("7"):
            picture = picture.convert("LA").resize((800, 400))
        picture.save(path.with_suffix(".png"))
    (folder / "vehicles" / "7.ogg").write_bytes(b"sound")
    shutil.copy(folder / "vehicles" / "7.png", folder / "vehicles" / "7_mirror.png")
    return folder


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    return build_stamps(tmp_path / "source")


@pytest.fixture
def output(stamps: Path, tmp_path: Path) -> Path:
    assert load_script("stamps").main(["--stamps", str(stamps), "--output", str(tmp_path / "stamps")]) == 0
    return tmp_path / "stamps"


def test_the_table_has_a_row_for_each_stamp_with_a_sentence(output: Path) -> None:
    table = read(output / "stamps.csv")
    assert list(table.columns) == ["image", "caption", "category", "kind", "split", "split_by_kind"]
    captions = {text.splitlines()[0] for text in STAMPS.values()} - {""}
    assert len(table) == len(STAMPS) - 1
    assert set(table["caption"]) == captions
    assert list(table["image"]) == sorted(table["image"])
    assert set(table["category"]) == {"animals", "food", "symbols", "town", "vehicles"}


def test_kinds_and_splits(output: Path) -> None:
    table = read(output / "stamps.csv")
    drawings = table[table["kind"] == "drawing"]
    assert set(drawings["caption"]) == {"An owl.", "A square.", "A hut."}
    assert set(drawings["split_by_kind"]) == {"test"}
    others = table[table["kind"] == "photograph"]
    assert set(others["split_by_kind"]) <= {"train", "val"}
    assert (table.groupby("caption")["split"].nunique() == 1).all()


def test_photographs_are_all_test(output: Path) -> None:
    photographs = read(output / "photographs.csv")
    assert set(photographs["kind"]) == {"photograph"}
    assert set(photographs["split"]) == {"test"}
    assert len(photographs) == 4


def test_pictures_are_rgb_squares_on_white_of_at_most_256_pixels(output: Path) -> None:
    with Image.open(output / "images/animals/birds/crow.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (40, 40))
        assert picture.getpixel((20, 5)) == (255, 255, 255)
        assert picture.getpixel((5, 20)) == (255, 255, 255)
        assert picture.getpixel((20, 20)) == (0, 0, 255)
    with Image.open(output / "images/vehicles/7.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (256, 256))


def test_package_and_folder_give_the_same_bytes(stamps: Path, output: Path, tmp_path: Path) -> None:
    package = build_deb(stamps, INSIDE, tmp_path / "stamps.deb")
    assert load_script("stamps").main(["--deb", str(package), "--output", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(output)
    assert load_script("stamps").main(["--deb", str(package), "--output", str(output)]) == 0
    assert contents(tmp_path / "again") == contents(output)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"<html>" + data, "to be a Debian package, but it is not"),
        (lambda data: data[: len(data) // 2], "to be whole, but its end is missing"),
        (lambda data: data.replace(b"\xfd7zXZ", b"?????"), "to be whole, but reading it failed"),
        (lambda data: data.replace(b"data.tar.xz ", b"data.tar.zst"), "Unpack it .dpkg-deb -x"),
    ],
)
def test_a_damaged_package_is_refused(
    damage: Callable[[bytes], bytes], message: str, stamps: Path, tmp_path: Path
) -> None:
    package = build_deb(stamps, INSIDE, tmp_path / "stamps.deb")
    package.write_bytes(damage(package.read_bytes()))
    assert load_script("stamps").main(["--deb", str(package), "--output", str(tmp_path / "stamps")]) == 2
    assert not (tmp_path / "stamps").exists()
    with pytest.raises(FileError, match=message):
        script = load_script("stamps")
        script.PACKAGE.read(package, script.is_wanted)


def test_members_outside_the_folder_of_stamps_are_not_read(stamps: Path, tmp_path: Path) -> None:
    for name in ("crow.png", "crow.txt"):
        shutil.copy(stamps / "animals/birds" / name, tmp_path / name)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        archive.add(tmp_path / "crow.png", "./usr/share/tuxpaint/stamps/../../../crow.png")
        archive.add(tmp_path / "crow.txt", "./usr/share/doc/crow.txt")
    package = tmp_path / "odd.deb"
    header = f"{'data.tar.xz':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data.getvalue()):<10}`\n"
    package.write_bytes(b"!<arch>\n" + header.encode() + data.getvalue())
    script = load_script("stamps")
    assert script.PACKAGE.read(package, script.is_wanted) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stamps", "none"], "Expected --stamps to be a folder, but got none"),
        (["--deb", "none.deb"], "Expected --deb to be a file, but got none.deb"),
        (["--stamps", "."], "Expected stamps with a .png and a .txt each, but got none"),
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
    assert load_script("stamps").main([*arguments, "--output", "stamps"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "stamps").exists()


def test_a_damaged_picture_is_named(stamps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stamps, tmp_path / "damaged")
    (tmp_path / "damaged" / "vehicles" / "7.png").write_bytes(b"no picture")
    assert (
        load_script("stamps").main(["--stamps", str(tmp_path / "damaged"), "--output", str(tmp_path / "stamps")]) == 2
    )
    assert "Expected vehicles/7.png of the package to be whole, but reading it failed: " in capsys.readouterr().err
    assert not (tmp_path / "stamps").exists()


def test_no_source_at_all_names_the_repairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("stamps")
    monkeypatch.setattr(script, "PACKAGE", replace(script.PACKAGE, installed=tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.main(["--output", str(tmp_path / "stamps")]) == 2
    message = capsys.readouterr().err
    assert "apt install tuxpaint-stamps-default" in message
    assert "--deb FILE" in message


@pytest.mark.slow
def test_the_real_package(tmp_path: Path) -> None:
    if shutil.which("apt-cache") is None:
        pytest.skip("apt is not installed")
    shown = subprocess.run(
        ["apt-cache", "show", "tuxpaint-stamps-default"], capture_output=True, text=True, check=False
    )
    if "Version: 2022.06.04-1" not in shown.stdout:
        pytest.skip("apt does not know release 2022.06.04-1 of tuxpaint-stamps-default")
    assert load_script("stamps").main(["--output", str(tmp_path / "stamps")]) == 0
    table = read(tmp_path / "stamps" / "stamps.csv")
    assert table["kind"].value_counts().to_dict() == {"photograph": 400, "drawing": 385}
    assert table["split"].value_counts().to_dict() == {"train": 548, "val": 91, "test": 146}
    assert len(read(tmp_path / "stamps" / "photographs.csv")) == 400
