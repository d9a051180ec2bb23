"""The card of an exported folder: its metadata, what was measured, what was proven, and code that runs."""

import ast
import re
import textwrap

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune.export.cards import Card, select_metrics, write_card
from finetune.export.classifier import ImageClassifier
from finetune.export.merged import MergedCheckpoint
from finetune.run.results import format_results, format_table

from .runs import CLASSES, open_trained

RETRIEVAL = {
    "before": {"test/image_to_text/R@1": 0.125, "test/image_to_text/median_rank": 7.0},
    "after": {"test/image_to_text/R@1": 0.5, "test/image_to_text/median_rank": 1.5},
}
HEAD = {
    "before": {"test/accuracy": 0.1},
    "linear probe": {"test/accuracy": 0.5},
    "zero-shot after": {"test/accuracy": 0.3},
    "after": {"test/accuracy": 0.9},
    "difference": {"test/accuracy": {"value": 0.8, "low": 0.7, "high": 0.85, "verdict": "higher"}},
    "calibration": {
        "temperature": {"trained": 1.0, "fitted": 2.0},
        "expected_calibration_error": {"trained": 0.2, "fitted": 0.1},
        "of_a_calibrated_model": {"trained": 0.1, "fitted": 0.1},
        "bins": [],
    },
    "drift": 0.25,
}
MERGED_PROOF = {
    "base_model": "owner/name",
    "identical_to_base": {"image": True, "text": False},
    "max_abs_difference": {"image": 2e-7, "text": 3e-7},
    "versions": {"transformers": "5.23.0"},
}
CLASSIFIER_PROOF = {
    "base_model": "owner/name",
    "max_relative_difference": {"logits": 4e-7},
    "versions": {"transformers": "5.23.0"},
}


def read_card(folder, kind, proof, metrics) -> tuple[dict, str]:
    """The metadata and the text of a card."""
    write_card(folder, kind.card("folder", proof), "birds", metrics)
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_card_of_a_merged_folder_has_metadata_table_and_proof(tmp_path):
    metadata, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, RETRIEVAL)
    assert metadata == {
        "base_model": "owner/name",
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["align"],
    }
    assert text.startswith("\n# birds\n\n`owner/name`, fine-tuned with LoRA by align-finetune and merged. ")
    assert f"Measured on this folder:\n\n{format_table(RETRIEVAL)}\n\nR@K is a hit rate: " in text
    assert "plain transformers 5.23.0 reproduced this model's embeddings within 3.0e-07" in text
    assert "The image tower is the base's, byte for byte." in text
    assert "The text tower" not in text


@pytest.mark.parametrize(
    ("base", "expected"),
    [("a/b@v1", "a/b"), ("align-mini", None), ("sha256:11300fbc7b69", None), ("/home/someone/align", None)],
)
@pytest.mark.parametrize(("kind", "proof"), [(MergedCheckpoint, MERGED_PROOF), (ImageClassifier, CLASSIFIER_PROOF)])
def test_metadata_name_a_base_of_the_hub_alone(tmp_path, kind, proof, base, expected):
    metadata, text = read_card(tmp_path, kind, proof | {"base_model": base}, {})
    assert metadata.get("base_model") == expected
    assert f"`{base}`" in text


def test_card_of_a_classifier_has_metadata_table_and_proof(tmp_path):
    metadata, text = read_card(tmp_path, ImageClassifier, CLASSIFIER_PROOF, select_metrics(True, HEAD))
    assert metadata == {
        "base_model": "owner/name",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["align", "efficientnet"],
    }
    assert f"Measured on this folder:\n\n{format_results(HEAD)}\n\nA fresh process" in text
    assert "the temperature went from 1 to 2" in text
    assert "R@K" not in text
    assert "plain transformers 5.23.0 reproduced this model's logits within 4.0e-07 of the largest" in text


def test_merged_card_of_a_head_holds_the_figures_by_prompts_and_not_the_heads(tmp_path):
    selected = select_metrics(False, HEAD)
    columns = {"before": HEAD["before"], "linear probe": HEAD["linear probe"], "after": HEAD["zero-shot after"]}
    assert selected == columns | {"drift": 0.25}
    _, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, selected)
    assert f"Measured on this folder:\n\n{format_table(columns)}\n\nDrift 0.250" in text
    assert "90.0 %" not in text
    assert "temperature" not in text


def test_without_a_head_all_figures_are_the_merged_folders():
    assert select_metrics(False, RETRIEVAL) == RETRIEVAL
    assert select_metrics(True, HEAD) == HEAD


@pytest.mark.parametrize(("kind", "proof"), [(MergedCheckpoint, MERGED_PROOF), (ImageClassifier, CLASSIFIER_PROOF)])
def test_card_of_a_folder_that_was_not_measured_says_so(tmp_path, kind, proof):
    sentence = "Not measured: this is not the model that its run measured."
    _, text = read_card(tmp_path, kind, proof, {})
    assert f" {sentence}\n\nA fresh process" in text
    _, text = read_card(tmp_path, kind, proof, {"interpolation": {"chosen": 0.25}})
    assert f" {sentence}\n\nInterpolation 0.25: the weights lie 25 % of the way " in text
    assert "Measured on this folder" not in text


def test_card_of_a_kind_that_says_little(tmp_path):
    write_card(tmp_path, Card("a/b", "feature-extraction", ("x", "y"), "A folder.", "Proven.", "print(1)\n"), "t", {})
    assert (tmp_path / "README.md").read_text() == textwrap.dedent(
        """\
        ---
        base_model: a/b
        library_name: transformers
        pipeline_tag: feature-extraction
        tags: [x, y]
        ---

        # t

        A folder. Not measured: this is not the model that its run measured.

        Proven.

        ```python
        print(1)
        ```
        """
    )


def read_code(folder) -> str:
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A picture in the working directory, as the card's code expects it."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")


@pytest.mark.usefixtures("photo")
def test_code_of_a_merged_card_runs_beside_the_folder(base, run, tmp_path):
    artifact = MergedCheckpoint(open_trained(run, base))
    (tmp_path / "merged").mkdir()
    artifact.write(tmp_path / "merged")
    write_card(tmp_path / "merged", artifact.card("merged", MERGED_PROOF), "birds", {})
    names = {}
    exec(read_code(tmp_path / "merged"), names)
    assert names["probabilities"].shape == (1, 2)
    assert names["probabilities"].sum().item() == pytest.approx(1)


@pytest.mark.usefixtures("photo")
def test_code_of_a_classifiers_card_runs_beside_the_folder(base, head_run, tmp_path, capsys):
    artifact = ImageClassifier.of(open_trained(head_run, base))
    (tmp_path / "pets").mkdir()
    artifact.write(tmp_path / "pets")
    write_card(tmp_path / "pets", artifact.card("pets", CLASSIFIER_PROOF), "birds", {})
    exec(read_code(tmp_path / "pets"), {})
    assert any(name in capsys.readouterr().out for name in CLASSES)


HOSTILE = "<img src=x onerror=alert(1)> [a](javascript:b) | `c`\n# d\x1b[31m\u202e <script>"
SHOWN = r"&lt;img src=x onerror=alert(1)&gt; \[a\](javascript:b) \| \`c\` \# d\\x1b\[31m\\u202e &lt;script&gt;"


def test_names_of_strangers_are_text_in_a_card(tmp_path):
    table = {"metric": "test/accuracy", "before": 0.5, "after": 0.5, "relative_loss": 0.0}
    retention = {"tables": {HOSTILE: table}, "mean_relative_loss": 0.0, "worst_relative_loss": 0.0}
    card = MergedCheckpoint.card('a"); import os #', MERGED_PROOF)
    write_card(tmp_path, card, HOSTILE, RETRIEVAL | {"retention": retention})
    text = (tmp_path / "README.md").read_text()
    assert text.count(SHOWN) == 2
    assert not [sign for sign in ("<img", "<script", "\x1b", "\u202e") if sign in text]
    row = next(line for line in text.splitlines() if line.startswith("| &lt;img"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    code = ast.parse(text.split("```python\n")[1].split("```")[0])
    imported = [node for node in ast.walk(code) if isinstance(node, ast.Import)]
    assert not imported
    assert 'a"); import os #' in {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
