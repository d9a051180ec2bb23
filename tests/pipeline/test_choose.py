"""The choice of interpolation and temperature, against models averaged, run and counted by hand with transformers."""

import csv
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.core.errors import RecipeError
from finetune.core.interpolation import Interpolation
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.splits import RandomSplit
from finetune.data.table.table import Table
from finetune.export.choose_interpolation import Choice, Line, choose_point
from finetune.metrics.calibration import fit_temperature
from finetune.model.base import Base
from finetune.model.head import LinearHead
from finetune.pipeline.choose import Score, check_settings, choose
from finetune.run.settings import RunSettings

CPU = torch.device("cpu")
CONVOLUTION = "vision_model.encoder.blocks.{}.projection.project_conv.weight"
AUTO = RunSettings(interpolation="auto", max_retention_loss=0.2)


@pytest.fixture(scope="module")
def animals(colour_table, tmp_path_factory):
    """The same pictures under other names, every one of them a test row."""
    path = tmp_path_factory.mktemp("animals") / "animals.csv"
    with colour_table.open() as file:
        images = [row["image"] for row in csv.DictReader(file)]
    for image in images:
        shutil.copy(colour_table.parent / image, path.parent)
    lines = [f"{image},{('cat', 'dog')[index % 2]},test" for index, image in enumerate(images)]
    path.write_text("\n".join(["image,label,split", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def data(colour_table, animals, tiny) -> ImageTextDataModule:
    table = Table(str(colour_table), label="label", split="split")
    retention = [Table(str(path), label="label", split="split") for path in (animals, colour_table)]
    return ImageTextDataModule(table, tiny, retention=retention, templates=("one {} thing", "{}"), batch_size=8)


@pytest.fixture(scope="module")
def adapted(tiny) -> dict[str, torch.Tensor]:
    """The base with noise in the text projection and two convolutions, as training might leave them."""
    torch.manual_seed(0)
    state = Base.open(tiny).load().state_dict()
    for name in ("text_projection.weight", *(CONVOLUTION.format(block) for block in (1, 6))):
        state[name] = state[name] + 0.3 * state[name].std() * torch.randn_like(state[name])
    state["temperature"] = torch.tensor(0.5)
    return state


@cache
def open_base(tiny):
    """A model to load weights into, and its processor."""
    base = Base.open(tiny)
    return base.load(), base.processor()


def logits_by_hand(tiny, state, path, split, templates):
    """Zero-shot logits and labels of a split's rows, by the model's own processor and forward passes."""
    model, processor = open_base(tiny)
    model.load_state_dict(state)  # every weight, temperature and statistics included
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    classes = sorted({row["label"] for row in rows})
    with torch.no_grad():
        means = []
        for name in classes:
            texts = processor(text=[template.replace("{}", name) for template in templates], return_tensors="pt")
            embeds = torch.nn.functional.normalize(model.get_text_features(**texts).pooler_output)
            means.append(torch.nn.functional.normalize(embeds.mean(dim=0), dim=0))
        images = [Image.open(path.parent / row["image"]).convert("RGB") for row in rows]
        features = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        logits = torch.nn.functional.normalize(features) @ torch.stack(means).T / model.temperature
    return logits, torch.tensor([classes.index(row["label"]) for row in rows]), features


def correct(answer) -> np.ndarray:
    return (answer[0].argmax(dim=1) == answer[1]).double().numpy()


def accuracy(answer) -> float:
    return float(correct(answer).mean())


def average(tiny, adapted, interpolation):
    base = Base.open(tiny).load().state_dict()
    return {
        name: (1 - interpolation) * tensor + interpolation * adapted[name] if tensor.is_floating_point() else tensor
        for name, tensor in base.items()
    }


def average_by_tower(tiny, adapted, profile):
    """For the tensors of `adapted` that differ from the base."""
    base = Base.open(tiny).load().state_dict()
    (first, last), (_, text) = profile.image, profile.text
    weights = {
        CONVOLUTION.format(1): first + (last - first) / 6,
        CONVOLUTION.format(6): last,
        "text_projection.weight": text,
        "temperature": (last + text) / 2,
    }
    return base | {name: (1 - weight) * base[name] + weight * adapted[name] for name, weight in weights.items()}


@pytest.fixture(scope="module")
def choice(data, tiny, adapted) -> Choice:
    return choose(AUTO, data, CPU, lambda: Line(Base.open(tiny), adapted, None, CPU))


def test_auto_is_what_averaging_and_counting_by_hand_gives(choice, data, tiny, adapted, colour_table, animals):
    assert [point.interpolation for point in choice.curve] == pytest.approx(np.linspace(0, 1, 11))
    retention = [(animals, "test"), (colour_table, "val")]  # validation rows where a table has some
    before = [correct(logits_by_hand(tiny, average(tiny, adapted, 0), *t, ["a photo of a {}."])) for t in retention]
    assert len(choice.profiles) == 11 * 11 - 11
    profiles = {(point.interpolation.image, point.interpolation.text): point for point in choice.profiles}
    tried = [((0.2, 0.2), (0.9, 0.9)), ((1.0, 1.0), (0.1, 0.1)), ((0.4, 0.4), (1.0, 1.0))]
    for point in (*choice.curve[::5], *map(profiles.__getitem__, tried)):
        profile = Interpolation.of(point.interpolation)
        state = average_by_tower(tiny, adapted, profile)
        assert point.target == pytest.approx(
            accuracy(logits_by_hand(tiny, state, colour_table, "val", data.templates)), abs=1e-6
        )
        after = [correct(logits_by_hand(tiny, state, *table, ["a photo of a {}."])) for table in retention]
        lost = [(could - can) / could.mean() for could, can in zip(before, after, strict=True)]
        errors = [each.std() / len(each) ** 0.5 for each in lost]
        worst = int(np.argmax([each.mean() for each in lost]))
        assert point.retention_loss == pytest.approx(lost[worst].mean(), abs=1e-5)
        assert point.retention_error == pytest.approx(errors[worst], rel=0.15)
        assert point.target_error == pytest.approx((point.target * (1 - point.target) / 9) ** 0.5, abs=1e-6)
    assert len({point.target for point in choice.curve} | {point.retention_loss for point in choice.curve}) > 2
    assert choice.interpolation == choose_point([*choice.curve, *choice.profiles], 0.2).interpolation
    assert choice.as_metrics()["interpolation"].keys() == {"chosen", "max_retention_loss", "curve", "profiles"}


def test_where_rows_are_too_many_both_towers_stay_alike(choice, data, tiny, adapted, monkeypatch, capsys):
    line = Line(Base.open(tiny), adapted, None, CPU)
    kept = Score(line, data, CPU).kept_bytes
    rows, classes = 9 + 36 + 9, 3 + 2 + 3  # validation rows, animals, and colours once more
    assert kept == 4 * line.towers.align.config.projection_dim * 11 * (rows + classes)
    assert choice.profiles
    monkeypatch.setattr("finetune.pipeline.choose.MOST_BYTES", kept - 1)
    alike = choose(replace(AUTO, calibrate=False), data, CPU, lambda: line)
    assert (alike.curve, alike.profiles) == (choice.curve, ())
    assert "run.interpolation auto keeps both towers alike" in capsys.readouterr().err


def test_where_one_tower_was_trained_no_profiles_are_missed_and_none_are_told(data, tiny, adapted, monkeypatch, capsys):
    text = Base.open(tiny).load().state_dict() | {"text_projection.weight": adapted["text_projection.weight"]}
    settings = replace(AUTO, calibrate=False)
    kept = choose(settings, data, CPU, lambda: Line(Base.open(tiny), text, None, CPU))
    monkeypatch.setattr("finetune.pipeline.choose.MOST_BYTES", 0)
    assert choose(settings, data, CPU, lambda: Line(Base.open(tiny), text, None, CPU)) == kept
    assert kept.profiles == ()
    assert "keeps both towers alike" not in capsys.readouterr().err


def test_temperature_is_fitted_to_the_validation_rows_at_the_interpolation(data, tiny, adapted, colour_table):
    choice = choose(RunSettings(interpolation=0.4), data, CPU, lambda: Line(Base.open(tiny), adapted, None, CPU))
    state = average(tiny, adapted, 0.4)
    logits, labels, _ = logits_by_hand(tiny, state, colour_table, "val", data.templates)
    assert choice.temperature.rows == len(labels)
    assert choice.temperature.trained == pytest.approx(float(state["temperature"]))
    expected = choice.temperature.trained * fit_temperature(logits, labels, trusted_rows=20)
    assert choice.temperature.fitted == pytest.approx(expected, rel=1e-3)
    assert choice.as_metrics() == {"interpolation": {"chosen": 0.4}}


def test_head_alone_loses_nothing_on_retention_tables(data, tiny, colour_table):
    state = Base.open(tiny).load().state_dict()
    _, labels, features = logits_by_hand(tiny, state, colour_table, "val", data.templates)
    generator = torch.Generator().manual_seed(0)
    weight, start = (torch.randn(3, features.shape[1], generator=generator) / 50 for _ in range(2))
    bias, classes = torch.tensor([0.1, 0.0, -0.1]), ("blue", "green", "red")
    head = LinearHead(weight, bias, classes, False, start, torch.zeros(3))
    choice = choose(AUTO, data, CPU, lambda: Line(Base.open(tiny), None, head, CPU))

    def logits_at(weight_of_head):
        start_and_end = (start, torch.zeros(3)), (weight, bias)
        mixed = [(1 - weight_of_head) * one + weight_of_head * other for one, other in zip(*start_and_end, strict=True)]
        return features @ mixed[0].T + mixed[1]

    for point in choice.curve[::5]:
        assert point.target == pytest.approx(accuracy((logits_at(point.interpolation), labels)), abs=1e-6)
        assert point.retention_loss == 0
    assert choice.temperature.trained == pytest.approx(float(state["temperature"]))
    expected = choice.temperature.trained * fit_temperature(logits_at(choice.interpolation), labels)
    assert choice.temperature.fitted == pytest.approx(expected, rel=1e-3)


def refuse() -> Line:
    raise AssertionError("nothing has to be measured")


def test_nothing_is_measured_where_nothing_is_asked_for(data, tiny, colour_table):
    assert choose(RunSettings(calibrate=False), data, CPU, refuse) == Choice(1.0)
    captions = ImageTextDataModule(Table(str(colour_table), caption="caption", split="split"), tiny)
    assert choose(RunSettings(interpolation=0.5), captions, CPU, refuse) == Choice(0.5)
    without = Table(str(colour_table), label="label", split=RandomSplit(val=0.0, test=0.3))
    assert choose(RunSettings(), ImageTextDataModule(without, tiny), CPU, refuse) == Choice(1.0)


def test_auto_without_anything_to_choose_by_is_refused(tiny, colour_table, animals):
    without = Table(str(colour_table), label="label", split=RandomSplit(val=0.0, test=0.3))
    retention = [Table(str(animals), label="label", split="split")]
    with pytest.raises(RecipeError, match="Expected validation rows for run.interpolation auto"):
        check_settings(AUTO, ImageTextDataModule(without, tiny, retention=retention))
    table = Table(str(colour_table), label="label", split="split")
    with pytest.raises(RecipeError, match=r"Expected data.retention to name a table for run.interpolation auto"):
        check_settings(AUTO, ImageTextDataModule(table, tiny))
    check_settings(AUTO, ImageTextDataModule(table, tiny, retention=retention))
