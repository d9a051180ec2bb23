"""No file that is handed on names a place of the machine that wrote it."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AlignModel

from finetune.export.classifier import ImageClassifier
from finetune.export.local_paths import drop_paths
from finetune.export.merged import MergedCheckpoint
from finetune.export.onnx_files import OnnxFiles
from finetune.export.upload import plan_upload
from finetune.model.base import Base
from finetune.model.lora import TowerLora

from .runs import adapt, open_trained, train_head, write_run

MARKER = "zq-marked-place"
OPEN_IMAGES = "/m/01g317/person"


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def list_files_with(marker: str, *folders: Path) -> list[str]:
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    assert len(files) > len(folders)
    return [f"{file.parent.name}/{file.name}" for file in files if marker.encode() in file.read_bytes()]


@pytest.fixture(scope="module")
def marked(tiny, tmp_path_factory) -> Base:
    """A base in a folder with an unusual name, whose files name such folders as well: in lists and below keys, too."""
    folder = tmp_path_factory.mktemp("marked") / MARKER / "Käse base"
    shutil.copytree(tiny, folder)
    place = f"/home/{MARKER}/base"
    towers = {
        tower: json.loads((folder / "config.json").read_text())[tower] | {"_name_or_path": place, "logs": [place]}
        for tower in ("text_config", "vision_config")
    }
    edit(folder / "config.json", _name_or_path=place, checkpoint=f"C:\\Users\\{MARKER}\\base", **towers)
    edit(folder / "tokenizer_config.json", name_or_path=place, cache_dir=f"~/{MARKER}/cache", others=[place])
    edit(folder / "preprocessor_config.json", _name_or_path=place, source=f"file:///{MARKER}/base")
    nested = json.loads((folder / "processor_config.json").read_text())
    edit(folder / "processor_config.json", image_processor=nested["image_processor"] | {"source": place})
    assert len(list_files_with(MARKER, folder)) == 4
    return Base.open(folder)


@pytest.fixture(scope="module")
def run(marked, batch, tmp_path_factory):
    towers = adapt(marked, TowerLora(rank=2), TowerLora(rank=2))
    path = tmp_path_factory.mktemp(f"run {MARKER}")
    return write_run(path, marked, towers, batch, train_head(towers, batch))


def test_no_exported_file_names_a_place(marked, run, opener):
    trained = open_trained(run, marked)
    MergedCheckpoint(trained).export(run.merged, "birds", {}, fresh=opener)
    ImageClassifier.of(trained).export(run.classifier, "birds", {}, fresh=opener)
    folders = (run.merged, run.classifier, run.adapter, run.processor)
    assert list_files_with(MARKER, *folders) == []
    assert list_files_with(str(Path.home()), *folders) == []
    assert list_files_with(str(Path.cwd()), *folders) == []
    merged = AlignModel.from_pretrained(run.merged)
    assert merged.config.text_config.hidden_size == marked.load().config.text_config.hidden_size


@pytest.mark.slow
def test_no_onnx_file_names_a_place(marked, run, opener, tmp_path):
    trained = open_trained(run, marked)
    MergedCheckpoint(trained).export(tmp_path / MARKER / "served", "birds", {}, fresh=opener, onnx=OnnxFiles(trained))
    onnx = tmp_path / MARKER / "served" / "onnx"
    assert {file.suffix for file in onnx.iterdir()} >= {".onnx", ".safetensors"}
    for place in (MARKER, str(tmp_path), str(Path.home()), str(Path.cwd()), "site-packages"):
        assert list_files_with(place, onnx) == []
    sent = plan_upload(onnx.parent)
    assert {f"onnx/{file.name}" for file in onnx.iterdir()} < sent.names
    unsent = sent.names - plan_upload(onnx.parent, witness=False).names
    assert unsent == {"witness.safetensors", "onnx/witness.safetensors"}


def test_folders_of_a_run_name_neither_base_nor_table_nor_run(two_towers, with_head, tiny, colour_table):
    folders = [one.path / name for one in (two_towers, with_head) for name in ("merged", "adapter")]
    folders.append(with_head.path / "classifier")
    for place in (Path(tiny), colour_table.parent, two_towers.path.parent, Path.home(), Path.cwd()):
        assert list_files_with(str(place), *folders) == []


def test_names_that_users_gave_are_no_places(tmp_path):
    names = {"id2label": {"0": OPEN_IMAGES}, "label2id": {OPEN_IMAGES: 0}}
    tokens = {"added_tokens_decoder": {"5": {"content": "/a/b"}}, "sep_token": "</s>", "home": "owner/name"}
    for name, values in (("config.json", names), ("tokenizer_config.json", tokens)):
        (tmp_path / name).write_text(json.dumps(values | {"cache": "/var/cache/models"}))
        drop_paths(tmp_path)
        assert json.loads((tmp_path / name).read_text()) == values
