"""A third kind of artifact, all of it in this file: written, witnessed, proven, described, and verified."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.core.errors import CheckpointError
from finetune.export.artifact import Artifact
from finetune.export.artifacts import ARTIFACTS, verify
from finetune.export.cards import Card
from finetune.metrics.statistics import mean
from finetune.run.measurement import read_measurement
from finetune.run.results import largest_differences

from ..conftest import one_process
from ..run.measured import build_measurement
from .runs import open_trained

OUTSIDE = 1.0


class TextProjection(Artifact):
    """The last layer of the text tower, for whoever has the rest: arrays of NumPy in a folder of their own."""

    name = "projection"
    origins = frozenset({"merged"})

    def __init__(self, trained):
        self.trained = trained

    @classmethod
    def of(cls, trained):
        return cls(trained)

    def write(self, folder):
        layer = self.trained.model.text_projection
        (folder / "arrays").mkdir()
        np.savez(folder / "arrays" / "projection.npz", weight=layer.weight.numpy(), bias=layer.bias.numpy())

    def witness(self):
        layer = self.trained.model.text_projection
        vectors = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0))
        return {"vectors": vectors, "projected": layer(vectors)}

    @staticmethod
    def answer(folder, witness):
        import numpy
        import torch

        arrays = numpy.load(f"{folder}/arrays/projection.npz")
        projected = witness["vectors"].numpy() @ arrays["weight"].T + arrays["bias"]
        return {"projected": torch.from_numpy(projected)}, {}

    def origin(self):
        return {"base_model": self.trained.base.name, "sha256": {"merged": self.trained.fingerprint}}

    @classmethod
    def card(cls, _folder, proof):
        worst = largest_differences(proof)["projected"]
        return Card(proof["base_model"], "feature-extraction", ("align",), "A layer.", f"Off by {worst:.1e}.", "1\n")


class Deviating(TextProjection):
    def write(self, folder):
        super().write(folder)
        path = folder / "arrays" / "projection.npz"
        arrays = dict(np.load(path))
        arrays["bias"] += 2e-5
        np.savez(path, **arrays)


class Exact(TextProjection):
    """Promises more than its arithmetic keeps."""

    exact = ("projected",)

    def witness(self):
        tensors = super().witness()
        return {**tensors, "projected": tensors["projected"] + 5e-6}


class Relative(TextProjection):
    """Answers a million times as large deviate by as much more."""

    relative = True

    def witness(self):
        tensors = super().witness()
        return {
            "vectors": 1e6 * tensors["vectors"],
            "projected": self.trained.model.text_projection(tensors["vectors"] * 1e6),
        }


class Zero(TextProjection):
    """Nothing that a difference could be relative to."""

    relative = True

    def write(self, folder):
        (folder / "arrays").mkdir()
        np.savez(
            folder / "arrays" / "projection.npz", weight=np.zeros((3, 2), np.float32), bias=np.zeros(3, np.float32)
        )

    def witness(self):
        return {"vectors": torch.ones(4, 2), "projected": torch.zeros(4, 3)}


class NeedsThisPackage(TextProjection):
    @staticmethod
    def answer(_folder, witness):
        from finetune.model.base import Base  # noqa: F401

        return {"projected": witness["projected"]}, {}


class NeedsItsModule(TextProjection):
    @staticmethod
    def answer(_folder, witness):
        return {"projected": OUTSIDE * witness["projected"]}, {}


class Lacking(TextProjection):
    @staticmethod
    def answer(_folder, witness):
        return {"projected": witness["projected"]}, {"missing_keys": ["weight", "bias"]}


class AnswersNothingRecorded(TextProjection):
    @staticmethod
    def answer(_folder, witness):
        return {"other": witness["projected"]}, {}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def outcome(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def exported(text_run, base, opener, tmp_path_factory):
    folder = tmp_path_factory.mktemp("third") / "projection"
    trained = open_trained(text_run, base)
    measured = build_measurement()
    artifact = TextProjection.of(trained)
    proof = artifact.export(folder, "birds", {"after": {"test/accuracy": 0.5}}, measured, fresh=opener)
    return trained, folder, proof


def test_a_third_kind_is_written_witnessed_proven_and_described(exported):
    trained, folder, proof = exported
    assert outcome(folder) == [
        "README.md",
        "arrays/projection.npz",
        "measurement/figures.safetensors",
        "measurement/measurement.json",
        "measurement/predictions.csv",
        "measurement/rows.csv",
        "merge_proof.json",
        "witness.safetensors",
    ]
    assert json.loads((folder / "merge_proof.json").read_text()) == proof
    assert proof["artifact"] == "projection"
    assert proof["max_abs_difference"].keys() == {"projected"}
    assert proof["max_abs_difference"]["projected"] <= proof["tolerance"] == 1e-5
    assert proof["sha256"].keys() == {"arrays/projection.npz", "witness", "merged"}
    assert proof["sha256"]["merged"] == trained.fingerprint
    assert proof["versions"].keys() == {"python", "torch", "transformers"}
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card
    assert "| test/accuracy | 50.0 % |" in card
    assert f"Off by {proof['max_abs_difference']['projected']:.1e}." in card
    figure = read_measurement(folder / "measurement").test.figures["test/accuracy"]
    assert figure.point_estimate() == mean(torch.tensor([0.0, 1.0, 1.0])).point_estimate()


def test_a_third_kind_is_verified_once_it_is_among_the_kinds(exported, tmp_path, opener):
    _, folder, proof = exported
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    with pytest.raises(CheckpointError, match="to be a proof with its kind and hashes"):
        verify(copy)
    with one_process(opener):
        found = verify(copy, (*ARTIFACTS, TextProjection))
    assert found["max_abs_difference"] == proof["max_abs_difference"]
    assert found["sha256"] == {name: proof["sha256"][name] for name in ("arrays/projection.npz", "witness")}
    with (copy / "arrays" / "projection.npz").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"Expected the arrays/projection\.npz of .* to have SHA-256"):
        verify(copy, (*ARTIFACTS, TextProjection))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Deviating, r"to reproduce the witness within 1e-05 of the adapted model, but got differences \{'projected'"),
        slow(Exact, r"to reproduce the witness within 1e-05 of the adapted model, but got differences \{'projected'"),
        (
            NeedsThisPackage,
            "a fresh process, without this package, but got: ModuleNotFoundError: No module named 'finetune.model'",
        ),
        slow(NeedsItsModule, "but got: NameError: name 'OUTSIDE' is not defined"),
        slow(Lacking, "to load without missing_keys, but got bias and 1 more"),
        slow(AnswersNothingRecorded, "but got: KeyError: 'other'"),
    ],
)
def test_what_does_not_answer_as_the_model_by_itself_leaves_no_folder(text_run, base, tmp_path, kind, message):
    with pytest.raises(CheckpointError, match=message):
        kind(open_trained(text_run, base)).export(tmp_path / "projection", "birds", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [Relative, slow(Zero)])
def test_differences_may_be_relative_to_the_largest_answer(text_run, base, tmp_path, opener, kind):
    proof = kind(open_trained(text_run, base)).export(tmp_path / "projection", "birds", {}, fresh=opener)
    assert proof["max_relative_difference"]["projected"] <= 1e-6
    assert "max_abs_difference" not in proof


def test_kinds_have_names_and_folders_of_their_own():
    assert [kind.name for kind in ARTIFACTS] == ["merged", "classifier"]
    assert all(kind.origins for kind in ARTIFACTS)
