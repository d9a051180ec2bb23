"""The package's public names, as people, tab completion and type checkers see them before anything is imported."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
from finetune.commands.cli import COMMANDS

from .list_public_names import KEPT, list_members, list_public_names

ROOT = Path(__file__).parents[1]
SCRIPT = "import finetune, json, sys; print(json.dumps([dir(finetune), sorted(sys.modules)]))"


def test_dir_shows_every_public_name_and_imports_none():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    names, modules = json.loads(done.stdout)
    assert {*finetune.__all__, "__version__", "__name__"} <= {*names}
    assert not {"torch", "numpy", "pandas", "finetune.model"} & {*modules}
    assert all(getattr(finetune, name) is not None for name in names)


def test_type_checkers_see_every_public_name_where_it_is_found():
    package = Path(finetune.__file__).parent
    (block,) = [node for node in ast.parse((package / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    homes = {name.name: line.module for line in block.body for name in line.names}
    assert homes == {name: f"finetune.{home}" for name, home in finetune._HOME.items()}
    assert sorted(homes) == sorted(finetune.__all__)
    assert (package / "py.typed").is_file()  # else they would not look


def test_no_public_name_changes_by_accident():
    assert list_public_names() == KEPT.read_text(encoding="utf-8"), (
        "Public names have changed. If that is meant, run `python tests/list_public_names.py`, and add to CHANGELOG.md."
    )


@pytest.mark.parametrize("name", finetune.__all__)
def test_every_public_name_says_what_it_is_and_what_it_takes(name):
    thing = getattr(finetune, name)
    said = inspect.getdoc(thing)
    assert said
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    taken = [] if is_error else [*map(str, inspect.signature(thing).parameters.values())]
    names = [re.split("[:=]", argument)[0] for argument in taken if not argument.startswith(("*args", "**"))]
    assert [name for name in names if f"\n    {name.removeprefix('*')}: " not in said] == []
    if inspect.isclass(thing):
        methods = {name: each for name, each in list_members(thing).items() if isinstance(each, ast.FunctionDef)}
        assert [name for name, each in methods.items() if name != "__init__" and not ast.get_docstring(each)] == []


def read_code(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


def test_pages_and_examples_use_public_names_alone():
    pages = [read_code(page) for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    scripts = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "examples").glob("*.py"))]
    assert scripts
    used = re.findall(r"^ *(?:from (finetune\S*) import (.+)|import (finetune\S*))", "\n".join(pages + scripts), re.M)
    assert {module or other for module, _, other in used} == {"finetune"}
    assert {name.strip() for _, names, _ in used for name in names.split(",") if names} <= {*finetune.__all__}


def test_every_command_has_a_counterpart_in_python():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `finetune (\w+)` \| (.+) \|$", page, re.M))
    assert {*rows} == {command.__name__.rpartition(".")[2] for command in COMMANDS}
    for row in rows.values():
        called = re.findall(r"`(\w+)\(", row)
        assert called
        assert {*called} <= {*finetune.__all__}
