"""The documentation's commands and Python run as they stand there, page by page, on a desk with what they name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune.commands.cli import main
from tests.conftest import one_process
from tests.docs.desk import fill_desk
from tests.docs.pages import PAGES, find_arguments, read_blocks, read_commands

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "README.md": "tests/test_readme.py and tests/export/test_open_image.py run its Python",
    "adapter-alone.md": "tests/test_end_to_end.py runs it",
}
"""Pages whose Python other tests run."""
NOT_RUN = {
    r"^pip install": "installs",
    r"^pytest|^KILLS=": "tests",
    r"^(\S+=\S+ )*python benchmarks/|^export ": "benchmarks: hours",
    r"torchrun|srun|trainer\.devices": "more devices than there are: tests/pipeline/test_devices.py",
    r"finetune prepare (?!digits|folders|shard)": "data sets that are downloaded, or packages of their own",
    r"finetune (fit|test) --config (karpathy|coyo|zero_shot --data.table.path data)": "their data sets",
    r"^finetune fit --config quickstart( +--(run|data.retention) .*)?$": "minutes; the README's main job",
    r"finetune publish (?!.*--dry_run)": "the hub: tests/export/test_publish.py",
    r"--approximate": "more vectors than there are: tests/commands/test_search.py",
    r"^(if|else|fi|exit|code=\S*|\[)(\s|$)": "words of a script around commands",
    r"finetune publish \S+ \S+$": "sends to the hub: tests/export/test_publish.py",
    r"finetune doctor": "says 2 where the machine lacks something: tests/pipeline/test_doctor.py",
}
"""What is not run here, and why."""
SHORT = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.accelerator", "cpu")
"""Added to what trains."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tiny, opener) -> Path:
    """The desk, with runs that were trained on it."""
    folder = tmp_path_factory.mktemp("desk")
    fill_desk(folder, tiny)
    with pytest.MonkeyPatch.context() as patch, one_process(opener):
        sit_down(patch, folder)
        for name in ("mine", "first", "second"):
            assert main(["fit", "--config", "mine.yaml", "--run", name]) == 0
        labels = ("--data.table.caption", "null", "--data.table.label", "label", "--data.retention", "null")
        assert main(["fit", "--config", "mine.yaml", "--run", "classes", *labels]) == 0
        options = ("--table", "photos.csv", "--caption", "caption", "--split", "split", "--output", "shards")
        assert main(["prepare", "shard", *options]) == 0
        assert main(["prepare", "digits"]) == 0
    return folder


def sit_down(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Works in a desk's folder, with its hub."""
    patch.chdir(folder)
    patch.setenv("HF_HUB_CACHE", str(folder / "hub"))  # for processes that are started
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def own_desk(desk, tmp_path, monkeypatch, opener):
    """A copy of the desk for one page."""
    folder = shutil.copytree(desk, tmp_path / "desk")
    sit_down(monkeypatch, folder)
    with one_process(opener):
        yield folder


def run_command(line: str) -> None:
    """Runs a line of a shell's block; one with a pipe by a shell."""
    if "|" in re.sub(r"'[^']*'|\"[^\"]*\"", "", line):
        python = f"{sys.executable} -m finetune "
        subprocess.run(["bash", "-c", line.replace("finetune ", python)], check=True, env=os.environ, timeout=300)
        return
    for words in find_arguments(line):
        added = SHORT if words[0] in ("fit", "suspects") and "--keys" not in words else ()
        anew = ["--overwrite"] if words[0] == "fit" and "--overwrite" not in words else []
        assert main([*words, *anew, *added]) == 0, line


@pytest.mark.usefixtures("own_desk")
@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(page, "bash")], ids=lambda page: page.name)
def test_commands(page, desk):
    blocks = read_blocks(page, "bash")
    if page.name == "README.md":
        blocks = blocks[2:]  # the main job and the tests, which CI runs
    for block in blocks:
        if "finetune recipes copy" in block.text:
            Path("mine.yaml").unlink()
        else:
            shutil.copy(desk / "mine.yaml", "mine.yaml")
        for line in read_commands(block):
            if not any(re.search(pattern, line) for pattern in NOT_RUN):
                run_command(line)


@pytest.mark.usefixtures("own_desk")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if read_blocks(page, "python") and page.name not in ELSEWHERE],
    ids=lambda page: page.name,
)
def test_python(page):
    main(["embed", "runs/mine", "photos/", "--output", "photos.npy"])
    main(["embed", "runs/mine", "photos/", "--output", "photos.parquet"])
    if page.name == "onnx.md":
        assert main(["export", "runs/mine", "--output", "served", "--onnx"]) == 0
    names: dict[str, Any] = {}
    for block in read_blocks(page, "python"):
        exec(compile(block.text, str(block), "exec"), names)


def test_what_is_not_run_is_there():
    lines = [line for page in PAGES for block in read_blocks(page, "bash") for line in read_commands(block)]
    for pattern, why in NOT_RUN.items():
        assert any(re.search(pattern, line) for line in lines), why
    assert sum(not any(re.search(pattern, line) for pattern in NOT_RUN) for line in lines) > 40
