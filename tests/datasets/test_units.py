import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.table.table import Table

from .scripts import build_deb, contents, load_script, read

INSIDE = "usr/share/games/wesnoth/1.16/data/core"


FIGHTER = """#textdomain wesnoth-units
[unit_type]
    id=Elvish Fighter
    name= _ "Elvish Fighter"
    race=elf
    image="units/elves/fighter.png"
    advances_to=Elvish Captain,Elvish Hero
    description= _ "Elves fight “well”. {words}

Their captains say ""enough"". The end."
    {{DEFENSE_ANIM "units/elves/fighter-defend.png" "units/elves/fighter.png" {{SOUND_LIST:ELF_HIT}} }}
    [attack]
        name=sword
        description= _"sword"
        [specials]
            {{WEAPON_SPECIAL_MARKSMAN}}
        [/specials]
    [/attack]
    [female]
        image="units/elves/fighter+female.png"
    [/female]
[/unit_type]
""".format(words=" ".join(["word"] * 44) + ".")
CAPTAIN = """#define PATH
units/elves/#enddef
[unit_type]
    id=Elvish Captain
    name= _ "female^Elvish Captain"
    race=elf
    image="{PATH}fighter-captain.png"
    advances_to=null
    description= _ "She leads."
[/unit_type]
"""
OTHER = """[unit_type]
    id={name}
    name= _ "{name}"
    race={race}
    image="units/{stem}.png"
    description= _ "A {name} lives in caves."
[/unit_type]
"""
HIDDEN = """[unit_type]
    id=Fog Clearer
    name= _ "Fog Clearer"
    image="misc/blank-hex.png"
[/unit_type]
"""
PICTURES = [
    "elves/fighter",
    "elves/fighter+female",
    "elves/fighter+female-attack-1",
    *[f"elves/fighter-idle-{i}" for i in range(8)],
    "elves/fighter-defend",
    "elves/fighter-bow-defend",
    *[f"elves/fighter-bow-attack-{i}" for i in range(9)],
    "elves/fighter-die-1",
    "elves/fighter-captain",
    "elves/fighter-captain-melee1",
    "elves/fighter-captain-ne-run2",
    "elves/fighters",
    "undead/ghost-s-2",
    "undead/ghost-n-attack-1",
    *[f"bats/bat{chr(97 + i)}{end}" for i in range(20) for end in ("", "-attack")],
]
TRANSPARENT = "elves/fighter-idle-0"


def build_core(folder: Path) -> Path:
    """A folder like the package's data/core: figures that differ in a pixel, on a transparent ground."""
    texts = {
        "elves/Fighter": FIGHTER,
        "elves/Captain": CAPTAIN,
        "fake/Fog_Clearer": HIDDEN,
        "undead/Ghost": OTHER.format(name="Ghost", race="undead", stem="undead/ghost-s-2"),
    }
    for i in range(20):
        name = f"Bat {chr(65 + i)}"
        texts[f"bats/{name}"] = OTHER.format(name=name, race="bats", stem=f"bats/bat{chr(97 + i)}")
    for name, text in texts.items():
        path = folder / "units" / f"{name}.cfg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for place, name in enumerate(PICTURES):
        path = folder / "images" / "units" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGBA", (72, 72), (255, 0, 255, 0))
        if name != TRANSPARENT:
            picture.paste((0, place, 200, 255), (20, 10, 50, 70))
            picture.paste((0xF4, 0x9A, 0xC1, 255), (20, 10, 50, 40))
        picture.save(path)
    return folder


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_core(tmp_path_factory.mktemp("source") / "core")


@pytest.fixture(scope="module")
def output(core: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("written") / "units"
    assert load_script("units").main(["--core", str(core), "--output", str(folder)]) == 0
    return folder


def test_the_table_has_the_columns_and_the_units_with_a_description(output: Path) -> None:
    table = read(output / "units.csv")
    assert " ".join(table.columns) == "image caption description label race pose split split_by_unit family"
    assert set(table["race"]) == {"elf", "undead", "bats"}
    assert table["label"].nunique() == 23
    assert table["image"].is_unique
    assert {f"images/{path.relative_to(output / 'images').as_posix()}" for path in output.rglob("*.png")} == set(
        table["image"]
    )


def test_texts_are_those_of_the_unit_itself(output: Path) -> None:
    table = read(output / "units.csv").drop_duplicates("label").set_index("label")
    words = " ".join(["word"] * 44) + "."
    assert (
        table.loc["Elvish Fighter", "description"]
        == f'Elves fight “well”. {words} Their captains say "enough". The end.'
    )
    assert table.loc["Elvish Fighter", "caption"] == f"Elvish Fighter. Elves fight “well”. {words}"
    assert table.loc["Elvish Captain", "caption"] == "Elvish Captain. She leads."


def test_pictures_belong_to_the_unit_with_the_longest_name(output: Path) -> None:
    table = read(output / "units.csv")
    poses = {
        label: rows.groupby("pose")["image"].apply(lambda images: [name.rpartition("/")[2][:-4] for name in images])
        for label, rows in table.groupby("label")
    }
    assert poses["Elvish Fighter"].to_dict() == {
        "standing": ["fighter", "fighter-idle-1", "fighter-idle-3", "fighter-idle-5"],
        "defending": ["fighter-bow-defend", "fighter-defend"],
        "attacking": [f"fighter-bow-attack-{i}" for i in (0, 2, 4, 6)],
    }
    assert poses["Elvish Captain"].to_dict() == {
        "standing": ["fighter-captain"],
        "attacking": ["fighter-captain-melee1"],
        "moving": ["fighter-captain-ne-run2"],
    }
    assert poses["Ghost"].to_dict() == {"standing": ["ghost-s-2"], "attacking": ["ghost-n-attack-1"]}


def test_split_holds_out_attacks(output: Path) -> None:
    table = read(output / "units.csv")
    attacking = table["pose"] == "attacking"
    assert set(table[~attacking]["split"]) == {"train"}
    assert set(table[attacking]["split"]) == {"val", "test"}
    assert (table[attacking].groupby("label")["split"].nunique() == 1).all()


def test_split_by_unit_holds_out_families(output: Path) -> None:
    table = read(output / "units.csv")
    assert set(table["split_by_unit"]) == {"train", "val", "test"}
    assert (table.groupby("family")["split_by_unit"].nunique() == 1).all()
    families = table.drop_duplicates("label").set_index("label")["family"]
    assert families["Elvish Fighter"] == families["Elvish Captain"]
    assert families.nunique() == len(families) - 1


def test_pictures_are_cut_out_on_white_in_the_colour_of_the_team(output: Path) -> None:
    for image in read(output / "units.csv")["image"]:
        with Image.open(output / image) as picture:
            assert (picture.mode, picture.size) == ("RGB", (128, 128))
            pixels = np.asarray(picture)
        figure = (pixels != 255).any(axis=-1)
        rows, columns = figure.any(axis=1).nonzero()[0], figure.any(axis=0).nonzero()[0]
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (4, 123, 34, 93)
        assert tuple(pixels[30, 64]) == (255, 0, 0)
        assert pixels[100, 64, 2] == 200


def test_the_palette_is_mixed_as_the_game_does_it() -> None:
    colours = load_script("units").TEAM_COLOURS
    assert len(colours) == 19
    assert colours[0xF4, 0x9A, 0xC1] == (255, 0, 0)
    average = (0xF4 + 0x9A + 0xC1) / 3
    dark, light = (0x3F + 0x00 + 0x16) / 3, (0xFD + 0xE9 + 0xF1) / 3
    assert colours[0x3F, 0x00, 0x16] == (int(255 * dark / average), 0, 0)
    share = (light - average) / (255 - average)
    assert colours[0xFD, 0xE9, 0xF1] == (255, int(255 * share), int(255 * share))


def test_table_reads_it(output: Path) -> None:
    rows = Table(str(output / "units.csv"), label="label", split="split").read()
    assert len(rows.classes) == 23


def test_package_and_folder_give_the_same_bytes(core: Path, output: Path, tmp_path: Path) -> None:
    package = build_deb(core, INSIDE, tmp_path / "wesnoth.deb")
    for _ in range(2):  # the second replaces the first
        assert load_script("units").main(["--deb", str(package), "--output", str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--core", "none"], "Expected --core to be a folder, but got none"),
        (["--deb", "none.deb"], "Expected --deb to be a file, but got none.deb"),
        (["--core", "."], "Expected units with a picture and a description, but got none"),
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
    assert load_script("units").main([*arguments, "--output", "units"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("units/elves/Fighter.cfg", b"\xff"),
        ("units/elves/Fighter.cfg", b"[/unit_type]"),
        ("images/units/elves/fighter-idle-1.png", b"no picture"),
        ("images/units/elves/fighter-idle-1.png", b""),
    ],
)
def test_a_damaged_file_is_named(
    name: str, content: bytes, core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(core, tmp_path / "core")
    (tmp_path / "core" / name).write_bytes(content)
    assert load_script("units").main(["--core", str(tmp_path / "core"), "--output", str(tmp_path / "units")]) == 2
    assert f"Expected {name} of the package to be whole, but reading it failed: " in capsys.readouterr().err
    assert not (tmp_path / "units").exists()


def test_a_unit_without_a_name_is_left_out(core: Path, output: Path, tmp_path: Path) -> None:
    shutil.copytree(core, tmp_path / "core")
    nameless = CAPTAIN.replace('    name= _ "female^Elvish Captain"\n', "").replace("Captain", "Scout")
    (tmp_path / "core" / "units" / "elves" / "Scout.cfg").write_text(nameless, encoding="utf-8")
    assert load_script("units").main(["--core", str(tmp_path / "core"), "--output", str(tmp_path / "units")]) == 0
    assert contents(tmp_path / "units") == contents(output)


def test_no_source_at_all_names_the_repairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("units")
    monkeypatch.setattr(script, "PACKAGE", replace(script.PACKAGE, installed=tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.main(["--output", str(tmp_path / "units")]) == 2
    message = capsys.readouterr().err
    assert "apt install wesnoth-1.16-data" in message
    assert "--deb FILE" in message


@pytest.mark.network
def test_the_real_package(tmp_path: Path) -> None:
    if shutil.which("apt-cache") is None:
        pytest.skip("apt is not installed")
    command = ["apt-cache", "show", "wesnoth-1.16-data"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Version: 1:1.16.9-1" not in shown.stdout:
        pytest.skip("apt does not know release 1.16.9-1 of wesnoth-1.16-data")
    assert load_script("units").main(["--output", str(tmp_path / "units")]) == 0
    table = read(tmp_path / "units" / "units.csv")
    assert table["label"].nunique() == 266
    assert table["split"].value_counts().to_dict() == {"train": 1067, "val": 106, "test": 616}
    assert table["split_by_unit"].value_counts().to_dict() == {"train": 1243, "val": 222, "test": 324}
