"""COYO's metadata joined with a folder as img2dataset writes it."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from finetune.core.shipped import shipped_folder
from finetune.data.table.table import RandomSplit, Table

ROOT = shipped_folder("recipes").parent


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    script: Callable[[list[str]], int] = runpy.run_path(str(shipped_folder("datasets") / "coyo.py"))["main"]
    return script


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """40 rows of metadata in two files; img2dataset's two shards, in which some downloads failed."""
    generator = np.random.default_rng(0)
    columns = {
        name: generator.random(40)
        for name in (
            "clip_similarity_vitb32",
            "clip_similarity_vitl14",
            "nsfw_score_opennsfw2",
            "nsfw_score_gantman",
            "watermark_score",
        )
    }
    columns |= {name: generator.integers(300, 900, 40) for name in ("width", "height")}
    columns |= {"aesthetic_score_laion_v2": generator.normal(5, 1, 40), "num_faces": generator.integers(0, 2, 40)}
    urls = [f"https://example.org/{min(row, 38)}.jpg" for row in range(40)]  # the last two are one picture
    metadata = pd.DataFrame({"id": range(40), "url": urls, "text": [f"a photo of number {row}" for row in range(40)]})
    metadata = metadata.assign(text_length=metadata["text"].str.len(), **columns)
    (tmp_path / "metadata").mkdir()
    for part in range(2):
        metadata[part * 20 : part * 20 + 20].to_parquet(tmp_path / "metadata" / f"{part}.parquet")
        folder = tmp_path / "images" / f"{part:05d}"
        folder.mkdir(parents=True)
        lines = []
        for row in range(part * 20, part * 20 + 20):
            key, status = f"{part:05d}{row % 20:04d}", "failed_to_download" if row % 5 == 0 else "success"
            lines.append({"key": key, "url": urls[row], "status": status, "caption": "x"})
            if status == "success" and row != 7:  # one file got lost
                Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"{key}.jpg")
        pd.DataFrame(lines).to_parquet(tmp_path / "images" / f"{part:05d}.parquet")
    return tmp_path


def arguments(folder: Path) -> list[str]:
    words = ["--metadata", str(folder / "metadata" / "*.parquet"), "--images", str(folder / "images")]
    return [*words, "--output", str(folder / "coyo")]


def test_rows_with_a_picture(
    downloaded: Path, main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(downloaded)) == 0
    assert "31 rows with a picture, of 40 in the metadata" in capsys.readouterr().out
    found = pd.read_parquet(downloaded / "coyo" / "coyo.parquet")
    assert found["id"].tolist() == [row for row in range(40) if row % 5 and row != 7]
    assert found["image"][0] == "00000/000000001.jpg"
    assert found["image"].tolist()[-2:] == ["00001/000010018.jpg"] * 2
    source = pd.concat([pd.read_parquet(downloaded / "metadata" / f"{part}.parquet") for part in range(2)])
    expected = source[source["id"].isin(found["id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns="image"), expected)
    assert all((downloaded / "images" / name).is_file() for name in found["image"])
    before = (downloaded / "coyo" / "coyo.parquet").read_bytes()
    assert main(arguments(downloaded)) == 0
    assert (downloaded / "coyo" / "coyo.parquet").read_bytes() == before


def test_the_recipe_reads_it(
    downloaded: Path, main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "recipes" / "coyo.yaml").read_text()
    assert len(text.splitlines()) <= 45
    assert [line.split(":")[0] for line in text.splitlines()[:4]] == ["# Goal", "# Data", "# Command", "# Override"]
    assert main(arguments(downloaded)) == 0
    (downloaded / "data").mkdir()
    (downloaded / "coyo").rename(downloaded / "data" / "coyo")
    (downloaded / "images").rename(downloaded / "data" / "coyo_images")
    monkeypatch.chdir(downloaded)
    settings = yaml.safe_load(text)["data"]["table"]
    frame = pd.read_parquet("data/coyo/coyo.parquet")
    settings["split"] = RandomSplit(**settings["split"])
    loose = settings | {"filter": "nsfw_score_opennsfw2 < 0.5 and num_faces == 0 and width >= 300"}
    rows = Table(**loose).read(required=())
    assert rows.captions.tolist() == frame.query(loose["filter"])["text"].tolist()
    query = frame.query(settings["filter"])
    frame = pd.concat([frame, frame.assign(**{name: 0.0 for name in frame if name.startswith(("nsfw", "water"))})])
    frame = frame.assign(num_faces=0, aesthetic_score_laion_v2=5.0)
    frame.to_parquet("data/coyo/coyo.parquet")
    kept = frame.query(settings["filter"])
    assert len(kept) > len(query)
    assert Table(**settings).read(required=()).captions.tolist() == kept["text"].tolist()


def test_what_is_wrong(downloaded: Path, main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(downloaded)
    assert main([*words, "--images", str(downloaded / "metadata")]) == 2
    assert "img2dataset" in capsys.readouterr().err
    assert main([*words, "--metadata", "nothing*.parquet"]) == 2
    assert "nothing matches 'nothing*.parquet'" in capsys.readouterr().err
    assert main([*words, "--metadata", str(downloaded / "images" / "00000" / "*.jpg")]) == 2
    assert "Expected Parquet files of COYO's metadata" in capsys.readouterr().err
    (downloaded / "coyo").mkdir()
    (downloaded / "coyo" / "mine.txt").touch()
    assert main(words) == 2
    assert "it holds something else" in capsys.readouterr().err
    pd.DataFrame({"url": ["https://example.org/other"]}).to_parquet(downloaded / "other.parquet")
    assert main([*words[:4], "--output", str(downloaded / "new"), "--metadata", str(downloaded / "other.parquet")]) == 2
    assert "none of its 1 addresses" in capsys.readouterr().err
    assert not (downloaded / "new").exists()
