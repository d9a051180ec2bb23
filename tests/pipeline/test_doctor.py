"""The doctor finds what stands in the way: real package folders, a real server, real files."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from finetune.commands.cli import main
from finetune.pipeline.doctor.files import find_files
from finetune.pipeline.doctor.hub import find_hub
from finetune.pipeline.doctor.machine import find_machine
from finetune.pipeline.doctor.packages import find_packages


class Hub(BaseHTTPRequestHandler):
    """Answers for the one file that is asked for."""

    def do_HEAD(self) -> None:
        is_known = self.path == "/kakaobrain/align-base/resolve/main/config.json"
        self.send_response(200 if is_known else 404)
        for name, value in {"ETag": '"a"', "X-Repo-Commit": "c" * 40, "Content-Length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def name(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Sets what HF_ENDPOINT sets when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine, and an empty cache."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server
        server.shutdown()


def install(folder: Path, name: str, version: str, module: str) -> None:
    """Writes what pip leaves of a package."""
    told = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (told / "top_level.txt").write_text(f"{module}\n")
    (told / "RECORD").write_text(f"{module}/__init__.py,,\n")


def test_versions_are_those_that_are_installed():
    found = {finding.about: finding for finding in find_packages()}
    assert f"torch {torch.__version__}" in found["packages"].found
    assert not [finding for finding in found.values() if finding.is_fatal]


def test_packages_that_are_too_old_or_in_the_way_are_named(tmp_path, monkeypatch):
    install(tmp_path, "peft", "0.3.0", "peft")
    install(tmp_path, "finetune", "0.10", "finetune")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {finding.about: finding for finding in find_packages() if finding.repair}
    assert found.keys() == {"peft", "finetune", "torchvision"}
    assert all(finding.is_fatal for finding in found.values())
    assert found["peft"].found.startswith("0.3.0, where ")
    assert found["peft"].repair.startswith("Run: pip install 'peft")
    assert found["finetune"].found == "a module of align-finetune and of finetune"
    assert found["torchvision"].found.endswith("RuntimeError: operator torchvision::nms is missing")


def test_the_machine_is_described():
    found = {finding.about: finding.found for finding in find_machine()}
    assert {"cores", "memory", "images"} <= found.keys()
    assert "jpg" in found["images"]
    assert ("accelerator" in found) == (not torch.cuda.is_available())


def test_folders_that_cannot_be_written_to_and_modules_that_hide_packages_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    cache, _, runs, shadow = find_files()
    assert (cache.about, cache.is_fatal) == ("cache", True)
    assert cache.found == f"{tmp_path / 'file' / 'cache'} cannot be written to"
    assert runs.found.startswith(f"{tmp_path / 'runs'}, ")
    assert shadow.found == "datasets in this folder hides the package datasets"
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("hub")
def test_a_hub_that_answers_is_told_from_one_that_does_not(monkeypatch):
    found, mini = find_hub()
    assert found == (
        "hub",
        f"{constants.ENDPOINT} answers; kakaobrain/align-base is downloaded at its first use",
        "",
        False,
    )
    assert (mini.found, mini.repair) == ("can be assembled", "")
    name(monkeypatch, "http://127.0.0.1:9")
    found, _ = find_hub()
    assert "http://127.0.0.1:9 does not answer" in found.found
    assert "download kakaobrain/align-base elsewhere" in found.repair
    assert not found.is_fatal


@pytest.mark.usefixtures("hub")
def test_the_command_says_what_a_recipe_lacks(tiny, colour_table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {
        "model": {"checkpoint": tiny},
        "data": {"table": {"path": str(colour_table), "label": "label", "split": "split"}},
        "trainer": {"accelerator": "cpu"},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    assert main(["doctor", "--config", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert f"table           36 rows of {colour_table}" in said
    assert "device          cpu" in said
    assert main(["doctor", "--config", "mine.yaml", "--data.table.path", "absent.csv", "--model.checkpoint", "no"]) == 2
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1] for line in errors] == [" checkpoint", " table"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
