"""`finetune classify`: by a head or by text prompts, and which of the two answers."""

import io
import json
import re
import shutil
import sys

import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score
from transformers import AlignModel, AlignProcessor, AutoImageProcessor, AutoModelForImageClassification

from finetune.commands.cli import main
from finetune.inference.classify import classify

from ..data.shards import picture, write_tar


@pytest.fixture(scope="module")
def images(colour_table):
    return [colour_table.parent / f"{number}.png" for number in (0, 1, 5)]


def ask(capsys, tmp_path, *words) -> tuple[str, pd.DataFrame]:
    """The first line of the screen, and the table that is written, which the second one names."""
    table = tmp_path / "found.csv"
    assert main(["classify", *map(str, words), "--output", str(table), "--overwrite"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    found = pd.read_csv(table)
    assert lines == [f"answers     {found['image'].nunique()} images, in {table}"]
    return first, found


def test_without_a_file_the_labels_of_each_image_are_listed_the_most_probable_first(
    with_head, images, capsys, tmp_path
):
    _, found = ask(capsys, tmp_path, with_head.path, *images)
    assert main(["classify", str(with_head.path), *map(str, images)]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    for image in images:
        name, *shown = lines[:4]
        rows = found[found["image"] == str(image)].set_index("label")["probability"]
        assert name == str(image)
        assert shown == [f"  {rows[label]:.6f}  {label}" for label in sorted(rows.index, key=lambda one: -rows[one])]
        del lines[:4]
    assert lines == []


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
    for model in (two_towers.path / "merged", tiny):
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
    _, answers, count, first, second, hidden = capsys.readouterr().out.splitlines()
    assert answers == f"answers     2 images, in {table}"
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


def test_a_run_without_a_head_answers_for_its_classes_as_its_evaluation_does(
    two_towers, colour_table, capsys, tmp_path
):
    """With the run's templates; the figures are those of its own predictions on the test rows."""
    first, found = ask(capsys, tmp_path, two_towers.path, colour_table)
    assert first.endswith("merged (zero-shot, in a photo of a {}.)")
    best = found.loc[found.groupby("image")["probability"].idxmax()].set_index("image")
    predictions = pd.read_csv(two_towers.path / "predictions.csv")
    rows = pd.read_csv(colour_table).iloc[predictions["row"] - 2]
    shown = best.loc[[str(colour_table.parent / image) for image in rows["image"]]]
    assert shown["label"].tolist() == predictions["prediction"].tolist()
    assert shown["probability"].tolist() == pytest.approx(predictions["score"].tolist(), abs=1e-5)


@pytest.mark.parametrize("anyway", [True, False])
@pytest.mark.parametrize("name", ["two_towers", "with_head"])
def test_accuracy_on_a_table_is_that_of_scikit_learn(request, colour_table, capsys, tmp_path, name, anyway):
    """An image without label and one with two are classified, but not counted; nor are those the run has seen."""
    whole = pd.read_csv(colour_table)
    rows = whole[["image", "label"]]
    rows.loc[0, "label"] = None
    rows = pd.concat([rows, pd.DataFrame({"image": [rows["image"][5]], "label": ["no colour"]})])
    own = shutil.copytree(colour_table.parent, tmp_path / "own")
    rows.to_csv(own / "t.csv", index=False)
    rows["image"] = [str(own / image) for image in rows["image"]]
    table, run = tmp_path / "found.csv", request.getfixturevalue(name).path
    words = ["classify", str(run), str(own / "t.csv"), "--truth", "label", "--output", str(table)]
    assert main([*words, *["--anyway"][:anyway]]) == 0
    shown = capsys.readouterr().out
    found = pd.read_csv(table)
    best = found.loc[found.groupby("image")["probability"].idxmax()].set_index("image")["label"]
    kept = rows[:-1].drop(index=[0, 5])
    told = "not counted 1 image of which rows say different things\n"
    if not anyway:
        seen = whole.index[whole["split"] != "test"].intersection(kept.index)
        kept = kept.drop(index=seen)
        told += f"not counted {len(seen)} images that the run was trained on or chosen by; --anyway counts them\n"
    assert 0 < len(kept) < 35
    expected = accuracy_score(kept["label"], best[kept["image"]])
    assert found["image"].nunique() == 36
    assert f"\n{told}accuracy    {expected:.4f} of {len(kept)} labelled " in shown


def test_images_that_a_run_has_seen_are_answered_but_not_measured(with_head, colour_table, tmp_path):
    """By the files, or by a table in another folder; the run's own figure on the test rows is the reference."""
    rows = pd.read_csv(colour_table)
    files = [str(colour_table.parent / image) for image in rows["image"]]
    seen = int((rows["split"] != "test").sum())
    after = json.loads((with_head.path / "metrics.json").read_text())["after"]["test/accuracy"]
    own = shutil.copytree(colour_table.parent, tmp_path / "own") / colour_table.name
    for images, truth in ((files, rows["label"].tolist()), (own, "label"), (colour_table, "label")):
        found = classify(with_head.path, images, truth=truth)
        assert (found.seen, found.measured, found.rows["image"].nunique()) == (seen, len(rows) - seen, len(rows))
        assert found.metrics["accuracy"] == pytest.approx(after, abs=1e-6)
        counted = classify(with_head.path, images, truth=truth, anyway=True)
        assert (counted.seen, counted.measured) == (0, len(rows))
        pd.testing.assert_frame_equal(counted.rows, found.rows)
    renamed = tmp_path / "new.png"
    shutil.copy(files[0], renamed)
    assert classify(with_head.path, [renamed], truth=["red"]).measured == 1


def test_of_a_run_that_has_seen_all_images_nothing_is_measured(with_head, colour_table, capsys, tmp_path):
    frame = pd.read_csv(colour_table).query("split == 'train'")
    own = shutil.copytree(colour_table.parent, tmp_path / "own")
    frame.to_csv(own / "train.csv", index=False)
    words = ["classify", str(with_head.path), str(own / "train.csv"), "--truth", "label"]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(
        f"not counted {len(frame)} images that the run was trained on or chosen by; --anyway counts them\n"
        "accuracy    of no other image is the label known\n"
    )
    run = shutil.copytree(with_head.path, tmp_path / "run")
    (run / "table.parquet").unlink()
    assert main(["classify", str(run), *words[2:]]) == 0
    shown = capsys.readouterr()
    assert f" of {len(frame)} labelled images\n" in shown.out
    assert "no record of the table it was trained on" in shown.err


def test_anyway_without_truth_is_refused(refused, with_head, images):
    found = refused("classify", with_head.path, images[0], "--anyway")
    assert "Expected --anyway with --truth only, but got no --truth" in found


def test_accuracy_on_a_tar(two_towers, capsys, tmp_path):
    labels = ["red", "green", "red"]
    members = [{f"{at}.jpg": picture(at), f"{at}.cls": label.encode()} for at, label in enumerate(labels)]
    write_tar(tmp_path / "0.tar", *members)
    table = tmp_path / "found.csv"
    words = ["classify", str(two_towers.path), str(tmp_path / "0.tar"), "--truth", "cls", "--output", str(table)]
    assert main(words) == 0
    found = pd.read_csv(table).pivot(index="image", columns="label", values="probability").idxmax(axis=1)
    expected = accuracy_score(labels, found.tolist())
    assert f"\naccuracy    {expected:.4f} of 3 labelled images\n" in capsys.readouterr().out


def test_labels_of_a_file_go_into_templates(tiny, images, capsys, tmp_path):
    (tmp_path / "labels.txt").write_text('cat\n"dog, sitting"\n')
    words = ("--labels", tmp_path / "labels.txt", "--template", "a {}", "--template", "one {}")
    first, found = ask(capsys, tmp_path, tiny, *images, *words)
    assert first.endswith("(zero-shot, in a {} | one {})")
    expected = classify(tiny, images, ["cat", "dog, sitting"], templates=["a {}", "one {}"]).rows
    assert found["label"].tolist() == expected["label"].tolist()
    assert found["probability"].tolist() == pytest.approx(expected["probability"].tolist(), abs=1e-6)


def test_words_that_do_not_go_together_are_refused(refused, with_head, two_towers, images, colour_table, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    labels = ("--labels", tmp_path / "labels.txt")
    assert "--label or --labels, but got both" in refused(
        "classify", two_towers.path, images[0], *labels, "--label", "a"
    )
    assert "a table or tars with the column of --truth" in refused(
        "classify", with_head.path, images[0], "--truth", "label"
    )
    found = refused("classify", two_towers.path, colour_table, *labels, "--truth", "label")
    assert "to be among those that are asked about, but got 'red'" in found
    found = refused("classify", two_towers.path, colour_table, "--truth", "labels")
    assert "Did you mean 'label'" in found
