"""Towers and classifier in ONNX: what onnxruntime answers is what plain transformers do; failures leave nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignModel, AlignProcessor, AutoModelForImageClassification

from finetune.commands.cli import main
from finetune.core.errors import CheckpointError, RecipeError
from finetune.export import onnx_files
from finetune.export.artifacts import verify
from finetune.export.classifier import ImageClassifier
from finetune.export.merged import MergedCheckpoint
from finetune.export.onnx_files import ImageTower, OnnxFiles, require_onnx
from finetune.export.onnx_proof import prove_onnx
from finetune.model.base import Base
from finetune.model.lora import TowerLora

from .runs import CLASSES, adapt, open_trained, train_head, write_run

pytestmark = pytest.mark.usefixtures("share_opener")

FILES = ["image", "text", "classifier"]
BLOCKED = 'import sys\nsys.modules.update(dict.fromkeys(["torch", "transformers", "finetune"]))\n'


@pytest.fixture(scope="module", params=["tiny", "align-mini"])
def exported(request, tiny, batch, opener, tmp_path_factory):
    """A run with both towers adapted and a head, and its merged folder with all three files."""
    base = Base.open(tiny if request.param == "tiny" else request.param)
    path = tmp_path_factory.mktemp("onnx")
    towers = adapt(base, TowerLora(rank=2), TowerLora(rank=2))
    run = write_run(path, base, towers, batch, train_head(towers, batch))
    trained = open_trained(run, base)
    proof = MergedCheckpoint(trained).export(run.merged, "birds", {}, fresh=opener, onnx=OnnxFiles(trained))
    classifier = path / "plain classifier"
    classifier.mkdir()
    ImageClassifier.of(trained).write(classifier)
    return SimpleNamespace(run=run, trained=trained, folder=run.merged, proof=proof, classifier=classifier)


def ask(folder: Path, name: str, **inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(answer)


def assert_close(answer: torch.Tensor, expected: torch.Tensor) -> None:
    assert answer.shape == expected.shape
    assert expected.std() > 1e-3
    assert (answer - expected).abs().max() <= 1e-4 * min(1.0, expected.abs().max())
    answer, expected = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in (answer, expected))
    assert (answer - expected).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_images_are_answered_as_plain_transformers_do_in_any_batch(exported, rows):
    side = exported.trained.witness["pixel_values"].shape[-1]
    pixels = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(rows))
    with torch.no_grad():
        features = AlignModel.from_pretrained(exported.folder).get_image_features(pixel_values=pixels).pooler_output
        logits = AutoModelForImageClassification.from_pretrained(exported.classifier)(pixels).logits
    assert_close(ask(exported.folder, "image", pixel_values=pixels), features)
    assert_close(ask(exported.folder, "classifier", pixel_values=pixels), logits)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 2), (2, 5), (7, 33), (2, 64), (1, 200)])
def test_texts_are_answered_as_plain_transformers_do_in_any_batch_length_and_padding(exported, rows, length):
    generator = torch.Generator().manual_seed(length)
    mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)).long()
    ids = torch.randint(1000, 2000, (rows, length), generator=generator)
    texts = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        expected = AlignModel.from_pretrained(exported.folder).get_text_features(**texts).pooler_output
    assert_close(ask(exported.folder, "text", **texts), expected)


@pytest.mark.slow
def test_proof_tells_how_close_each_file_is(exported):
    found = exported.proof["onnx"]
    assert found["tolerance"] == 1e-4
    assert found["versions"] == {"onnxruntime": onnxruntime.__version__}
    assert {name: {*measures} for name, measures in found["differences"].items()} == {
        "classifier": {"raw"},
        "image": {"normalised", "raw"},
        "text": {"normalised", "raw"},
    }
    assert all(0 <= value <= 1e-4 for measures in found["differences"].values() for value in measures.values())
    assert {*(f"onnx/{name}.onnx" for name in FILES), "onnx/witness.safetensors"} < exported.proof["sha256"].keys()
    assert json.loads((exported.folder / "merge_proof.json").read_text()) == exported.proof


@pytest.mark.slow
def test_files_have_free_batch_and_length_and_name_no_place_of_this_machine(exported):
    shapes = {}
    for name in FILES:
        path = exported.folder / "onnx" / f"{name}.onnx"
        graph = onnx.load(path).graph
        onnx.checker.check_model(str(path))
        dimensions = {one.name: one.type.tensor_type.shape.dim for one in (*graph.input, *graph.output)}
        shapes[name] = {key: [one.dim_value or "any" for one in of] for key, of in dimensions.items()}
        assert not [
            word for word in (b".py", b"site-packages", b"/home", b"/root", b"/tmp") if word in path.read_bytes()
        ]
    side, width = (
        exported.trained.witness["pixel_values"].shape[-1],
        exported.trained.witness["image_features"].shape[1],
    )
    pixels = {"pixel_values": ["any", 3, side, side]}
    tokens = {"input_ids": ["any", "any"], "attention_mask": ["any", "any"]}
    assert shapes == {
        "image": {**pixels, "image_features": ["any", width]},
        "text": {**tokens, "text_features": ["any", width]},
        "classifier": {**pixels, "logits": ["any", len(CLASSES)]},
    }


@pytest.mark.slow
def test_code_of_the_card_needs_neither_torch_nor_transformers_and_gives_the_same_vectors(exported, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (130, 170, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / exported.folder.name).symlink_to(exported.folder)
    code = (exported.folder / "README.md").read_text().split("## ONNX\n")[1].split("```python\n")[1].split("```")[0]
    kept = 'np.savez("found.npz", image=image_features, text=text_features, logits=logits, similarity=similarity)\n'
    (tmp_path / "serve.py").write_text(BLOCKED + code + kept)
    done = subprocess.run([sys.executable, "serve.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: torch.from_numpy(array) for name, array in np.load(tmp_path / "found.npz").items()}
    image = Image.open(tmp_path / "photo.png")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    processor = AlignProcessor.from_pretrained(exported.folder, backend="pil")
    inputs = processor(images=image, text=["an image of a cat", "an image of a dog"], return_tensors="pt")
    with torch.no_grad():
        expected = AlignModel.from_pretrained(exported.folder)(**inputs)
        logits = AutoModelForImageClassification.from_pretrained(exported.classifier)(inputs["pixel_values"]).logits
    assert_close(found["logits"], logits)
    for name in ("image", "text"):
        normalised = torch.nn.functional.normalize(found[name], dim=-1)
        assert (normalised - expected[f"{name}_embeds"]).abs().max() <= 1e-4
    similarity = expected.image_embeds @ expected.text_embeds.T
    assert (found["similarity"] - similarity).abs().max() <= 1e-4
    assert CLASSES[int(logits.argmax())] in done.stdout


@pytest.mark.slow
def test_folder_of_a_classifier_has_the_classifier_alone(exported, opener, tmp_path):
    artifact, files = ImageClassifier.of(exported.trained), OnnxFiles(exported.trained, only_classifier=True)
    proof = artifact.export(tmp_path / "pets", "pets", {}, fresh=opener, onnx=files)
    assert [*proof["onnx"]["differences"]] == ["classifier"]
    assert sorted(path.name for path in (tmp_path / "pets" / "onnx").iterdir()) == [
        "classifier.onnx",
        "witness.safetensors",
    ]
    card = (tmp_path / "pets" / "README.md").read_text()
    assert "tokenizers" not in card
    assert 'open_onnx("classifier.onnx")' in card


@pytest.mark.slow
def test_verify_asks_the_files_again_and_notices_a_change(exported, tmp_path):
    copy = Path(shutil.copytree(exported.folder, tmp_path / "copy"))
    assert verify(copy)["onnx"] == exported.proof["onnx"]
    path = copy / "onnx" / "text.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"Expected the onnx/text.onnx of .* to have SHA-256"):
        verify(copy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image.1.image_features", 0.01),
        ("text.0.text_embeds", 0.01),
        ("text.2.text_features", float("nan")),
        ("classifier.0.logits", 0.01),
    ],
)
def test_an_answer_that_deviates_is_refused(exported, tmp_path, name, value):
    shutil.copytree(exported.folder / "onnx", tmp_path / "onnx")
    witness = tmp_path / "onnx" / "witness.safetensors"
    tensors = load_file(witness)
    tensors[name][0, 0] += value * tensors[name].abs().max()
    save_file(tensors, witness)
    with pytest.raises(CheckpointError, match=rf"Expected onnx/{name.split('.')[0]}.onnx to compute what the merged"):
        prove_onnx(tmp_path)


@pytest.mark.slow
def test_a_tower_that_deviates_leaves_nothing(exported, opener, tmp_path, monkeypatch):
    def forward(self, pixel_values):
        return self.tower.encoder(self.tower.embeddings(pixel_values)).last_hidden_state[:, :, 1:, 1:].mean((2, 3))

    monkeypatch.setattr(ImageTower, "forward", forward)
    trained = exported.trained
    with pytest.raises(CheckpointError, match=r"Expected onnx/\w+.onnx to compute what the merged model does within"):
        MergedCheckpoint(trained).export(tmp_path / "x", "x", {}, fresh=opener, onnx=OnnxFiles(trained))
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_repair(monkeypatch):
    monkeypatch.setattr(onnx_files, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(RecipeError, match=r"but got no no_such_package. Run: pip install 'align-finetune\[onnx\]'"):
        require_onnx()


@pytest.mark.slow
def test_command_writes_the_files_and_prints_nothing_of_the_exporter(with_head, tmp_path, capfd):
    assert main(["export", str(with_head.path), "--output", str(tmp_path / "out"), "--onnx"]) == 0
    out, error = capfd.readouterr()
    proof, head = out.splitlines()
    assert "; onnx/image.onnx within " in proof
    assert head.startswith("the run has a head: ")
    assert not error
    assert sorted(path.stem for path in (tmp_path / "out" / "onnx").glob("*.onnx")) == sorted(FILES)
    assert main(["verify", str(tmp_path / "out")]) == 0
    words = ["--classifier", "--onnx"]
    assert main(["export", str(with_head.path), "--output", str(tmp_path / "classifier"), *words]) == 0
