import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from finetune.core.files import fingerprint_file

from .scripts import contents, load_script, read

HOURS = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN", "ELEVEN", "TWELVE"]
PEOPLE = ("People & Body", "person-sport")
SIGNS = ("Symbols", "arrow")
THINGS = ("Objects", "tool")
EMOJI = [
    *[(f"CLOCK FACE {hour} OCLOCK", f"1F5{i:02X}", "Travel & Places", "time") for i, hour in enumerate(HOURS)],
    *[(f"KEYCAP {i}", f"003{i}-FE0F-20E3", "Symbols", "keycap") for i in range(10)],
    ("SURFER", "1F3C4", *PEOPLE),
    ("MAN SURFING", "1F3C4-200D-2642-FE0F", *PEOPLE),
    ("WOMAN SURFING", "1F3C4-200D-2640-FE0F", *PEOPLE),
    ("MAN FARMER", "1F468-200D-1F33E", *PEOPLE),
    ("WOMAN FARMER", "1F469-200D-1F33E", *PEOPLE),
    ("FARMER", "1F9D1-200D-1F33E", *PEOPLE),
    ("MAN IN TUXEDO", "1F935-200D-2642-FE0F", *PEOPLE),
    ("MAN IN TUXEDO", "1F935", *PEOPLE),
    ("EAR OF RICE", "1F33E", "Animals & Nature", "plant-other"),
    ("LEFTWARDS BLACK ARROW", "2B05-FE0F", *SIGNS),
    ("BLACK RIGHTWARDS ARROW", "27A1-FE0F", *SIGNS),
    ("LEFT-POINTING MAGNIFYING GLASS", "1F50D", *THINGS),
    ("RIGHT-POINTING MAGNIFYING GLASS", "1F50E", *THINGS),
    ("BLUE HEART", "1F499", "Smileys & Emotion", "heart"),
    ("GREEN HEART", "1F49A", "Smileys & Emotion", "heart"),
    ("BROKEN HEART", "1F494", "Smileys & Emotion", "heart"),
    ("CRYING FACE", "1F622", "Smileys & Emotion", "face"),
    ("CRYING CAT FACE", "1F63F", "Smileys & Emotion", "face"),
    ("CAMERA", "1F4F7", *THINGS),
    ("CAMERA WITH FLASH", "1F4F8", *THINGS),
    ("RESCUE WORKER\u2019S HELMET", "26D1-FE0F", *THINGS),
    *[(f"TOOL {chr(65 + i) * 3}", f"1F6{i:02X}", *THINGS) for i in range(26)],
    ("France Flag", "1F1EB-1F1F7", "Flags", "country-flag"),
    ("EMOJI MODIFIER FITZPATRICK TYPE-3", "1F3FC", "Component", "skin-tone"),
]


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(f"package/{name}")
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def build_package(path: Path, vendor: str) -> Path:
    """A package in the format of the registry's: emoji.json comes last, a picture is of a skin tone."""
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "unified": unified,
            "image": f"{unified.lower()}.png",
            "short_name": f"short_{place}",
            "category": category,
            "subcategory": subcategory,
            "sort_order": len(EMOJI) - place,
        }
        for place, (name, unified, category, subcategory) in enumerate(EMOJI)
    ]
    buffer = io.BytesIO()
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (16, 16, 48, 48))
    picture.save(buffer, "PNG")
    with tarfile.open(path, "w:gz") as archive:
        for image in [entry["image"] for entry in entries] + ["1f3c4-1f3fc.png"]:
            add_file(archive, f"img/{vendor}/64/{image}", buffer.getvalue())
        add_file(archive, "emoji.json", json.dumps(entries).encode())
    return path


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with the fingerprints of two small packages that lie in tmp_path."""
    module = load_script("emoji")
    for vendor in ("google", "twitter"):
        package = build_package(tmp_path / f"{vendor}.tgz", vendor)
        monkeypatch.setitem(module.SHA256, vendor, fingerprint_file(package))
    return module


def run(script: ModuleType, folder: Path, output: Path) -> int:
    packages = ["--google-tgz", str(folder / "google.tgz"), "--twitter-tgz", str(folder / "twitter.tgz")]
    code: int = script.main(["--output", str(output), *packages])
    return code


@pytest.fixture
def output(script: ModuleType, tmp_path: Path) -> Path:
    assert run(script, tmp_path, tmp_path / "emoji") == 0
    return tmp_path / "emoji"


def test_tables_have_the_columns_and_no_flags_components_or_skin_tones(output: Path) -> None:
    table = read(output / "google.csv")
    columns = "image caption short_name category subcategory vendor split split_by_picture family"
    assert " ".join(table.columns) == columns
    assert len(table) == len(EMOJI) - 2
    assert not set(table["category"]) & {"Flags", "Component"}
    assert sorted(path.name for path in (output / "google").iterdir()) == sorted(
        image.removeprefix("google/") for image in table["image"]
    )
    assert not (output / "google" / "1f3c4-1f3fc.png").exists()


def test_captions_are_clean_and_unique(output: Path) -> None:
    captions = read(output / "google.csv")["caption"]
    assert captions.is_unique
    assert "rescue worker's helmet" in set(captions)
    assert captions.str.islower().all()


def test_rows_follow_the_sort_order(output: Path) -> None:
    assert read(output / "google.csv")["caption"].iloc[-1] == "clock face one oclock"


def test_families_keep_variants_together_and_concepts_apart(output: Path) -> None:
    families = read(output / "google.csv").set_index("caption")["family"]
    for members in [
        [f"clock face {hour.lower()} oclock" for hour in HOURS],
        [f"keycap {i}" for i in range(10)],
        ["surfer", "man surfing", "woman surfing"],
        ["farmer", "man farmer", "woman farmer"],
        ["leftwards black arrow", "black rightwards arrow"],
        ["left-pointing magnifying glass", "right-pointing magnifying glass"],
        ["blue heart", "green heart"],
        ["crying face", "crying cat face"],
        ["camera", "camera with flash"],
    ]:
        assert families[members].nunique() == 1, members
    apart = ["blue heart", "broken heart", "farmer", "ear of rice", "surfer", "crying face", "camera"]
    assert families[apart].is_unique


def test_no_family_is_split_and_series_are_for_training(output: Path) -> None:
    table = read(output / "emoji.csv")
    assert set(table["split"]) == {"train", "val", "test"}
    assert (table.groupby("family")["split"].nunique() == 1).all()
    series = table["caption"].str.startswith(("clock face", "keycap"))
    assert set(table[series]["split"]) == {"train"}


def test_both_vendors_have_the_same_splits(output: Path) -> None:
    google, twitter, both = (read(output / f"{name}.csv") for name in ("google", "twitter", "emoji"))
    own = ["image", "vendor"]
    pd.testing.assert_frame_equal(google.drop(columns=own), twitter.drop(columns=own))
    assert set(twitter["vendor"]) == {"twitter"}
    assert twitter["image"].str.startswith("twitter/").all()
    pd.testing.assert_frame_equal(both, pd.concat([google, twitter], ignore_index=True))


def test_every_sub_category_occurs_in_train_by_picture(output: Path) -> None:
    table = read(output / "google.csv")
    by_picture = table[table["split_by_picture"] == "train"]
    assert set(by_picture["subcategory"]) == set(table["subcategory"])


def test_sub_categories_weigh_as_much_in_each_split_as_among_all_pictures(output: Path) -> None:
    table = read(output / "google.csv")
    of_all = table["subcategory"].value_counts()
    for split, share in (("val", 0.1), ("test", 0.2)):
        held = table[table["split_by_picture"] == split]["subcategory"].value_counts()
        assert (held.reindex(of_all.index, fill_value=0) - share * of_all).abs().max() <= 1
        assert held.sum() == round(share * len(table))


def test_pictures_are_rgb_on_white(output: Path) -> None:
    for image in read(output / "emoji.csv")["image"]:
        with Image.open(output / image) as picture:
            assert (picture.mode, picture.size) == ("RGB", (64, 64))
            assert picture.getpixel((0, 0)) == (255, 255, 255)
            assert picture.getpixel((32, 32)) == (0, 0, 255)


def test_a_second_run_writes_the_same_bytes(script: ModuleType, output: Path, tmp_path: Path) -> None:
    assert run(script, tmp_path, tmp_path / "again") == 0
    assert run(script, tmp_path, output) == 0
    assert contents(output) == contents(tmp_path / "again")


def test_another_package_is_refused_and_nothing_written(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_package(tmp_path / "twitter.tgz", "google")
    assert run(script, tmp_path, tmp_path / "emoji") == 2
    message = capsys.readouterr().err
    assert "to be emoji-datasource-twitter 16.0.0 with SHA-256" in message
    assert "npm pack emoji-datasource-twitter@16.0.0" in message
    assert not (tmp_path / "emoji").exists()


def test_missing_npm_names_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_script("emoji").main(["--output", str(tmp_path / "emoji")]) == 2
    message = capsys.readouterr().err
    assert "Expected npm to be on the PATH" in message
    assert "--google-tgz FILE" in message
    assert not (tmp_path / "emoji").exists()


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "emoji"), "--google-tgz", str(tmp_path / "none.tgz")]
    assert load_script("emoji").main(arguments) == 2
    assert "Expected --google-tgz to be a file, but got" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_packages(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    reachable = subprocess.run(
        [npm, "view", "emoji-datasource-google@16.0.0", "version"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    if reachable.returncode:
        pytest.skip("the npm registry is not reachable")
    assert load_script("emoji").main(["--output", str(tmp_path / "emoji")]) == 0
    for name, vendors in (("google", 1), ("twitter", 1), ("emoji", 2)):
        table = read(tmp_path / "emoji" / f"{name}.csv")
        counts = table["split"].value_counts().to_dict()
        assert counts == {"train": 1248 * vendors, "val": 69 * vendors, "test": 319 * vendors}
    assert table["family"].nunique() == 1137
    assert (table.groupby("family")["split"].nunique() == 1).all()
