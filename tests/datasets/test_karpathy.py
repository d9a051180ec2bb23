"""Karpathy's split files as tables, and retrieval on them against the definition in NumPy."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AlignModel, AlignProcessor

from finetune.core.shipped import shipped_folder
from finetune.data.table.table import Table

main = runpy.run_path(str(shipped_folder("datasets") / "karpathy.py"))["main"]
SPLITS = ("train", "restval", "val", "test", "test", "test")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split file as COCO's, and the images: five captions each, six of one, one caption on two test images."""
    folder = tmp_path_factory.mktemp("coco")
    generator = np.random.default_rng(0)
    images, sentid = [], 0
    for imgid in range(24):
        split = SPLITS[imgid % 6]
        place = "train2014" if split == "train" else "val2014"
        name = f"COCO_{place}_{imgid:012d}.jpg"
        (folder / place).mkdir(exist_ok=True)
        colours = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((80, 60), Image.Resampling.BICUBIC).save(folder / place / name)
        sentences = []
        for turn in range(6 if imgid == 4 else 5):
            words = " ".join(generator.choice(["a", "red", "dog", "on", "the", "green", "boat", "two", "men"], 6))
            raw = "A picture, of something.\n" if (imgid, turn) in ((3, 0), (9, 2)) else f"{words} {imgid}"
            sentences.append({"tokens": raw.split(), "raw": raw, "imgid": imgid, "sentid": sentid})
            sentid += 1
        images.append(
            {
                "filepath": place,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": name,
                "imgid": imgid,
                "split": split,
                "sentences": sentences,
                "cocoid": 1000 + imgid,
            }
        )
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder


def words(coco: Path, output: Path) -> list[str]:
    return ["--splits", str(coco / "dataset_coco.json"), "--images", str(coco), "--output", str(output)]


def test_a_row_for_each_caption(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(coco, tmp_path / "out")) == 0
    assert (
        "121 captions (8 train images with 40, 4 val images with 20, 12 test images with 61)" in capsys.readouterr().out
    )
    found = pd.read_csv(tmp_path / "out" / "captions.csv", dtype=str)
    assert list(found) == ["image", "caption", "split", "image_id", "caption_id"]
    assert found["caption_id"].tolist() == [str(number) for number in range(121)]
    expected = [
        (
            f"{image['filepath']}/{image['filename']}",
            sentence["raw"].strip(),
            image["split"].replace("restval", "train"),
        )
        for image in json.loads((coco / "dataset_coco.json").read_text())["images"]
        for sentence in image["sentences"]
    ]
    assert list(found[["image", "caption", "split"]].itertuples(index=False, name=None)) == expected
    first = (tmp_path / "out" / "captions.csv").read_bytes()
    assert main(words(coco, tmp_path / "out")) == 0
    assert (tmp_path / "out" / "captions.csv").read_bytes() == first


def test_restval_and_other_splits_can_be_left_out(coco: Path, tmp_path: Path) -> None:
    assert main([*words(coco, tmp_path / "few"), "--without-restval"]) == 0
    found = pd.read_csv(tmp_path / "few" / "captions.csv")
    assert found.groupby("split")["image"].nunique().to_dict() == {"test": 12, "train": 4, "val": 4}
    assert set(found["image"][found["split"] == "train"].str.split("/").str[0]) == {"train2014"}
    (tmp_path / "val2014").symlink_to(coco / "val2014")
    only = [*words(coco, tmp_path / "test"), "--images", str(tmp_path), "--only", "test"]
    assert main(only) == 0  # the training images are not there, and are not missed
    assert set(pd.read_csv(tmp_path / "test" / "captions.csv")["split"]) == {"test"}


def test_flickr_has_no_folders(coco: Path, tmp_path: Path) -> None:
    split = json.loads((coco / "dataset_coco.json").read_text())
    for image in split["images"]:
        del image["filepath"], image["cocoid"]
        image["split"] = image["split"].replace("rest", "")
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(split))
    (tmp_path / "flat").mkdir()
    for path in coco.glob("*2014/*.jpg"):
        (tmp_path / "flat" / path.name).symlink_to(path)
    out = tmp_path / "out"
    options = ["--splits", str(tmp_path / "dataset_flickr30k.json"), "--images", str(tmp_path / "flat")]
    assert main([*options, "--output", str(out)]) == 0
    table = Table(
        str(out / "captions.csv"), caption="caption", split="split", images=str(tmp_path / "flat"), outside=True
    )
    rows = table.read()
    assert [len(rows.indices(name)) for name in ("train", "val", "test")] == [20, 40, 61]


def test_everything_that_is_wrong_is_listed_at_once(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = json.loads((coco / "dataset_coco.json").read_text())
    split["images"][0]["split"] = "trian"
    split["images"][1]["sentences"][2]["raw"] = " "
    split["images"][2]["filename"] = "COCO_val2014_000000000002.JPG"
    del split["images"][3]["filename"]
    (tmp_path / "bad.json").write_text(json.dumps(split))
    options = ["--images", str(coco), "--output", str(tmp_path / "out")]
    assert main(["--splits", str(tmp_path / "bad.json"), *options]) == 2
    printed = capsys.readouterr().err
    assert "bad.json:0:split: Expected train, restval, val or test, but got 'trian'. Did you mean 'train'?" in printed
    assert "bad.json:1:sentences: Expected sentences with a text 'raw' each" in printed
    assert "Did you mean 'COCO_val2014_000000000002.jpg'?" in printed
    assert "bad.json:3:filename: Expected the name of an image file, but got 'None'" in printed
    assert len(printed.splitlines()) == 4
    assert not (tmp_path / "out").exists()
    assert main([*words(coco, tmp_path / "out"), "--images", str(tmp_path)]) == 2
    assert "… and 14 more" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"annotations": []}')
    assert main(["--splits", str(tmp_path / "other.json"), *options]) == 2
    assert "to be one of Karpathy's split files" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert main(words(coco, tmp_path / "mine")) == 2
    assert "it holds something else" in capsys.readouterr().err
    split["images"] = [{**split["images"][5], "split": "val"}]
    (tmp_path / "val.json").write_text(json.dumps(split))
    assert main(["--splits", str(tmp_path / "val.json"), *options, "--only", "test"]) == 2
    assert "Expected images of test, but got none" in capsys.readouterr().err


def embed_test_split(coco: Path, checkpoint: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By transformers alone: an embedding for each test image and each of its captions, and each caption's image."""
    model, processor = AlignModel.from_pretrained(checkpoint).eval(), AlignProcessor.from_pretrained(checkpoint)
    images, captions, owners = [], [], []
    for image in json.loads((coco / "dataset_coco.json").read_text())["images"]:
        if image["split"] == "test":
            owners += [len(images)] * len(image["sentences"])
            captions += [sentence["raw"] for sentence in image["sentences"]]
            images.append(Image.open(coco / image["filepath"] / image["filename"]).convert("RGB"))
    text = processor(text=captions, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(images=images, return_tensors="pt")
        embeds = [model.get_image_features(**pixels).pooler_output, model.get_text_features(**text).pooler_output]
    one, other = (found.double().numpy() / np.linalg.norm(found.double().numpy(), axis=1)[:, None] for found in embeds)
    return one, other, np.array(owners)


def recall(scores: np.ndarray, correct: np.ndarray, k: int) -> float:
    """The share of queries with any correct item among the k best, as COYO-ALIGN's evaluation counts it."""
    best = np.argsort(-scores, axis=1)[:, :k]
    return float(np.take_along_axis(correct, best, axis=1).any(axis=1).mean())


@pytest.mark.slow
def test_the_command_finds_the_figures_of_the_definition(coco: Path, tiny: str, tmp_path: Path) -> None:
    assert main(words(coco, tmp_path / "out")) == 0
    command = [sys.executable, "-m", "finetune", "test", "--config", "karpathy", "--model.checkpoint", tiny]
    command += ["--data.table.path", str(tmp_path / "out" / "captions.csv"), "--data.table.images", str(coco)]
    command += ["--data.num_workers", "0", "--data.batch_size", "16", "--trainer.accelerator", "cpu"]
    screen = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    shown = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in screen.splitlines() if "R@" in line}
    images, captions, owners = embed_test_split(coco, tiny)
    scores, correct = images @ captions.T, owners == np.arange(len(images))[:, None]
    assert scores.shape == (12, 61)
    figures = {}
    for k in (1, 5, 10):
        figures[f"test/image_to_text/R@{k}"] = recall(scores, correct, k)
        figures[f"test/text_to_image/R@{k}"] = recall(scores.T, correct.T, k)
    assert len(set(figures.values())) > 3
    assert {key: shown[key] for key in figures} == {key: f"{100 * value:.1f} %" for key, value in figures.items()}
