"""`finetune embed`: what it says and writes, and real processes that share the work, are killed, and start again."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.commands.cli import main
from finetune.inference.vector_folder import read_vectors


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder, random = tmp_path_factory.mktemp("own") / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(120):
        Image.fromarray(random.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def embed(capsys, *words: object) -> list[str]:
    capsys.readouterr()
    assert main(["embed", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_folder_of_images(capsys, tiny, colour_table, tmp_path):
    folder, place = tmp_path / "photos", tmp_path / "photos.parquet"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes((colour_table.parent / f"{number}.png").read_bytes())
    (folder / "._0.png").write_bytes(b"droppings")
    (folder / "cut.png").write_bytes(b"nothing")
    words = (tiny, folder, "--output", place, "--part-rows", 2)
    done, *skipped, hidden, last = embed(capsys, *words)
    assert re.fullmatch(r"embedded    3 images in 2 parts, \d+\.\d images/s", done)
    assert skipped == [
        "skipped     1 image, as they cannot be read",
        f"  {folder / 'cut.png'}: its content is of none of these formats",
    ]
    assert hidden == f"left out    1 hidden file, such as {folder / '._0.png'}"
    fingerprint = read_vectors(place).facts.space.fingerprint
    assert last == f"vectors     {place}: 3 of 64 numbers, normalised, float32, by sha256:{fingerprint[:12]}"
    assert embed(capsys, *words)[0] == "nothing to do: all 3 images were embedded already"


def test_texts_of_a_table(capsys, tiny, colour_table, tmp_path):
    place = tmp_path / "texts.npy"
    words = (tiny, colour_table, "--texts", "caption", "--output", place, "--float16", "--raw", "--device", "cpu")
    done, last = embed(capsys, *words)
    assert done.startswith("embedded    36 texts in 1 part, ")
    assert ": 36 of 64 numbers, raw, float16, by sha256:" in last
    found = read_vectors(place)
    assert (found.ids[0], found.values[0]) == ("2", "a red square number 0")
    assert np.load(place).dtype == np.float16


def test_lines_of_standard_input(capsys, tiny, colour_table, tmp_path, monkeypatch):
    lines = "".join(f"{colour_table.parent}/{number}.png\n" for number in range(2))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    embed(capsys, tiny, "-", "--output", tmp_path / "a.safetensors")
    assert read_vectors(tmp_path / "a.safetensors").ids == lines.split()


def test_a_table_is_embedded_by_its_column(capsys, tiny, colour_table, tmp_path):
    place = tmp_path / "vectors"
    embed(capsys, tiny, colour_table, "--output", place, "--format", "npy", "--part-rows", 30, "--batch-size", 8)
    assert sorted(path.name for path in place.glob("*.npy")) == ["colours-00000.npy", "colours-00001.npy"]
    assert read_vectors(place).facts.rows == 36


def test_what_cannot_be_embedded_is_refused(refused, tiny, colour_table, tmp_path, monkeypatch):
    place, image = tmp_path / "a.parquet", colour_table.parent / "0.png"
    assert "Did you mean 'align-mini'" in refused("embed", "algin-mini", image, "--output", place)
    assert "Did you mean" in refused("embed", tiny, f"{image}x", "--output", place)
    assert "a column 'captoin'" in refused("embed", tiny, colour_table, "--texts", "captoin", "--output", place)
    assert "Expected --device to be one" in refused("embed", tiny, image, "--output", place, "--device", "tpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process to read standard input" in refused("embed", tiny, "-", "--output", place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--batch-size", "0"], ["--part-rows", "-1"], ["--format", "csv"], []])
def test_words_that_say_nothing_are_refused(tiny, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["embed", tiny, "photos", *([*words, "--output", "x"] if words else [])])
    assert stop.value.code == 2
    assert "usage" not in capsys.readouterr().err


def start(*words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "finetune", "embed", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def expect(capsys, photos: Path, words: list, place: Path) -> None:
    """The output is that of one undisturbed process, and nothing is left beside it."""
    undisturbed = photos.parent / "undisturbed.parquet"
    if not undisturbed.exists():
        embed(capsys, *words, "--output", undisturbed)
    found, expected = read_vectors(place), read_vectors(undisturbed)
    assert found.facts == expected.facts
    assert found.ids == expected.ids
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)
    assert sorted(path.name for path in place.parent.iterdir()) == [place.name]


@pytest.mark.slow
def test_killed_processes_lose_nothing_and_others_go_on(capsys, tiny, photos, tmp_path):
    """Two of them share the work; both are killed with parts half done, and a third starts."""
    place = tmp_path / "photos.parquet"
    words = [tiny, photos, "--part-rows", 2]
    parts = tmp_path / "photos.parquet.parts"
    workers = [start(*words, "--output", place) for _ in range(2)]
    for worker in workers:
        so_far = len([*parts.glob("*.parquet")])
        wait(lambda more=so_far: len([*parts.glob("*.parquet")]) > more + 2)
        worker.kill()
        worker.communicate()
    done = len([*parts.glob("*.parquet")])
    assert 6 <= done < 60
    assert embed(capsys, *words, "--output", place)[0] == f"went on     {done} of 60 parts were whole already"
    expect(capsys, photos, words, place)


@pytest.mark.slow
def test_a_process_goes_on_for_one_that_dies(capsys, tiny, photos, tmp_path):
    """The second comes later, and does what the first held when it was killed."""
    place = tmp_path / "vectors"
    words = [tiny, photos, "--part-rows", 2]
    first = start(*words, "--output", place)
    wait(lambda: len([*place.glob("*.parquet")]) > 2)
    second = start(*words, "--output", place)
    wait(lambda: len([*place.glob("*.parquet")]) > 6)
    first.kill()
    first.communicate()
    shown, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert "120 of 64 numbers" in shown
    assert read_vectors(place).facts.rows == 120
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    expect(capsys, photos, words, place)


@pytest.mark.slow
def test_torchrun_shares_the_work(capsys, tiny, photos, tmp_path):
    place = tmp_path / "photos.parquet"
    words = [tiny, photos, "--part-rows", 2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "finetune", "embed"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [*command, *map(str, words), "--output", place], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shares = [int(found) for found in re.findall(r"embedded +\d+ images in (\d+) parts", done.stdout)]
    assert sum(shares) == 60
    assert len(shares) == 2
    assert done.stdout.count("120 of 64 numbers") == 2
    expect(capsys, photos, words, place)
