"""Real small models and tables that many tests share."""

import ctypes
import gc
import os
import shutil
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

# Before torch. Test processes share the cores, so each takes one, and its own processes too, as sums depend on it;
# waiting threads would take a busy machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from lightning import Trainer
from PIL import Image
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig

from finetune.commands.cli import main
from finetune.core.types import Batch
from finetune.data.loading.datamodule import ImageTextDataModule
from finetune.data.table.table import Table
from finetune.export import artifact, artifacts
from finetune.export.merged import write_checkpoint
from finetune.export.proof import FreshProcess
from finetune.model.base import Base
from finetune.pipeline import stages

IN_CLOSE_WRITE, IN_CLOSE_NOWRITE, IN_OPEN = 0x8, 0x10, 0x20  # masks of Linux' inotify
NAMES = ("red", "green", "blue")
COYO = {
    "clip_similarity_vitb32": 0.35,
    "clip_similarity_vitl14": 0.25,
    "nsfw_score_opennsfw2": 0.01,
    "nsfw_score_gantman": 0.02,
    "watermark_score": 0.1,
    "aesthetic_score_laion_v2": 5.5,
    "num_faces": 0,
    "width": 640,
    "height": 480,
    "text_length": 24,
}


def pytest_collection_finish() -> None:
    """Spares the garbage collector all that was imported: walking through it takes a twelfth of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """Shells start what runs in the background of a script so that it ignores Ctrl-C, which tests send."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def calibrated_align(seed: int = 0) -> AlignModel:
    """A random ALIGN whose image features vary: convolutions of unit gain, BatchNorm calibrated on noise."""
    torch.manual_seed(seed)
    config = AlignConfig(
        text_config=AlignTextConfig(
            vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        ).to_dict(),
        vision_config=AlignVisionConfig(
            width_coefficient=0.2, depth_coefficient=0.1, image_size=64, hidden_dim=64
        ).to_dict(),
        projection_dim=64,
    )
    model = AlignModel(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.vision_model.train()
    with torch.no_grad():
        for _ in range(3):
            model.get_image_features(pixel_values=torch.randn(16, 3, 64, 64))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = config.vision_config.batch_norm_momentum
    return model.eval()


@pytest.fixture(scope="session")
def build_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Fills a folder in the first test process that asks for it; the others wait and share it. None may change it."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def build(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def opener() -> Iterator[FreshProcess]:
    """A fresh process that opens the folders of many tests, as it opens both folders of one run."""
    with FreshProcess() as fresh:
        yield fresh


@contextmanager
def one_process(opener: FreshProcess) -> Iterator[None]:
    """Has runs, exports and verifications ask the one fresh process, in place of a start of seconds each."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (artifact, artifacts, stages):
            patch.setattr(module, "FreshProcess", lambda: nullcontext(opener))
        yield


@pytest.fixture(scope="module")
def share_opener(opener) -> Iterator[None]:
    """Has a file's runs, exports and verifications share a fresh process; a real start is tested elsewhere."""
    with one_process(opener):
        yield


@pytest.fixture(scope="session")
def tiny(build_once) -> str:
    """A folder with a small random ALIGN that has working squeeze-excite."""

    def fill(folder: Path) -> None:
        write_checkpoint(calibrated_align(), Base.open("align-mini").processor(64), folder)

    return str(build_once("align-tiny", fill))


def random_batch(rows: int = 6, side: int = 64, seed: int = 1) -> Batch:
    """Noise and words with padding, all rows different."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (rows,), generator=generator)
    mask = (torch.arange(8) < lengths[:, None]).long()
    ids = torch.randint(1000, 2000, (rows, 8), generator=generator) * mask
    return Batch(
        pixel_values=torch.randn(rows, 3, side, side, generator=generator),
        input_ids=ids,
        attention_mask=mask,
        rows=torch.arange(rows),
        image_ids=torch.arange(rows),
        caption_ids=torch.arange(rows),
        label_ids=torch.full((rows,), -1),
        weights=torch.ones(rows),
        targets=torch.zeros(rows, 0, dtype=torch.bool),
    )


@pytest.fixture(scope="session")
def batch() -> Batch:
    return random_batch()


@pytest.fixture(scope="module")
def own_tiny(tiny, tmp_path_factory) -> str:
    """A copy of `tiny` that no other test opens."""
    return shutil.copytree(tiny, str(tmp_path_factory.mktemp("own") / "align-tiny"))


def draw_colours(folder: Path) -> None:
    generator = np.random.default_rng(0)
    lines = [",".join(["image,caption,label,split,text", *COYO])]
    for index in range(36):
        pixels = generator.integers(0, 60, (24, 24, 3), dtype=np.uint8)
        pixels[:, :, index % 3] += 190
        Image.fromarray(pixels).save(folder / f"{index}.png")
        split = ("train", "train", "val", "test")[index // 3 % 4]
        name = NAMES[index % 3]
        caption = f"a {name} square number {index}"
        lines.append(",".join([f"{index}.png", caption, name, split, caption, *map(str, COYO.values())]))
    (folder / "colours.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def colour_table(build_once) -> Path:
    """A CSV of 36 noisy red, green and blue squares with caption, label, split and COYO's columns."""
    return build_once("colours", draw_colours) / "colours.csv"


class Started(NamedTuple):
    """A finished run.

    Attributes:
        path: The run's folder.
        recipe: The recipe it was started from.
        shown: What `finetune fit` printed.
    """

    path: Path
    recipe: Path
    shown: str


def start(model: dict, table: Path, request: pytest.FixtureRequest, folder: Path) -> None:
    """Fits a model to the colours for an epoch, the same rows with their captions as a retention table."""
    values = {
        "model": model,
        "data": {
            "table": {"path": str(table), "label": "label", "split": "split"},
            "retention": [{"path": str(table), "caption": "caption", "split": "split"}],
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"folder": str(folder / "runs"), "linear_probe": False, "neighbours": 3},
    }
    recipe = folder / "colours.yaml"
    recipe.write_text(yaml.safe_dump(values))
    shown = StringIO()
    with redirect_stdout(shown), one_process(request.getfixturevalue("opener")):
        assert main(["fit", "--config", str(recipe)]) == 0
    (folder / "shown.txt").write_text(shown.getvalue())


def started(folder: Path) -> Started:
    return Started(folder / "runs" / "colours", folder / "colours.yaml", (folder / "shown.txt").read_text())


@pytest.fixture(scope="session")
def two_towers(tiny, colour_table, build_once, request) -> Started:
    """A run that adapted both towers to class prompts."""
    lora = {"rank": 2}
    model = {"checkpoint": tiny, "image_lora": lora, "text_lora": lora}
    return started(build_once("two_towers", partial(start, model, colour_table, request)))


@pytest.fixture(scope="session")
def with_head(tiny, colour_table, build_once, request) -> Started:
    """A run that trained a head with the image tower, and exported a classifier beside the merged checkpoint."""
    values = {"checkpoint": tiny, "image_lora": {"rank": 2}, "head_start": "finetune.FromProbe"}
    model = {"class_path": "finetune.ClassificationTask", "init_args": values}
    return started(build_once("with_head", partial(start, model, colour_table, request)))


@pytest.fixture
def labels(colour_table, tiny) -> ImageTextDataModule:
    """The colours as a table with labels, in batches of 8."""
    return ImageTextDataModule(Table(str(colour_table), label="label", split="split"), tiny, batch_size=8)


@pytest.fixture
def build_trainer(tmp_path) -> Callable[..., Trainer]:
    """Makes a quiet trainer that writes nothing of itself; takes the options of Lightning's."""
    return partial(
        Trainer,
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


@pytest.fixture
def count_opens() -> Iterator[Callable[[Path], Callable[[], int]]]:
    """Watches a file, and returns a function that says how often any process has opened it since.

    Linux reports it (inotify). It reports opens that overlap as one, so the events of closing are read, too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        pytest.skip("needs inotify")
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        pytest.skip(f"needs inotify: {os.strerror(ctypes.get_errno())}")
    opens: Counter[int] = Counter()

    def read() -> None:
        while True:
            try:
                events = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return
            while events:
                watch, mask, _, length = struct.unpack_from("iIII", events)
                opens[watch] += bool(mask & IN_OPEN)
                events = events[struct.calcsize("iIII") + length :]

    def watch(path: Path) -> Callable[[], int]:
        number = libc.inotify_add_watch(descriptor, os.fsencode(path), IN_OPEN | IN_CLOSE_WRITE | IN_CLOSE_NOWRITE)
        assert number >= 0, os.strerror(ctypes.get_errno())
        read()
        before = opens[number]

        def count() -> int:
            read()
            return opens[number] - before

        return count

    yield watch
    os.close(descriptor)
