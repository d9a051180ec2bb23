"""The package where it is not a checkout: from a wheel, beside a namesake, and without libraries of development."""

import os
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ("finetune", "recipes", "datasets", "tests", "docs", "benchmarks", "examples")
FOLDERS = [name for name in SHIPPED if (ROOT / name).is_dir()]


def run(command: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end in a folder, without the caller's import path."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def expect_success(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, built from a copy of the checkout, and the wheel that is built of it."""
    folder = tmp_path_factory.mktemp("built")
    source, tools = folder / "source", folder / "tools"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
        elif path.name in FOLDERS:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "runs").mkdir()
    (source / "runs" / "weights.ckpt").write_text("not to be shipped")
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pip = [sys.executable, "-m", "pip"]
    expect_success(run([*pip, "install", "-q", "--target", tools, *backend], folder))
    hatchling = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder]
    expect_success(run(hatchling, source, PYTHONPATH=str(tools)))
    archive = next(folder.glob("*.tar.gz"))
    words = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, archive]
    expect_success(run(words, folder, PYTHONPATH=str(tools)))
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    """The wheel."""
    return next(built.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment with the wheel, which finds dependencies in the running one.

    The running environment's folders come after the new one's own, and the `.pth` files in them, as that of an
    editable install, are not followed.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    expect_success(run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel], folder))
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    where = expect_success(run([python, "-c", "import finetune; print(finetune.__file__)"], folder))
    assert Path(where.strip()) == packages / "finetune" / "__init__.py"
    return folder / "bin"


@pytest.mark.slow
def test_wheel_holds_recipes_and_scripts_and_one_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("recipes", "*.yaml"), ("datasets", "*.py")):
        shipped = {f"finetune/shipped/{folder}/{path.name}" for path in (ROOT / folder).glob(pattern)}
        assert shipped
        assert shipped <= names
    assert {"finetune/report/report.html.j2", "finetune/report/style.css", "finetune/py.typed"} <= names
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"finetune"}
    assert not any("__pycache__" in name for name in names)


@pytest.mark.slow
def test_source_archive_holds_what_tests_and_docs_need_and_nothing_of_ours(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        (top,) = {name.split("/")[0] for name in archive.getnames()}
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    for folder in FOLDERS:
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names, folder
    for name in (
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "SECURITY.md",
        "constraints.txt",
        "mkdocs.yml",
    ):
        assert name in names
    added = {"PKG-INFO", ".gitignore", "pyproject.toml", "LICENSE", "constraints.txt", "mkdocs.yml", "CITATION.cff"}
    assert {name.split("/")[0] for name in names if not name.endswith(".md")} == {*added, *FOLDERS}


@pytest.mark.slow
def test_metadata_of_the_wheel_are_the_projects(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        (place,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        found = message_from_bytes(archive.read(place))
    assert (found["Name"], found["Version"]) == (project["name"], project["version"])
    assert found["License-Expression"] == project["license"]
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert set(found.get_all("Provides-Extra")) == project["optional-dependencies"].keys()


@pytest.mark.slow
def test_installed_package_is_whole_outside_of_the_checkout(installed, tmp_path):
    assert "publish" in expect_success(run([installed / "finetune", "--help"], tmp_path))
    program = (
        "import finetune; print(len([getattr(finetune, name) for name in finetune.__all__]), finetune.__version__)"
    )
    count, version = expect_success(run([installed / "python", "-P", "-c", program], tmp_path)).split()
    assert int(count) > 30
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.slow
def test_installed_commands_do_the_whole_run(installed, tmp_path):
    listed = expect_success(run([installed / "finetune", "recipes", "list"], tmp_path))
    assert {line.split()[0] for line in listed.splitlines()} == {
        path.stem for path in (ROOT / "recipes").glob("*.yaml")
    }
    shown = expect_success(run([installed / "align-finetune", "recipes", "show", "quickstart"], tmp_path))
    assert shown == (ROOT / "recipes" / "quickstart.yaml").read_text()
    expect_success(run([installed / "finetune", "prepare", "digits"], tmp_path))
    assert (tmp_path / "data" / "digits" / "digits.csv").is_file()
    words = ["fit", "--config", "quickstart", "--trainer.max_steps", "2", "--run.linear_probe", "false"]
    expect_success(run([installed / "finetune", *words], tmp_path))
    assert (tmp_path / "runs" / "quickstart" / "merged" / "merge_proof.json").is_file()
    assert (tmp_path / "runs" / "quickstart" / "finished.json").is_file()


@pytest.mark.slow
def test_scripts_are_typed_against_the_installed_package(installed, tmp_path):
    """As a user's are, by a type checker that knows nothing of this checkout."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from finetune import classify, search\n\n"
        'names: list[int] = classify("a", "b.png").answered_by\n'
        'search("align-mini", "photos.npy", texts=3)\n'
    )
    examples = sorted((ROOT / "examples").glob("*.py"))
    done = run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python", *examples, wrong],
        tmp_path,
    )
    lines = done.stdout.splitlines()
    assert [line.partition(": error: ")[0] for line in lines if "error: " in line] == ["wrong.py:3", "wrong.py:4"], (
        lines
    )
    assert f"checked {len(examples) + 1} source files" in lines[-1]


def other_distribution(folder: Path) -> None:
    """The records of another distribution whose package lies where this one's does."""
    record = folder / "finetune-0.10.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: finetune\nVersion: 0.10.2\n")
    (record / "RECORD").write_text("finetune/__init__.py,,\nfinetune/core/errors.py,,\n")


@pytest.mark.parametrize("overwritten", [False, True], ids=["beside", "overwritten"])
def test_a_distribution_with_the_same_package_is_named(tmp_path, overwritten):
    shutil.copytree(ROOT / "finetune", tmp_path / "finetune", ignore=shutil.ignore_patterns("__pycache__"))
    words = [sys.executable, "-m", "finetune", "recipes", "list"]
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    expect_success(run(words, tmp_path, PYTHONPATH=str(tmp_path)))
    other_distribution(tmp_path)
    if overwritten:
        (tmp_path / "finetune" / "core" / "errors.py").write_text("class FinetuneError(Exception):\n    pass\n")
    done = run(words, tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "to belong to align-finetune alone, but got the distribution finetune 0.10.2" in done.stderr
    assert "pip uninstall finetune" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_distribution_with_the_same_name_elsewhere_is_no_fault(tmp_path):
    other_distribution(tmp_path)
    expect_success(run([sys.executable, "-m", "finetune", "recipes", "list"], ROOT, PYTHONPATH=str(tmp_path)))


@pytest.fixture(scope="module")
def without_datasets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An import path with the checkout and everything that is installed but the library `datasets`."""
    links = tmp_path_factory.mktemp("links")
    for folder in (Path(entry) for entry in sys.path if Path(entry).name == "site-packages"):
        for path in folder.iterdir():
            other = not path.name.startswith(("datasets", "__pycache__")) and path.suffix != ".pth"
            if other and not (links / path.name).is_symlink():  # of two the first is the one that is imported
                (links / path.name).symlink_to(path)
    return os.pathsep.join([str(ROOT), str(links)])


@pytest.mark.slow
def test_the_checkout_works_without_the_datasets_library(without_datasets):
    """With it absent and the root on the import path, transformers takes the folder `datasets` for it."""
    program = """
import importlib.util, sys
assert importlib.util.find_spec("datasets").origin is None, "the library is there"
import finetune.training.task
from PIL import Image
from finetune.model.base import Base
pixels = Base.open("align-mini").processor()(images=Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"]
assert pixels.shape == (1, 3, 224, 224)
print(finetune.training.task.__file__)
"""
    # -S leaves the environment's own folder off the import path; the folder of links takes its place.
    where = expect_success(run([sys.executable, "-S", "-c", program], ROOT, PYTHONPATH=without_datasets))
    assert Path(where.strip()) == ROOT / "finetune" / "training" / "task.py"


def test_reading_the_hub_asks_for_the_datasets_library(without_datasets, tmp_path):
    for words in (["-m", "finetune", "prepare", "from_hub"], [ROOT / "datasets" / "from_hub.py"]):
        command = [sys.executable, "-S", *words, "owner/name", "--output", tmp_path / "out"]
        done = run(command, ROOT, PYTHONPATH=without_datasets)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "library datasets to be installed, but got: it is not. Run: pip install 'datasets>=5'" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
