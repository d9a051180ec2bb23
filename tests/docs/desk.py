"""A folder with what the documentation's commands name: tables, images, a recipe, runs, a hub with align-base."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

COMMIT = "0123456789" * 4
COLOURS = ("red", "green", "blue")
THINGS = ("boat", "bicycle", "boot", "cup")


def fill_desk(folder: Path, base: str) -> None:
    """Writes all that is there before the first command of a page; `base` stands for align-base in the hub's cache."""
    random = np.random.default_rng(0)
    rows = []
    for place in ("photos", "other"):
        (folder / place).mkdir()
        for number in range(48):
            pixels = random.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[:, :, number % 3] += 190
            image = f"{place}/{number}.jpg"
            Image.fromarray(pixels).save(folder / image)
            colour, thing = COLOURS[number % 3], THINGS[number // 3 % 4]
            rows.append((image, f"a {colour} {thing}, number {number}", colour, f"{colour} | {thing}"))
            if place == "photos":
                (folder / "by_class" / colour).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / "by_class" / colour / f"{number}.jpg")
    table = pd.DataFrame(rows, columns=["image", "caption", "label", "tags"])
    table["split"] = (["train"] * 6 + ["val", "test"]) * (len(table) // 8)
    table["clip_score"], table["num_faces"], table["weight"] = 0.4, 0, 1.0
    photos, other = table[:48], table[48:]
    photos.to_csv(folder / "photos.csv", index=False)
    photos[["image", "label"]].to_csv(folder / "more.csv", index=False)
    photos.to_csv(folder / "labels.csv", index=False)
    photos[["caption"]].to_csv(folder / "texts.csv", index=False)
    photos.rename(columns={"caption": "question"})[["question"]][:3].to_csv(folder / "questions.csv", index=False)
    other.assign(image=other["image"].str.removeprefix("other/")).to_csv(folder / "other/photographs.csv", index=False)
    (folder / "names.csv").write_text("".join(f"{colour},{colour} things\n" for colour in COLOURS))
    for copy in ("photo.png", "query.jpg"):
        Image.open(folder / "photos/1.jpg").save(folder / copy)
    snapshot = folder / "hub/models--kakaobrain--align-base/snapshots" / COMMIT
    shutil.copytree(base, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    recipe = {
        "model": {"image_lora": {"rank": 2}, "text_lora": {"rank": 2}},
        "data": {
            "table": {"path": "photos.csv", "caption": "caption", "split": "split"},
            "retention": [{"path": "other/photographs.csv", "caption": "caption", "split": "split"}],
            "batch_size": 16,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
