"""`finetune classify`: by a head or by text prompts, and which of the two answers."""

import io
import re
import sys

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AlignModel, AlignProcessor, AutoImageProcessor, AutoModelForImageClassification

from finetune.commands.cli import main
from finetune.inference.classify import classify

from ..data.shards import picture, write_tar


@pytest.fixture(scope="module")
def images(colour_table):
    return [colour_table.parent / f"{number}.png" for number in (0, 1, 5)]


def ask(capsys, tmp_path, *words) -> tuple[str, pd.DataFrame]:
    """The first line of the screen, and the table that is written, which the screen shows too."""
    table = tmp_path / "found.csv"
    assert main(["classify", *map(str, words), "--output", str(table), "--overwrite"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    found = pd.read_csv(table)
    shown = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert [label for _, label in shown] == found["label"].tolist()
    assert [float(probability) for probability, _ in shown] == pytest.approx(found["probability"].tolist(), abs=1e-6)
    assert [line for line in lines if not line.startswith("  ")] == list(dict.fromkeys(found["image"]))
    return first, found


@pytest.mark.parametrize("folder", [".", "classifier"])
def test_head_answers_for_its_classes(with_head, images, capsys, tmp_path, folder):
    first, found = ask(capsys, tmp_path, with_head.path / folder, *images)
    classifier = with_head.path / "classifier"
    assert first == f"answered by the head of {classifier}"
    model = AutoModelForImageClassification.from_pretrained(classifier)
    processor = AutoImageProcessor.from_pretrained(classifier, backend="pil")
    with torch.no_grad():
        inputs = processor([Image.open(path).convert("RGB") for path in images], return_tensors="pt")
        expected = model(pixel_values=inputs["pixel_values"]).logits.softmax(dim=1)
    assert found["label"].tolist() == ["blue", "green", "red"] * len(images)
    assert found["probability"].tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["two_towers", "with_head"])
def test_text_prompts_answer_where_labels_are_given(request, images, capsys, tmp_path, name):
    run, labels = request.getfixturevalue(name), ["a red square", "a cat"]
    first, found = ask(capsys, tmp_path, run.path, *images, "--label", labels[0], "--label", labels[1])
    assert re.fullmatch(r"answered by the text prompts of .*merged \(zero-shot\)", first)
    merged = run.path / "merged"
    model, processor = AlignModel.from_pretrained(merged), AlignProcessor.from_pretrained(merged, backend="pil")
    with torch.no_grad():
        pictures = [Image.open(path).convert("RGB") for path in images]
        expected = model(**processor(images=pictures, text=labels, return_tensors="pt")).logits_per_image.softmax(dim=1)
    assert found["label"].tolist() == labels * len(images)
    assert found["probability"].tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)


def test_what_cannot_answer_is_refused(refused, two_towers, with_head, images, tiny):
    for model in (two_towers.path, two_towers.path / "merged", tiny):
        found = refused("classify", model, images[0])
        assert f"Expected --label for {model}, which has no head that knows classes" in found
    found = refused("classify", with_head.path / "classifier", images[0], "--label", "a cat")
    assert "to be asked without --label, but got 'a cat'" in found
    assert "Leave out --label, or name a merged folder" in found


@pytest.mark.parametrize("words", [["classify", "RUN", "0.png"], ["test", "RUN"], ["export", "RUN", "--output", "x"]])
def test_an_unfinished_run_is_called_unfinished(refused, tmp_path, monkeypatch, words):
    """Here before its training, as a stopped command leaves it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").touch()
    (tmp_path / "0.png").touch()
    monkeypatch.chdir(tmp_path)
    assert "Expected run to be a finished run, but it is unfinished: " in refused(*words[:1], "run", *words[2:])
    assert not (tmp_path / "x").exists()


@pytest.fixture
def mixed(images, tmp_path):
    """A folder with two images among what else lies in folders."""
    folder = tmp_path / "mixed"
    (folder / "sub.png").mkdir(parents=True)
    (folder / "a.png").write_bytes(images[0].read_bytes())
    (folder / "sub.png" / "b.png").write_bytes(images[1].read_bytes())
    (folder / "cut.png").write_bytes(images[2].read_bytes()[:100])
    (folder / "empty.png").touch()
    (folder / "._a.png").write_bytes(b"of a Mac")
    return folder


def test_one_bad_file_in_a_folder_is_reported_and_the_others_are_answered(with_head, mixed, capsys, tmp_path):
    table = tmp_path / "found.csv"
    assert main(["classify", str(with_head.path), str(mixed), "--output", str(table)]) == 0
    *_, count, first, second, hidden = capsys.readouterr().out.splitlines()
    assert count == "skipped     2 images, as they cannot be read"
    assert first == f"  {mixed / 'cut.png'}: image file is truncated"
    assert second == f"  {mixed / 'empty.png'}: an empty file"
    assert hidden == f"left out    1 hidden file, such as {mixed / '._a.png'}"
    found = pd.read_csv(table)
    assert found["image"].tolist() == [str(mixed / name) for name in ("a.png", "sub.png/b.png") for _ in range(3)]
    assert found["label"].tolist() == ["blue", "green", "red"] * 2


def test_where_nothing_can_be_read_nothing_is_written(refused, with_head, mixed, tmp_path):
    table = tmp_path / "found.csv"
    found = refused("classify", with_head.path, mixed / "cut.png", mixed / "empty.png", "--output", table)
    assert "cut.png to be a whole image" in found
    assert not table.exists()


def test_a_head_is_applied_to_a_table(with_head, colour_table, capsys, tmp_path):
    """The figures are those of the run's own predictions on the test rows."""
    _, found = ask(capsys, tmp_path, with_head.path, colour_table)
    assert found["image"].nunique() == 36
    best = found.loc[found.groupby("image")["probability"].idxmax()].set_index("image")["label"]
    predictions = pd.read_csv(with_head.path / "predictions.csv")
    rows = pd.read_csv(colour_table).iloc[predictions["row"] - 2]
    shown = [best[str(colour_table.parent / image)] for image in rows["image"]]
    assert shown == predictions["prediction"].tolist()


def test_a_misspelt_checkpoint_is_named(refused, images):
    labels = ("--label", "a cat", "--label", "a dog")
    assert "Did you mean 'align-mini'" in refused("classify", "algin-mini", images[0], *labels)


def test_tars_and_standard_input_are_classified_into_parquet(with_head, images, capsys, tmp_path, monkeypatch):
    """A cut picture in a tar, a hidden file, and a path of nothing are listed."""
    content = {"a.jpg": picture(0), "b.jpg": picture(1)[:200], "c.jpg": picture(2), "._c.jpg": b"of a Mac"}
    write_tar(tmp_path / "0.tar", content)
    lines = "".join(f"{path}\n" for path in (*images, tmp_path / "absent.png"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    table = tmp_path / "found.parquet"
    assert main(["classify", str(with_head.path), "-", f"{tmp_path}/*.tar", "--output", str(table)]) == 0
    shown = capsys.readouterr().out
    assert f"skipped     2 images, as they cannot be read\n  {tmp_path}/absent.png: no file\n" in shown
    assert f"  {tmp_path}/0.tar:b.jpg: " in shown
    found = pd.read_parquet(table)
    assert list(found.columns) == ["image", "label", "probability"]
    named = [*map(str, images), f"{tmp_path}/0.tar:a.jpg", f"{tmp_path}/0.tar:c.jpg"]
    assert found["image"].tolist() == [path for path in named for _ in range(3)]
    for name, number in (("a", 0), ("c", 2)):
        (tmp_path / f"{name}.jpg").write_bytes(picture(number))
    alone = classify(with_head.path, [*images, tmp_path / "a.jpg", tmp_path / "c.jpg"])
    assert found["probability"].tolist() == pytest.approx(alone.rows["probability"].tolist(), abs=1e-6)


def test_another_kind_of_output_is_refused(refused, with_head, images, tmp_path):
    found = refused("classify", with_head.path, images[0], "--output", tmp_path / "found.json")
    assert "Expected --output to end in .csv or .parquet, but got" in found
