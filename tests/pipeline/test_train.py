"""Several trainings averaged: alike but for their seeds, exported as one proven model, shown as one run."""

import json

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AlignModel, AutoModelForImageClassification

from finetune.core.errors import RecipeError
from finetune.model.base import Base
from finetune.pipeline.recipe import read_recipe
from finetune.pipeline.run_recipe import run_recipe
from finetune.pipeline.train import fit, member_seed
from finetune.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("share_opener")

HEAD = ["--model", "finetune.ClassificationTask"]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, colour_table, tiny):
    """Coloured squares by label; no `test` rows are needed to train, but a run has some."""
    folder = tmp_path_factory.mktemp("soups")
    path = folder / "squares.yaml"
    path.write_text(
        f"model:\n  checkpoint: {tiny}\n  image_lora: {{rank: 2}}\n  text_lora: {{rank: 2}}\n"
        f"data:\n  batch_size: 8\n  table: {{path: {colour_table}, label: label, split: split}}\n"
        "  augmentations: [{class_path: albumentations.RandomBrightnessContrast}]\n"
        "trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false}\n"
        f"run: {{folder: {folder / 'runs'}}}\n"
    )
    return path


@pytest.fixture(scope="module")
def run(recipe_file) -> RunFolder:
    """A finished run of two trainings with a head."""
    return run_recipe(read_recipe(recipe_file, [*HEAD, "--run.soup", "2", "--run.seed", "7"]))


def train_alone(recipe_file, folder, seed):
    """What one training at a seed leaves: its merged towers and its head."""
    recipe = read_recipe(recipe_file, [*HEAD, "--run.seed", str(seed)])
    task = recipe.build_task()
    fit(recipe, task, recipe.build_data(), RunFolder(folder / f"alone{seed}"))
    return task.towers.model.cpu().merge_and_unload(safe_merge=True).state_dict(), task.head.state_dict()


@pytest.mark.slow
def test_a_run_exports_the_average_of_its_trainings(recipe_file, run, tmp_path):
    seeds = [7, member_seed(7, 1)]
    towers, heads = zip(*(train_alone(recipe_file, tmp_path, seed) for seed in seeds), strict=True)
    merged = load_file(run.merged / "model.safetensors")
    for name, tensor in merged.items():
        expected = ((towers[0][name] + towers[1][name]) / 2).to(tensor.dtype)
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)
    head = load_file(run.head)
    for name, tensor in head.items():
        torch.testing.assert_close(tensor, (heads[0][name] + heads[1][name]) / 2, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(heads[0]["weight"], heads[1]["weight"], atol=1e-3)
    temperature = json.loads(run.metrics.read_text())["calibration"]["temperature"]
    pixels = load_file(run.witness)["pixel_values"]
    with torch.no_grad():
        features = AlignModel.from_pretrained(run.merged).get_image_features(pixel_values=pixels).pooler_output
        logits = AutoModelForImageClassification.from_pretrained(run.classifier)(pixels).logits
    expected = (features @ head["weight"].T + head["bias"]) * temperature["trained"] / temperature["fitted"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    changed = [name for name in merged if not torch.equal(towers[0][name], towers[1][name])]
    assert len(changed) > 3


def test_its_adapter_is_a_standard_one_of_twice_the_rank(run, tiny):
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert config["r"] == 4
    merged = PeftModel.from_pretrained(Base.open(tiny).load(), str(run.adapter)).merge_and_unload()
    expected = load_file(run.merged / "model.safetensors")
    for name, tensor in merged.vision_model.state_dict().items():
        torch.testing.assert_close(tensor, expected[f"vision_model.{name}"], atol=1e-6, rtol=0)
    proof = json.loads((run.merged / "merge_proof.json").read_text())
    assert max(proof["max_abs_difference"].values()) <= 1e-5


def test_each_training_keeps_its_logs_and_the_report_shows_their_mean(run):
    logs = [pd.read_csv(path) for path in (run.logged, run.path / "members" / "2" / "metrics.csv")]
    assert run.logs == [run.logged, run.path / "members" / "2" / "metrics.csv"]
    assert (run.path / "members" / "2" / "checkpoints" / "last.ckpt").is_file()
    losses = [log["val/loss"].dropna().to_numpy() for log in logs]
    assert (losses[0] != losses[1]).all()
    page = run.report.read_text()
    assert "Training (mean of 2)<" in page
    assert f"{losses[0][-1]:.3f}" not in page


@pytest.mark.slow
def test_nothing_is_averaged_where_a_run_trains_once(recipe_file, tmp_path):
    recipe = read_recipe(recipe_file, HEAD)
    task = recipe.build_task()
    fit(recipe, task, recipe.build_data(), RunFolder(tmp_path / "once"))
    assert task.towers.model.peft_config["default"].r == 2
    assert {path.name for path in (tmp_path / "once").iterdir()} == {"checkpoints", "metrics.csv", "tensorboard"}


def test_seeds_of_trainings_differ_from_those_of_other_runs():
    seeds = [member_seed(seed, number) for seed in range(20) for number in range(5)]
    assert len(set(seeds)) == 100
    assert [member_seed(seed, 0) for seed in range(3)] == [0, 1, 2]


def test_what_cannot_be_averaged_is_refused_before_anything_is_written(recipe_file, tmp_path):
    words = ["--run.soup", "2", "--run.folder", str(tmp_path / "runs"), "--model.image_lora.use_dora", "true"]
    with pytest.raises(RecipeError, match=r"run\.soup to be 1 with use_dora, but got 2.*set use_dora to false"):
        run_recipe(read_recipe(recipe_file, [*HEAD, *words]))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RecipeError, match=r"run\.soup to be at least 1, but got 0"):
        read_recipe(recipe_file, ["--run.soup", "0"])


OWN_TASK = """
import torch
from finetune import AlignTask
from finetune.model.lora import TowerLora


class OwnTask(AlignTask):
    def __init__(self, checkpoint: str) -> None:
        super().__init__(checkpoint, None, TowerLora(rank=2))
        self.own = torch.nn.Parameter(torch.rand(3))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.own.square().sum()
"""


@pytest.mark.slow
def test_parameters_of_a_subclass_are_averaged_too(tiny, colour_table, tmp_path, monkeypatch):
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text(
        f"model: {{class_path: own_task.OwnTask, init_args: {{checkpoint: {tiny}}}}}\n"
        f"data: {{batch_size: 8, table: {{path: {colour_table}, caption: caption, split: split}}}}\n"
        "trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false}\n"
    )
    found = []
    for folder, words in (("soup", ["--run.soup", "2"]), ("one", []), ("two", ["--run.seed", str(member_seed(0, 1))])):
        recipe = read_recipe(path, words, trust=["own_task"])
        task = recipe.build_task()
        fit(recipe, task, recipe.build_data(), RunFolder(tmp_path / folder))
        found.append(task.own.detach())
    soup, one, two = found
    assert not torch.allclose(one, two, atol=1e-4)
    torch.testing.assert_close(soup, (one + two) / 2)
