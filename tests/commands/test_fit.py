"""`finetune fit`: what a run leaves for others."""

import json
from pathlib import Path

import pytest

from finetune.model.base import Base


@pytest.mark.parametrize("name", ["two_towers", "with_head"])
def test_no_file_for_others_says_where_the_base_lies(request, tiny, name):
    run = request.getfixturevalue(name).path
    place = Path(tiny).name.encode()  # of the absolute path as of a relative one
    naming = {path.name for path in run.rglob("*") if path.is_file() and place in path.read_bytes()}
    naming -= {path.name for path in (run / "tensorboard").iterdir()}  # holds the recipe
    assert naming == {"recipe.yaml", "environment.json"}  # which `resume` reads
    base = Base.open(tiny)
    assert json.loads((run / "environment.json").read_text())["checkpoint"]["name"] == base.name
    for file in ("merged/merge_proof.json", "merged/README.md", "adapter/temperature.json", "report.html"):
        assert base.public_name in (run / file).read_text()
