"""What runs export between base and adapter, at the fitted temperature; and exported once more."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignModel, AlignProcessor, AutoModelForImageClassification

from finetune.commands.cli import main
from finetune.core.errors import CheckpointError, RecipeError, TableError
from finetune.core.files import fingerprint_file
from finetune.core.interpolation import Interpolation, parse_interpolation
from finetune.export.choose_interpolation import INTERPOLATIONS
from finetune.pipeline.export_run import export_run
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.run_recipe import run_recipe
from finetune.run.folder import RunFolder

from ..fingerprints import fingerprint_weights

pytestmark = pytest.mark.usefixtures("share_opener")

HEAD = ["--model", "finetune.ClassificationTask"]
PROMPT = "a photo of a {}."


def fit(folder, tiny, table, *words) -> RunFolder:
    """A finished run on the colours, with their captions for a retention table."""
    recipe = folder / "colours.yaml"
    recipe.write_text(
        f"model:\n  checkpoint: {tiny}\n  image_lora:\n    rank: 2\n"
        f"data:\n  table:\n    path: {table}\n    label: label\n    split: split\n"
        f"  retention:\n    - path: {table}\n      caption: caption\n      split: split\n"
        "trainer:\n  max_epochs: 2\n  accelerator: cpu\n  enable_progress_bar: false\n"
        f"run:\n  folder: {folder / 'runs'}\n"
    )
    return run_recipe(read_recipe(recipe, [*words]))


@pytest.fixture(scope="module")
def run(tiny, colour_table, tmp_path_factory) -> RunFolder:
    return fit(tmp_path_factory.mktemp("prompts"), tiny, colour_table, "--run.interpolation", "0.6")


def same_tensors(one, two) -> bool:
    return fingerprint_weights(one) == fingerprint_weights(two)


def test_folder_says_where_it_lies(run):
    metrics = json.loads(run.metrics.read_text())
    assert metrics["interpolation"] == {"chosen": 0.6}
    proof = json.loads((run.merged / "merge_proof.json").read_text())
    assert proof["interpolation"] == 0.6
    assert proof["temperature"] == metrics["calibration"]["temperature"]["fitted"]
    assert proof["temperature"] == AlignModel.from_pretrained(run.merged).temperature.item()
    assert "Interpolation 0.6: " in (run.merged / "README.md").read_text()
    sidecar = json.loads((run.adapter / "temperature.json").read_text())["temperature"]
    assert sidecar == load_file(run.witness)["temperature"].item()  # adapter and witness are all that was trained
    assert metrics["calibration"]["temperature"]["trained"] == pytest.approx(0.4 * 1.0 + 0.6 * sidecar)


def test_plain_softmax_over_the_prompts_has_the_calibration_that_is_reported(run, colour_table):
    """With one template the class scores are those of the model card."""
    metrics = json.loads(run.metrics.read_text())
    model, processor = AlignModel.from_pretrained(run.merged), AlignProcessor.from_pretrained(run.merged)
    rows = pd.read_csv(colour_table).query("split == 'test'")
    classes = sorted(set(rows["label"]))
    images = [Image.open(colour_table.parent / name).convert("RGB") for name in rows["image"]]
    texts = [PROMPT.replace("{}", name) for name in classes]
    with torch.no_grad():
        logits = model(**processor(images=images, text=texts, return_tensors="pt")).logits_per_image
    best = logits.argmax(dim=1).numpy()
    right = np.array(classes)[best] == rows["label"].to_numpy()

    def calibration(scores):
        sure = scores.softmax(dim=1).amax(dim=1).numpy()
        bins = np.minimum((sure * 15).astype(int), 14)
        return sure, bins, sum((bins == i).mean() * abs((right - sure)[bins == i].mean()) for i in set(bins))

    temperature, reported = (metrics["calibration"][key] for key in ("temperature", "expected_calibration_error"))
    sure, bins, error = calibration(logits)
    assert reported["fitted"] == pytest.approx(error, abs=1e-4)
    assert reported["trained"] == pytest.approx(
        calibration(logits * temperature["fitted"] / temperature["trained"])[2], abs=1e-4
    )
    assert reported["fitted"] == pytest.approx(metrics["after"]["test/expected_calibration_error"], abs=1e-6)
    part = metrics["calibration"]["bins"][bins[0]]
    assert part["confidence"] == pytest.approx(sure[bins == bins[0]].mean(), abs=1e-4)
    assert part["accuracy"] == pytest.approx(right[bins == bins[0]].mean())


@pytest.mark.slow
def test_a_classifier_that_is_clearly_too_unsure_is_made_surer(tiny, colour_table, tmp_path):
    """A probe of colours, all told apart, at a scale that gives each of them less than half."""
    words = ["--model.head_start", "finetune.FromProbe", "--model.image_lora", "null"]
    words += ["--model.head_start.smoothing", "0.8"]
    words += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-9"]
    run = fit(tmp_path, tiny, colour_table, *HEAD, *words)
    metrics = json.loads(run.metrics.read_text())
    temperature = metrics["calibration"]["temperature"]
    assert temperature["fitted"] < 0.5 * temperature["trained"]
    head = load_file(run.head)  # the start is at the same temperature, so that what lies between ranks alike
    torch.testing.assert_close(head["start_weight"], head["weight"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(head["start_bias"], head["bias"], rtol=1e-5, atol=1e-6)
    model = AutoModelForImageClassification.from_pretrained(run.classifier)
    processor = AlignProcessor.from_pretrained(tiny, backend="pil").image_processor
    rows = pd.read_csv(colour_table).query("split == 'test'")
    images = [Image.open(colour_table.parent / name).convert("RGB") for name in rows["image"]]
    with torch.no_grad():
        logits = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    for name, scale in (("fitted", 1.0), ("trained", temperature["fitted"] / temperature["trained"])):
        sure = (scale * logits).softmax(dim=1).amax(dim=1)
        assert metrics["after"]["test/accuracy"] == 1  # so the error is what is missing to 1
        error = metrics["calibration"]["expected_calibration_error"][name]
        assert error == pytest.approx(1 - sure.mean().item(), abs=1e-4)
    for name, labels in (("renamed", {"red": "rot"}), ("fewer", {"red": "blue"})):
        path = tmp_path / f"{name}.csv"
        pd.read_csv(colour_table, dtype=str).replace({"label": labels}).to_csv(path, index=False)
        words = ["--data.table.path", str(path), "--data.table.images", str(colour_table.parent)]
        with pytest.raises(TableError, match="the classifier's 3 classes, blue, green, red, but got [23]: blue"):
            export_run(run.path, tmp_path / "never", interpolation="auto", classifier=True, overrides=words)


def test_export_repeats_what_the_run_exported_bit_for_bit(run, tmp_path, capsys):
    assert main(["export", str(run.path), "--output", str(tmp_path / "again")]) == 0
    screen = capsys.readouterr().out
    assert re.search(r"reproduces the interpolated model within .*; the tolerance is 1e-05", screen)
    assert "has a head" not in screen
    assert same_tensors(tmp_path / "again", run.merged)
    assert "Measured on this folder" in (tmp_path / "again" / "README.md").read_text()
    for file in sorted((run.merged / "measurement").iterdir()):
        assert (tmp_path / "again" / "measurement" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("words", [[], ["--classifier"]])
def test_of_a_run_with_a_head_the_command_says_where_its_classifier_is(with_head, tmp_path, capsys, words):
    assert main(["export", str(with_head.path), "--output", str(tmp_path / "again"), *words]) == 0
    hint = f"\nthe run has a head: its classifier is {with_head.path / 'classifier'}; --classifier exports it\n"
    assert (hint in capsys.readouterr().out) is not bool(words)


@pytest.mark.slow
def test_a_run_that_was_moved_exports_the_same_under_its_new_name(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "elsewhere" / "renamed")
    monkeypatch.chdir(tmp_path / "elsewhere" / "renamed")
    export_run(".", tmp_path / "again")
    assert same_tensors(tmp_path / "again", run.merged)
    assert "\n# renamed\n" in (tmp_path / "again" / "README.md").read_text()


def test_another_base_under_the_same_name_is_refused(run, tiny, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    other = Path(shutil.copytree(tiny, tmp_path / "base")) / "model.safetensors"
    tensors = load_file(other)
    save_file(tensors | {"temperature": tensors["temperature"] + 1}, other, metadata={"format": "pt"})
    environment = json.loads(run.environment.read_text())
    environment["checkpoint"]["name"] = str(tmp_path / "base")
    (tmp_path / "run" / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(CheckpointError, match=r"base, to have SHA-256 \w{64}, but got \w{64}. Put back the checkpoint"):
        export_run(tmp_path / "run", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_export_at_another_interpolation_says_that_it_was_not_measured(run, tiny, tmp_path):
    assert main(["export", str(run.path), "--output", str(tmp_path / "base"), "--interpolation", "0"]) == 0
    assert same_tensors(tmp_path / "base", Path(tiny))
    card = (tmp_path / "base" / "README.md").read_text()
    assert "Not measured: this is not the model that its run measured." in card
    assert "test/accuracy" not in card
    assert not (tmp_path / "base" / "measurement").exists()


@pytest.mark.slow
def test_export_chooses_anew_on_the_recipes_tables(run, tmp_path):
    words = ["--interpolation", "auto", "--run.max_retention_loss", "0.3"]
    assert main(["export", str(run.path), "--output", str(tmp_path / "chosen"), *words]) == 0
    proof = json.loads((tmp_path / "chosen" / "merge_proof.json").read_text())
    chosen = Interpolation.of(parse_interpolation(proof["interpolation"]))
    assert {weight for weights in chosen.by_tower().values() for weight in weights} <= {*INTERPOLATIONS}
    assert "the limit 30.0 %" in (tmp_path / "chosen" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--interpolation", "1.5"], "Expected --interpolation to be in [0, 1], but got 1.5"),
        (["--interpolation", "auto", "--data.retention", "null"], "Expected data.retention to name a table"),
        (["--run.seed", "1"], "Expected recipe keys with --interpolation auto only, but got --run.seed"),
        (["--classifier"], "to have a head, but it trained none. Export without --classifier"),
    ],
)
def test_faults_of_an_export_are_reported_and_leave_no_folder(run, tmp_path, capsys, words, message):
    assert main(["export", str(run.path), "--output", str(tmp_path / "never"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_refused_before_anything_is_measured(run, tmp_path):
    with pytest.raises(FileExistsError, match="Remove it or pass --overwrite"):
        export_run(run.path, tmp_path, interpolation="auto", overrides=["--data.table.path", "nowhere.csv"])


@pytest.mark.slow
def test_what_no_export_wrote_is_not_replaced(run, tmp_path, capsys):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "photos.csv").touch()
    for folder in (run.path, run.path.parent, tmp_path / "project", run.path / "recipe.yaml"):
        assert main(["export", str(run.path), "--output", str(folder), "--overwrite"]) == 2
        assert "to be absent, empty or written by this command" in capsys.readouterr().err
    assert run.is_finished
    assert run.adapter.is_dir()
    shutil.copytree(run.merged, tmp_path / "again")
    (tmp_path / "again" / "model.safetensors").unlink()
    assert main(["export", str(run.path), "--output", str(tmp_path / "again"), "--overwrite"]) == 0
    assert same_tensors(tmp_path / "again", run.merged)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "most",
            "to be a number from 0 to 1, auto, or a weight for each tower, but got 'most'. Write it",
        ),
        ("image=0.7", "to have weights for both towers, image and text, but got none for text. Write it"),
    ],
)
def test_what_is_no_interpolation_is_refused_before_the_run_is_opened(word, message, capsys):
    assert main(["export", "no_run", "--output", "x", "--interpolation", word]) == 2
    assert capsys.readouterr().err.startswith(f"error: Expected --interpolation {message}")


def test_export_at_a_profile_is_the_average_by_tower_and_is_measured_by_no_one(run, tiny, tmp_path, capsys):
    words = ["export", str(run.path), "--interpolation", "image=1:0.5,text=0", "--output", str(tmp_path / "falling")]
    assert main(words) == 0
    assert "reproduces the interpolated model within " in capsys.readouterr().out
    proof = json.loads((tmp_path / "falling" / "merge_proof.json").read_text())
    assert proof["interpolation"] == {"image": [1.0, 0.5], "text": [0.0, 0.0]}
    assert proof["identical_to_base"] == {"image": False, "text": True}
    export_run(run.path, tmp_path / "trained", interpolation=1)
    before, trained, found = (
        load_file(folder / "model.safetensors") for folder in (Path(tiny), tmp_path / "trained", tmp_path / "falling")
    )
    blocks = max(int(name.split(".")[3]) for name in before if ".encoder.blocks." in name)
    moved = 0
    for name, tensor in found.items():
        if name.startswith("vision_model.") and not before[name].equal(trained[name]):
            depth = int(name.split(".")[3]) / blocks
            expected = (0.5 * depth) * before[name].double() + (1 - 0.5 * depth) * trained[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-8)
            moved += 1
    assert moved > 10
    card = (tmp_path / "falling" / "README.md").read_text()
    assert "Not measured: this is not the model that its run measured." in card
    assert "lie 100 % (first block) to 50 % (last block) of the way" in card
    export_run(run.path, tmp_path / "again", interpolation=Interpolation((0.6, 0.6), (0.6, 0.6)))  # the run's own
    assert same_tensors(tmp_path / "again", run.merged)
    assert "Not measured" not in (tmp_path / "again" / "README.md").read_text()


@pytest.fixture
def moved(colour_table, tmp_path) -> list[str]:
    """A table in which three rows that were trained on are validation rows, with other labels than before."""
    rows = pd.read_csv(colour_table, dtype=str)
    rows.loc[:2, "split"] = "val"
    rows.loc[:2, "label"] = ["green", "blue", "red"]
    rows.to_csv(tmp_path / "moved.csv", index=False)
    return ["--data.table.path", str(tmp_path / "moved.csv"), "--data.table.images", str(colour_table.parent)]


@pytest.mark.slow
def test_auto_does_not_choose_by_rows_that_were_trained_on_unless_asked_to(run, moved, tmp_path, capsys):
    folders = [tmp_path / name for name in ("unseen", "before", "all")]
    export_run(run.path, folders[0], interpolation="auto", overrides=moved)
    told = capsys.readouterr().err
    assert "table, since the training: 3 rows with another text or label: '0.png', '1.png', '2.png'\n" in told
    left_out = "3 rows of the split 'val', whose images the run has seen as train: '0.png', '1.png', '2.png'."
    assert f"warning: Leaves out {left_out} --anyway counts them.\n" in told
    export_run(run.path, folders[1], interpolation="auto")
    assert "table" not in capsys.readouterr().err
    export_run(run.path, folders[2], interpolation="auto", overrides=moved, anyway=True)
    assert f"warning: Counts {left_out}\n" in capsys.readouterr().err
    unseen, before, everything = (json.loads((folder / "merge_proof.json").read_text()) for folder in folders)
    assert unseen["temperature"] == before["temperature"] < everything["temperature"]  # which are wrong and sure


def test_auto_with_nothing_but_rows_that_were_trained_on_is_refused(run, moved, tmp_path):
    words = [*moved, "--data.table.filter", "split != 'val' or label == 'green' and image == '0.png'"]
    with pytest.raises(RecipeError, match=r"Expected a row that the run has not seen, but got only 1 row of the split"):
        export_run(run.path, tmp_path / "never", interpolation="auto", overrides=words)
    with pytest.raises(RecipeError, match=r"Expected --anyway with --interpolation auto only"):
        export_run(run.path, tmp_path / "never", anyway=True)
    assert not (tmp_path / "never").exists()


def test_auto_without_retention_is_refused_before_anything_is_written(tiny, colour_table, tmp_path):
    with pytest.raises(RecipeError, match="Expected data.retention to name a table for run.interpolation auto"):
        fit(tmp_path, tiny, colour_table, "--run.interpolation", "auto", "--data.retention", "null")
    assert [path.name for path in tmp_path.iterdir()] == ["colours.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["1.0", "0.6"])
def test_classifier_is_exported_and_repeated_at_its_interpolation(tiny, colour_table, tmp_path, interpolation):
    run = fit(tmp_path, tiny, colour_table, "--run.interpolation", interpolation, *HEAD)
    metrics, proof = (json.loads(path.read_text()) for path in (run.metrics, run.classifier / "merge_proof.json"))
    temperature = metrics["calibration"]["temperature"]
    assert temperature["trained"] == 1.0  # that of the base, which the head took in
    assert proof["interpolation"] == float(interpolation)
    assert proof["scale"] == pytest.approx(1 / temperature["fitted"])
    if interpolation == "1.0":  # the head and the witness are what was trained, whatever the temperature
        recorded = load_file(run.witness)
        with torch.no_grad():
            logits = AutoModelForImageClassification.from_pretrained(run.classifier)(recorded["pixel_values"]).logits
        expected = recorded["logits"] / temperature["fitted"]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert AlignModel.from_pretrained(run.merged).temperature == 1.0
    error = metrics["after"]["test/expected_calibration_error"]
    assert metrics["calibration"]["expected_calibration_error"]["fitted"] == pytest.approx(error, abs=1e-6)
    export_run(run.path, tmp_path / "again", classifier=True)
    assert same_tensors(tmp_path / "again", run.classifier)
    for name in ("config.json", "preprocessor_config.json"):
        assert fingerprint_file(tmp_path / "again" / name) == fingerprint_file(run.classifier / name)


@pytest.mark.slow
def test_head_alone_is_exported_between(tiny, colour_table, tmp_path):
    words = ["--run.interpolation", "auto", "--run.max_retention_loss", "0", "--model.image_lora", "null"]
    run = fit(tmp_path, tiny, colour_table, *words, *HEAD)
    assert not run.merged.exists()
    assert {point["retention_loss"] for point in json.loads(run.metrics.read_text())["interpolation"]["curve"]} == {0.0}
    with pytest.raises(CheckpointError, match="trained a head alone. Export its image classifier with --classifier"):
        export_run(run.path, tmp_path / "never")
    export_run(run.path, tmp_path / "start", interpolation=0.0, classifier=True)
    head = load_file(run.head)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "start")
    pixels = load_file(run.witness)["pixel_values"]
    with torch.no_grad():
        features = AlignModel.from_pretrained(tiny).get_image_features(pixel_values=pixels).pooler_output
        logits = model(pixels).logits
    expected = features @ head["start_weight"].T
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
