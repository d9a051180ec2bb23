"""The notebook of `examples/`: what is committed was executed and names no place of a machine; it runs anew."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from finetune.run.folder import RunFolder

NOTEBOOK = Path(__file__).parents[2] / "examples" / "align_finetune.ipynb"
MOST_BYTES, MOST_BYTES_OF_A_PICTURE = 500_000, 100_000
A_PLACE = re.compile(r"(?<![\w.:/])/(?:\w[\w.-]*/)+\w|[A-Z]:\\")
"""An absolute path of two parts or more."""


def read_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_each_cell_was_executed_in_order_and_none_failed(committed):
    nbformat.validate(committed)
    cells = read_cells(committed)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert cell.outputs, cell.source
        assert {output.output_type for output in cell.outputs} <= {"display_data", "execute_result", "stream"}


def test_outputs_are_small_and_name_no_place_of_a_machine(committed):
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    outputs = [output for cell in read_cells(committed) for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    for picture in pictures:
        assert base64.b64decode(picture).startswith(b"\x89PNG")
        assert len(picture) < MOST_BYTES_OF_A_PICTURE
    assert A_PLACE.search("in /root/venv/lib")
    assert A_PLACE.search(r"C:\users")
    for output in outputs:
        texts = {kind: text for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
        shown = json.dumps(texts).replace("</", "<") + output.get("text", "")
        assert not A_PLACE.search(shown), A_PLACE.search(shown)


@pytest.mark.slow
def test_it_runs_through_and_learns(committed, tmp_path):
    cleared = nbformat.from_dict(committed)
    NotebookClient(cleared, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for name, metric in (("retrieval", "test/mean_R@K"), ("classes", "test/accuracy")):
        results = RunFolder(tmp_path / "runs" / name).read_results()
        assert results.loc[metric, "after"] > results.loc[metric, "before"] + 0.2
    assert len(read_cells(cleared)) == len(read_cells(committed))
