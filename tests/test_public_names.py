"""The package's public names, as people, tab completion and type checkers see them before anything is imported."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import finetune

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
