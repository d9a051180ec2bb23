"""The card of an exported folder: its metadata, what was measured, what was proven, and code that runs."""

import ast
import hashlib
import json
import re
import shutil
import subprocess
import textwrap

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from finetune.core.files import write_json
from finetune.export.adapter_card import describe_adapter
from finetune.export.cards import KEPT, Card, select_metrics, write_card
from finetune.export.classifier import ImageClassifier
from finetune.export.facts import Facts, fingerprint_table, read_facts
from finetune.export.merged import MergedCheckpoint
from finetune.model.base import Base
from finetune.model.licence import OF_MINI, Licence, read_licence
from finetune.run.folder import RunFolder
from finetune.run.results import format_results, format_table

from .runs import CLASSES, TEMPERATURE, open_trained

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


FACTS = Facts(
    base="ab" * 32,
    licence=Licence("mit", "as the base's own card states"),
    rows={"train": 1200, "val": 0, "test": 300},
    has_captions=False,
    classes=10,
    templates=("a photo of a {}.",),
    table="cd" * 32,
    files=1,
    datasets=(),
    versions={"align-finetune": "0.1.0", "torch": "2.13.0"},
)
HEADINGS = ["Code", "Results", "What it kept", "Training", "Intended use", "Limits", "Licence", "Proof"]


def read_card(folder, kind, proof, metrics, facts=FACTS) -> tuple[dict, dict[str, str]]:
    """The metadata, as the hub's own client reads them, and the text of each section of a card."""
    write_card(folder, kind.card("folder", proof), "birds", metrics, facts)
    card = ModelCard.load(folder / "README.md")
    title, *sections = card.text.split("\n## ")
    found = dict(section.split("\n\n", 1) for section in sections)
    return card.data.to_dict(), {"title": title.strip()} | {name: text.strip() for name, text in found.items()}


def test_card_of_a_merged_folder_has_metadata_and_all_sections(tmp_path):
    metadata, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, RETRIEVAL)
    assert metadata == {
        "license": "mit",
        "base_model": "owner/name",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["align", "align-finetune"],
    }
    assert list(text) == ["title", *HEADINGS]
    assert text["title"].startswith("# birds\n\n`owner/name`, fine-tuned by align-finetune and merged ")
    measured = (
        f"Measured on this folder, on the test rows:\n\n{format_table(RETRIEVAL)}\n\n*before* is the base, *after* "
    )
    assert text["Results"].startswith(measured)
    assert " R@K is a hit rate: " in text["Results"]
    assert text["What it kept"] == "What was lost on other domains was not measured."
    assert "plain transformers 5.23.0 reproduced this model's embeddings within 3.0e-07" in text["Proof"]
    assert "The image tower is the base's, byte for byte." in text["Proof"]
    assert "The text tower" not in text["Proof"]


def test_card_says_what_the_model_was_made_of(tmp_path):
    _, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, RETRIEVAL)
    assert text["Training"].splitlines() == [
        f"- Base: `owner/name`, weights with the fingerprint `{'ab' * 32}`.",
        "- Data: images with labels of 10 classes; 1,200 training rows, 300 test rows.",
        '- Class names were put into "a photo of a {}.".',
        f"- SHA-256 of the table: `{'cd' * 32}`; the images are no part of it.",
        "- Versions: align-finetune 0.1.0, torch 2.13.0.",
    ]
    facts = FACTS._replace(
        has_captions=True,
        classes=0,
        templates=(HOSTILE, "a", "b", "c", "d"),
        files=3,
        datasets=("owner/pets",),
        table=None,
    )
    metadata, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, RETRIEVAL, facts)
    assert metadata["datasets"] == ["owner/pets"]
    assert "- Data: images with captions; 1,200 training rows" in text["Training"]
    assert "- Data sets of the hub: `owner/pets`." in text["Training"]
    assert f'class names were put into "{SHOWN}", "a", "b", and 2 more.' in text["Training"]
    assert "SHA-256 of" not in text["Training"]


def test_card_of_a_table_with_captions_and_labels_says_what_was_learned(tmp_path):
    _, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, RETRIEVAL, FACTS._replace(has_captions=True))
    assert "- Data: images with captions, and labels of 10 classes; 1,200" in text["Training"]
    assert '- For evaluation, class names were put into "a photo of a {}.".' in text["Training"]


@pytest.mark.parametrize(
    ("base", "expected"),
    [("a/b@v1", "a/b"), ("align-mini", None), ("sha256:11300fbc7b69", None), ("/home/someone/align", None)],
)
@pytest.mark.parametrize(("kind", "proof"), [(MergedCheckpoint, MERGED_PROOF), (ImageClassifier, CLASSIFIER_PROOF)])
def test_metadata_name_a_base_of_the_hub_alone(tmp_path, kind, proof, base, expected):
    metadata, text = read_card(tmp_path, kind, proof | {"base_model": base}, {})
    assert (metadata.get("base_model"), "base_model_relation" in metadata) == (expected, expected is not None)
    assert f"`{base}`" in text["title"]


def test_card_of_a_classifier_has_metadata_table_and_proof(tmp_path):
    metadata, text = read_card(tmp_path, ImageClassifier, CLASSIFIER_PROOF, select_metrics(True, HEAD))
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["tags"] == ["align", "efficientnet", "align-finetune"]
    assert list(text) == ["title", *HEADINGS]
    results = format_results({key: part for key, part in HEAD.items() if key not in KEPT})
    assert text["Results"].startswith(
        f"Measured on this folder, on the test rows:\n\n{results}\n\n*before* is the base, "
    )
    assert (
        "*zero-shot after* the merged checkpoint, asked by text prompts, *after* this model. Intervals"
        in text["Results"]
    )
    assert "+80.0 (+70.0 to +85.0)" in text["Results"]
    assert "the temperature went from 1 to 2" in text["Results"]
    assert "R@K" not in text["Results"]
    assert "Drift 0.250" in text["What it kept"]
    assert "plain transformers 5.23.0 reproduced this model's logits within 4.0e-07 of the largest" in text["Proof"]


def test_what_was_kept_stands_in_a_table_of_its_own(tmp_path):
    difference = {"value": -0.25, "low": -0.5, "high": -0.1, "verdict": "lower"}
    table = {"metric": "test/accuracy", "before": 0.5, "after": 0.25, "relative_loss": 0.5, "difference": difference}
    retention = {"tables": {"photos": table}, "mean_relative_loss": 0.5, "worst_relative_loss": 0.5}
    _, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, RETRIEVAL | {"retention": retention})
    row = next(line for line in text["What it kept"].splitlines() if line.startswith("| photos"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["photos", "test/accuracy", "50.0 %", "25.0 %", "50.0 %", "-25.0 (-50.0 to -10.0)"]
    assert "photos" not in text["Results"]


def test_merged_card_of_a_head_holds_the_figures_by_prompts_and_not_the_heads(tmp_path):
    selected = select_metrics(False, HEAD)
    columns = {"before": HEAD["before"], "linear probe": HEAD["linear probe"], "after": HEAD["zero-shot after"]}
    assert selected == columns | {"drift": 0.25}
    interpolation = {"chosen": 0.5, "max_retention_loss": 0.05, "curve": [{"target": 0.9}]}  # the target is the head's
    chosen = select_metrics(False, HEAD | {"interpolation": interpolation})
    assert chosen == selected | {"interpolation": {"chosen": 0.5}}
    _, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, selected)
    assert text["Results"].startswith(
        f"Measured on this folder, on the test rows:\n\n{format_table(columns)}\n\n*before*"
    )
    assert "90.0 %" not in "".join(text.values())


def test_without_a_head_all_figures_are_the_merged_folders():
    assert select_metrics(False, RETRIEVAL) == RETRIEVAL
    assert select_metrics(True, HEAD) == HEAD


@pytest.mark.parametrize(("kind", "proof"), [(MergedCheckpoint, MERGED_PROOF), (ImageClassifier, CLASSIFIER_PROOF)])
def test_card_of_a_folder_that_was_not_measured_says_so(tmp_path, kind, proof):
    sentence = "Not measured: this is not the model that its run measured."
    _, text = read_card(tmp_path, kind, proof, {})
    assert text["Results"] == sentence
    _, text = read_card(tmp_path, kind, proof, {"interpolation": {"chosen": 0.25}})
    assert text["Results"].startswith(f"{sentence}\n\nInterpolation 0.25: the weights lie 25 % of the way ")


def test_card_of_a_kind_that_says_little(tmp_path):
    write_card(tmp_path, Card("a/b", "feature-extraction", ("x", "y"), "A folder.", "Proven.", "print(1)\n"), "t", {})
    head, rest = (tmp_path / "README.md").read_text().split("## Results")
    assert head == textwrap.dedent(
        """\
        ---
        base_model: a/b
        base_model_relation: finetune
        library_name: transformers
        pipeline_tag: feature-extraction
        tags:
        - x
        - y
        - align-finetune
        ---

        # t

        A folder.

        ## Code

        ```python
        print(1)
        ```

        """
    )
    assert re.findall(r"## (.*)", rest) == ["What it kept", "Limits", "Proof"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("license: cc-by-nc-4.0\nlanguage: en", ("cc-by-nc-4.0", None, None)),
        ("license: other\nlicense_name: mine\nlicense_link: LICENSE", ("other", "mine", "LICENSE")),
        ("tags: [vision]", None),
        ("license: [mit, apache-2.0]", None),
        ("license: Ask us, please", None),
        ("license: !!python/object/apply:os.system [id]", None),
        ("license: {", None),
    ],
)
def test_licence_is_what_the_bases_own_card_states(tmp_path, metadata, expected):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n\n# A base under the MIT licence\n")
    found = read_licence(Base("owner/name", tmp_path))
    assert (None if found is None else (found.identifier, found.name, found.link)) == expected


def test_licence_of_a_base_without_a_card_is_not_known(tmp_path):
    assert read_licence(Base("owner/name", tmp_path)) is None
    (tmp_path / "README.md").write_text("license: mit\n")
    assert read_licence(Base("owner/name", tmp_path)) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff")
    assert read_licence(Base("owner/name", tmp_path)) is None
    assert read_licence(Base("align-mini", tmp_path)) == OF_MINI


def test_card_says_what_to_fill_in_where_the_licence_is_not_known(tmp_path):
    metadata, text = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, {}, FACTS._replace(licence=None))
    assert "license" not in metadata
    assert text["Licence"].startswith("Not known: ")
    assert "`license:`" in text["Licence"]
    other = Licence("other", "as its card states", "mine: #1", "https://example.org/a b")
    metadata, _ = read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, {}, FACTS._replace(licence=other))
    assert [metadata[key] for key in ("license", "license_name", "license_link")] == ["other", *other[2:]]


def test_licence_is_handed_on_by_a_model_that_becomes_a_base(tmp_path):
    read_card(tmp_path, MergedCheckpoint, MERGED_PROOF, {})
    found = read_licence(Base(str(tmp_path), tmp_path))
    assert found is not None
    assert found.identifier == "mit"


def test_facts_are_those_that_a_run_keeps(two_towers, colour_table, tiny):
    facts = read_facts(RunFolder(two_towers.path), Base.open(tiny))
    splits = pd.read_csv(colour_table)["split"].value_counts()
    assert dict(facts.rows) == {name: splits[name] for name in ("train", "val", "test")}
    assert (facts.classes, facts.files, facts.datasets) == (3, 1, ())
    assert facts.templates == tuple(json.loads((two_towers.path / "environment.json").read_text())["templates"])
    assert facts.templates
    assert facts.table == hashlib.sha256(colour_table.read_bytes()).hexdigest()
    assert facts.base == Base.open(tiny).fingerprint


def test_table_of_several_files_has_the_fingerprint_that_the_shell_finds(tmp_path):
    files = []
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"image\n{name}.png\n")
        files.append({"path": name, "sha256": hashlib.sha256((tmp_path / f"{name}.csv").read_bytes()).hexdigest()})
    command = "sha256sum b.csv a.csv | cut -c1-64 | LC_ALL=C sort | sha256sum"
    shown = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert fingerprint_table(files) == shown.split()[0]
    assert fingerprint_table([]) is None
    assert fingerprint_table([*files, {"path": "https://example.org/c.csv", "version": ""}]) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hf://datasets/owner/pets@v1/data/train.parquet", ("owner/pets",)),
        ("hf://datasets/owner/pets/train.parquet", ("owner/pets",)),
        ("hf://owner/pets/train.parquet", ()),
        ("/data/datasets/owner/pets/train.csv", ()),
    ],
)
def test_data_sets_of_the_hub_are_named(tmp_path, base, path, expected):
    run = RunFolder(tmp_path)
    write_json(run.environment, {"table": [{"path": path, "version": "1"}], "classes": [], "versions": {}})
    assert read_facts(run, base).datasets == expected


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


@pytest.mark.usefixtures("photo")
def test_code_of_an_adapters_card_runs_beside_the_folder(base, run, tmp_path):
    shutil.copytree(run.adapter, tmp_path / "adapter")
    write_card(tmp_path / "adapter", describe_adapter("adapter", base), "birds", {}, FACTS)
    metadata = ModelCard.load(tmp_path / "adapter" / "README.md").data.to_dict()
    assert (metadata["library_name"], metadata["tags"]) == ("peft", ["align", "lora", "align-finetune"])
    names = {}
    exec(read_code(tmp_path / "adapter").replace('"BASE"', json.dumps(str(base.folder))), names)
    assert names["probabilities"].sum().item() == pytest.approx(1)
    assert names["model"].get_base_model().temperature.item() == pytest.approx(TEMPERATURE)


def test_card_of_an_adapter_names_a_base_of_the_hub_with_its_revision(tmp_path):
    card = describe_adapter("adapter", Base("owner/name@v1", tmp_path))
    assert (card.base_model, card.relation) == ("owner/name@v1", "adapter")
    assert 'base = "owner/name"\n' in card.code
    assert 'AlignModel.from_pretrained(base, revision="v1")' in card.code


def test_a_run_leaves_a_card_in_its_adapter(two_towers):
    card = ModelCard.load(two_towers.path / "adapter" / "README.md")
    assert card.data.library_name == "peft"
    assert card.text.startswith("\n# colours\n")
    assert "labels of 3 classes" in card.text


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
