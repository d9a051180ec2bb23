"""One real run in a real process, and every use of the model card on what it exports."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AlignModel, AlignProcessor, pipeline

from finetune.commands.cli import main
from finetune.model.base import Base

LABELS = ["an image of a red square", "an image of a blue square"]


def finetune(*words, cwd, code=0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def finetune_here(monkeypatch, capsys):
    """Runs a command in this process, which spares the seconds that a new one takes to import torch."""

    def run(*words, cwd, code=0) -> str:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        assert main(list(map(str, words))) == code
        screen = capsys.readouterr()
        return screen.out if code == 0 else screen.err

    return run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, colour_table):
    """A working directory with a finished run of the quickstart recipe on the colours."""
    folder = tmp_path_factory.mktemp("workplace")
    arguments = ["--data.table.path", colour_table, "--trainer.max_epochs", 3, "--run", "colours"]
    arguments += ["--run.neighbours", 3]
    screen = finetune("fit", "--config", "quickstart", *arguments, cwd=folder)
    (folder / "screen.txt").write_text(screen)
    return folder


@pytest.fixture(scope="module")
def merged(workplace) -> str:
    return str(workplace / "runs" / "colours" / "merged")


def test_run_folder_is_whole(workplace):
    run = workplace / "runs" / "colours"
    assert {path.name for path in run.iterdir()} == {
        *("recipe.yaml", "environment.json", "checkpoints", "adapter", "processor", "witness.safetensors", "merged"),
        *(
            "table.parquet",
            "metrics.csv",
            "training.json",
            "choice.json",
            "measurements",
            "metrics.json",
            "predictions.csv",
        ),
        *("report.html", "finished.json", "stages", "tensorboard", ".lock"),
    }
    environment = json.loads((run / "environment.json").read_text())
    assert environment["checkpoint"]["name"] == "align-mini"
    assert environment["versions"]["torch"] == torch.__version__
    assert "name" not in yaml.safe_load((run / "recipe.yaml").read_text())["run"]


def test_screen_shows_the_table_of_the_metrics_file(workplace):
    metrics = json.loads((workplace / "runs" / "colours" / "metrics.json").read_text())
    assert list(metrics) == ["before", "linear probe", "after", "drift", "difference", "calibration"]
    assert metrics["difference"]["test/accuracy"]["value"] == pytest.approx(
        metrics["after"]["test/accuracy"] - metrics["before"]["test/accuracy"]
    )
    assert metrics["after"]["test/accuracy"] >= metrics["before"]["test/accuracy"]
    assert metrics["calibration"]["expected_calibration_error"]["fitted"] == pytest.approx(
        metrics["after"]["test/expected_calibration_error"], abs=1e-6
    )
    screen = (workplace / "screen.txt").read_text()
    assert f"{100 * metrics['after']['test/accuracy']:.1f} %" in screen
    assert "runs/colours/merged" in screen


def test_predictions_of_the_base_stand_beside_the_models(workplace):
    run = workplace / "runs" / "colours"
    metrics = json.loads((run / "metrics.json").read_text())
    predictions = list(csv.DictReader((run / "predictions.csv").open()))
    for column, model in (("before", "before"), ("prediction", "after")):
        hits = [line[column] == line["label"] for line in predictions]
        assert sum(hits) / len(hits) == pytest.approx(metrics[model]["test/accuracy"])


def test_report_is_rebuilt_from_the_folder(workplace, finetune_here):
    run = workplace / "runs" / "colours"
    page = (run / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"<td>{100 * metrics['after']['test/mean_per_class_recall']:.1f} %</td>" in page
    assert "data:image/" in page or metrics["after"]["test/accuracy"] == 1
    assert finetune_here("report", "runs/colours", cwd=workplace) == "runs/colours/report.html\n"
    assert (run / "report.html").read_text(encoding="utf-8") == page


def test_predictions_are_those_of_plain_transformers_on_the_merged_folder(workplace, merged, colour_table):
    model, processor = AlignModel.from_pretrained(merged), AlignProcessor.from_pretrained(merged)
    with (workplace / "runs" / "colours" / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    with colour_table.open() as file:
        table = list(csv.DictReader(file))
    prompts = [f"a photo of the handwritten digit {name}." for name in ("blue", "green", "red")]
    assert len(predictions) == sum(row["split"] == "test" for row in table)
    for line in predictions:
        row = table[int(line["row"]) - 2]
        assert (row["split"], row["label"]) == ("test", line["label"])
        image = Image.open(colour_table.parent / row["image"]).convert("RGB")
        inputs = processor(images=image, text=prompts, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**inputs).logits_per_image.softmax(dim=1)[0]
        assert ("blue", "green", "red")[probabilities.argmax()] == line["prediction"]
        assert float(line["score"]) == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_adapter_and_witness_keep_the_temperature_that_was_trained_and_the_merged_folder_has_the_fitted(
    workplace, merged
):
    run = workplace / "runs" / "colours"
    temperature = json.loads((run / "metrics.json").read_text())["calibration"]["temperature"]
    assert json.loads((run / "adapter" / "temperature.json").read_text())["temperature"] == temperature["trained"]
    assert load_file(run / "witness.safetensors")["temperature"].item() == temperature["trained"]
    assert AlignModel.from_pretrained(merged).temperature.item() == temperature["fitted"]
    assert temperature["fitted"] != temperature["trained"]


def test_zero_shot_classification_and_the_classify_command_agree(workplace, merged, colour_table, finetune_here):
    photo = colour_table.parent / "0.png"
    model, processor = AlignModel.from_pretrained(merged), AlignProcessor.from_pretrained(merged)
    inputs = processor(images=Image.open(photo).convert("RGB"), text=LABELS, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits_per_image.softmax(dim=1)[0].tolist()
    assert probabilities[0] > 0.5
    words = [word for label in LABELS for word in ("--label", label)]
    screen = finetune_here("classify", merged, photo, *words, cwd=workplace)
    first, name, *lines = screen.splitlines()
    assert (first, name) == (f"answered by the text prompts of {merged} (zero-shot)", str(photo))
    values, labels = zip(*(line.split(maxsplit=1) for line in lines), strict=True)
    expected = dict(zip(LABELS, probabilities, strict=True))
    assert list(labels) == sorted(LABELS, key=expected.__getitem__, reverse=True)
    assert [float(value) for value in values] == pytest.approx([expected[label] for label in labels], abs=1e-6)
    words += ["--output", "found.csv"]
    screen = finetune_here("classify", "runs/colours", photo, *words, cwd=workplace)
    assert screen == f"{first}\nanswers     1 image, in found.csv\n"
    with (workplace / "found.csv").open() as file:
        assert [float(line["probability"]) for line in csv.DictReader(file)] == pytest.approx(probabilities, abs=1e-6)


def test_classify_on_the_embedded_checkpoint_equals_the_model_card(workplace, colour_table, finetune_here):
    photo = colour_table.parent / "1.png"
    labels = ["an image of a cat", "an image of a dog"]
    folder = Base.open("align-mini").folder
    model, processor = AlignModel.from_pretrained(folder), AlignProcessor.from_pretrained(folder)
    inputs = processor(images=Image.open(photo).convert("RGB"), text=labels, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits_per_image.softmax(dim=1)[0].tolist()
    words = [word for label in labels for word in ("--label", label)]
    screen = finetune_here("classify", "align-mini", photo, *words, cwd=workplace)
    lines = [line.split(maxsplit=1) for line in screen.splitlines()[-2:]]
    found = {label: float(value) for value, label in lines}
    assert [found[label] for label in labels] == pytest.approx(probabilities, abs=1e-6)


def test_joint_and_separate_embeddings(merged, colour_table):
    model, processor = AlignModel.from_pretrained(merged), AlignProcessor.from_pretrained(merged)
    image = processor(images=Image.open(colour_table.parent / "2.png").convert("RGB"), return_tensors="pt")
    text = processor(text=LABELS, return_tensors="pt")
    with torch.no_grad():
        joint = model(**image, **text)
        image_features = model.get_image_features(**image).pooler_output
        text_features = model.get_text_features(**text).pooler_output
    torch.testing.assert_close(joint.image_embeds.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(joint.text_embeds.norm(dim=-1), torch.ones(2))
    normalised = image_features / image_features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(normalised, joint.image_embeds)
    similarity = joint.image_embeds @ (text_features / text_features.norm(dim=-1, keepdim=True)).T
    torch.testing.assert_close(similarity / model.temperature, joint.logits_per_image)


def test_pipeline_opens_the_merged_folder(merged, colour_table):
    classifier = pipeline("zero-shot-image-classification", model=merged)
    found = classifier(str(colour_table.parent / "0.png"), candidate_labels=["red square", "blue square"])
    assert found[0]["label"] == "red square"
    assert sum(answer["score"] for answer in found) == pytest.approx(1)


def test_after_is_what_a_test_of_the_run_finds(workplace, finetune_here):
    metrics = json.loads((workplace / "runs" / "colours" / "metrics.json").read_text())
    screen = finetune_here("test", "runs/colours", cwd=workplace)
    assert f"{100 * metrics['after']['test/accuracy']:.1f} %" in screen
    assert f"{100 * metrics['after']['test/mean_per_class_recall']:.1f} %" in screen
    measured = [metrics[name] for name in ("before", "linear probe", "after")]
    assert ["test/knn_accuracy" in column for column in measured] == [True, False, True]
    row = next(line.split("|") for line in screen.splitlines() if "test/knn_accuracy" in line)
    assert row[2].strip() == f"{100 * metrics['after']['test/knn_accuracy']:.1f} %"


def test_before_is_what_a_test_of_the_recipe_finds(workplace, colour_table, finetune_here):
    metrics = json.loads((workplace / "runs" / "colours" / "metrics.json").read_text())
    screen = finetune_here("test", "--config", "quickstart", "--data.table.path", colour_table, cwd=workplace)
    assert f"{100 * metrics['before']['test/accuracy']:.1f} %" in screen


@pytest.mark.slow
def test_export_repeats_the_merge_bit_for_bit_and_verify_confirms_it(workplace, merged, finetune_here):
    finetune("export", "runs/colours", "--output", "exported", cwd=workplace)
    first, second = (load_file(f"{folder}/model.safetensors") for folder in (merged, workplace / "exported"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    verified = finetune_here("verify", "exported", cwd=workplace)
    assert re.search(r"reproduces the trained model within .*; the tolerance is 1e-05", verified)
    again = finetune_here("export", "runs/colours", "--output", "exported", cwd=workplace, code=2)
    assert "pass --overwrite" in again


def test_existing_run_is_refused(workplace, colour_table, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    arguments = ["--data.table.path", str(colour_table), "--run", "colours"]
    assert main(["fit", "--config", "quickstart", *arguments]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (workplace / "runs" / "colours" / "finished.json").is_file()


def test_an_accelerator_that_is_not_there_is_refused_before_anything_is_written(colour_table, tmp_path, finetune_here):
    words = ["--data.table.path", colour_table, "--trainer.accelerator", "tpu"]
    for command in ("fit", "test"):
        error = finetune_here(command, "--config", "quickstart", *words, cwd=tmp_path, code=2)
        assert "error: Expected " in error
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["label", "caption"])
def test_a_run_that_diverges_is_stopped_with_the_repair(tiny, colour_table, tmp_path, finetune_here, kind):
    (tmp_path / "wild.yaml").write_text(
        f"model:\n  checkpoint: {tiny}\n  optimizer:\n    class_path: torch.optim.SGD\n    init_args: {{lr: 1e30}}\n"
        f"data:\n  table:\n    path: {colour_table}\n    {kind}: {kind}\n    split: split\n"
        "trainer:\n  max_epochs: 2\n  accelerator: cpu\n  enable_progress_bar: false\n"
    )
    error = finetune_here("fit", "--config", "wild.yaml", cwd=tmp_path, code=2)
    assert "training has diverged. Lower the learning rate of model.optimizer tenfold" in error.splitlines()[-1]
    run = tmp_path / "runs" / "wild"
    assert [path.name for path in (run / "stages").iterdir()] == ["measure-base.json"]
    left = {path.name for path in run.iterdir()}
    assert not left & {"adapter", "witness.safetensors", "training.json", "finished.json"}


@pytest.mark.slow
def test_a_run_that_is_stopped_says_so_and_is_no_success(colour_table, tmp_path):
    words = ["--data.table.path", colour_table, "--trainer.max_epochs", "10000", "--run", "stopped"]
    command = [sys.executable, "-m", "finetune", "fit", "--config", "quickstart", *map(str, words)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        run = tmp_path / "runs" / "stopped"
        while not (run / "checkpoints").exists():  # written when the first epoch ends
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.terminate()
        error = process.communicate(timeout=100)[1]
    assert process.returncode == 143
    assert error.splitlines()[-1].startswith("error: stopped by SIGTERM")
    assert not (run / "finished.json").exists()


def test_export_of_an_unfinished_run_is_refused(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    shutil.copytree(workplace / "runs" / "colours", workplace / "runs" / "stopped")
    (workplace / "runs" / "stopped" / "finished.json").unlink()
    assert main(["export", "runs/stopped", "--output", "never"]) == 2
    assert "to be a finished run, but it is unfinished" in capsys.readouterr().err
    assert not (workplace / "never").exists()


SUBCLASS = '''
from finetune import AlignTask


class WarmTask(AlignTask):
    """Trains the texts a little towards where they were.

    Args:
        checkpoint: Hub id, local folder, or `align-mini`.
        pull: Weight of the pull.
    """

    def __init__(self, checkpoint: str = "align-mini", pull: float = 0.1):
        super().__init__(checkpoint)
        self.pull = pull

    def training_step(self, batch, batch_idx):
        embeddings = self(batch)
        drift = embeddings.text_features.pow(2).mean()
        self.log("train/drift", drift)
        return self.objective(embeddings, batch) + self.pull * drift
'''


@pytest.mark.slow
def test_subclass_runs_from_a_recipe_when_it_is_trusted(tmp_path, colour_table, finetune_here):
    (tmp_path / "warm.py").write_text(SUBCLASS)
    (tmp_path / "warm.yaml").write_text(
        "model:\n  class_path: warm.WarmTask\n  init_args:\n    pull: 0.2\n"
        f"data:\n  table:\n    path: {colour_table}\n    label: label\n    split: split\n"
        "  image_size: 64\n  batch_size: 3\n"
        "trainer:\n  max_epochs: 1\n  accelerator: cpu\n"
    )
    assert "pass --trust warm" in finetune_here("fit", "--config", "warm.yaml", cwd=tmp_path, code=2)
    finetune("fit", "--config", "warm.yaml", "--trust", "warm", cwd=tmp_path)
    assert "train/drift" in (tmp_path / "runs" / "warm" / "metrics.csv").read_text()
    proof = json.loads((tmp_path / "runs" / "warm" / "merged" / "merge_proof.json").read_text())
    assert max(proof["max_abs_difference"].values()) <= 1e-5


def test_adapter_alone_as_documented_equals_the_merged_folder(workplace, merged, colour_table, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "adapter-alone.md").read_text()
    (tmp_path / "alone.py").write_text(page.split("```python\n")[1].split("```")[0])
    photo = colour_table.parent / "3.png"
    arguments = [workplace / "runs" / "colours" / "adapter", Base.open("align-mini").folder, photo]
    done = subprocess.run(
        [sys.executable, "alone.py", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "finetune" not in (tmp_path / "alone.py").read_text()
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    model, processor = AlignModel.from_pretrained(merged), AlignProcessor.from_pretrained(merged)
    labels = ["an image of a cat", "an image of a dog"]
    inputs = processor(images=Image.open(photo).convert("RGB"), text=labels, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    torch.testing.assert_close(found["image_embeds"], expected.image_embeds, atol=1e-5, rtol=0)
    metrics = json.loads((workplace / "runs" / "colours" / "metrics.json").read_text())
    temperature = metrics["calibration"]["temperature"]  # the adapter's is the trained one, that of merged the fitted
    logits = found["logits_per_image"] * temperature["trained"] / temperature["fitted"]
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-3, rtol=0)
