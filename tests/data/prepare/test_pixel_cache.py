"""Kept images are those that are decoded anew, whoever fills the cache, however it ends, whatever changes."""

import os
import resource
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.core.cache import UNUSED
from finetune.data.prepare.images import ImagePreparation, open_image, try_image
from finetune.data.prepare.pixel_cache import CHECK, DIGEST, PixelCache

from ..images import noise
from ..processors import align_base, align_mini

PREPARE = ImagePreparation.from_processor(align_mini())
CHILD = """
import fcntl, os, sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from finetune.data.prepare.images import ImagePreparation
from finetune.data.prepare.pixel_cache import PixelCache
prepare = ImagePreparation((96, 96), Image.Resampling.BICUBIC, (96, 96))
cache = PixelCache(Path(sys.argv[1]), prepare, 100)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """Files of noise, some of them JPEG."""
    folder = tmp_path_factory.mktemp("images")
    paths = [str(folder / f"{at}.{'jpg' if at % 3 else 'png'}") for at in range(12)]
    for at, path in enumerate(paths):
        Image.fromarray(noise(120, 80 + at, 3)).save(path)
    return paths


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def fresh(path: str, prepare: ImagePreparation = PREPARE) -> np.ndarray:
    return prepare(open_image(path))


def cached(folder: Path, prepare: ImagePreparation = PREPARE) -> PixelCache:
    """As another process opens it."""
    return PixelCache(folder, prepare, 100)


def digest(path: str) -> bytes:
    return blake2b(Path(path).read_bytes(), digest_size=DIGEST).digest()


def index(folder: Path) -> Path:
    (found,) = folder.glob("pixels-*/index")
    return found


def count(folder: Path) -> float:
    return index(folder).stat().st_size / (DIGEST + CHECK)


def start(folder: Path, code: str, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD + textwrap.dedent(code), str(folder), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kept_images_are_those_decoded_anew(folder, images):
    for cache in (first := cached(folder), first, cached(folder)):
        for path in images:
            found = cache.read(path)
            assert found.dtype == np.uint8
            assert found.flags.writeable
            assert np.array_equal(found, fresh(path))
        assert (cache.fault, count(folder)) == ("", len(images))


def test_what_is_kept_is_not_decoded_again(folder, images):
    """Another picture is kept under the file's content: it is what comes back."""
    cache = cached(folder)
    cache._files.add(digest(images[0]), fresh(images[1]))
    assert np.array_equal(cache.read(images[0]), fresh(images[1]))
    assert np.array_equal(cached(folder).read(images[0]), fresh(images[1]))


def test_members_of_a_tar_are_kept_by_their_content(folder, images, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in images[:2]:
            tar.add(path, Path(path).name)
    with tarfile.open(tmp_path / "0.tar") as tar:
        addresses = [f"{tmp_path}/0.tar:{one.name}@{one.offset_data}+{one.size}" for one in tar.getmembers()]
    cache = cached(folder)
    for path, address in zip(images, addresses, strict=False):
        assert np.array_equal(cache.read(address), fresh(path))
        assert np.array_equal(cache.read(address), fresh(path))
        assert np.array_equal(cache.read(path), fresh(path))  # the same bytes elsewhere
    assert count(folder) == 2


def test_a_changed_file_is_decoded_anew_though_its_size_and_time_are_the_same(folder, tmp_path):
    path = tmp_path / "image.bmp"
    Image.fromarray(noise(50, 50, 3, seed=1)).save(path)
    cache, before = cached(folder), path.stat()
    first = cache.read(str(path))
    Image.fromarray(noise(50, 50, 3, seed=2)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    for again in (cache, cached(folder)):
        found = again.read(str(path))
        assert np.array_equal(found, fresh(str(path)))
        assert not np.array_equal(found, first)


def test_other_settings_have_a_place_of_their_own(folder, images):
    size = {"height": 64, "width": 64}
    others = [align_mini(), align_mini(size=size, crop_size=size), align_mini(resample=2), align_base()]
    preparations = [ImagePreparation.from_processor(processor) for processor in others]
    for _ in range(2):
        for prepare in preparations:
            assert np.array_equal(cached(folder, prepare).read(images[0]), fresh(images[0], prepare))
    assert len([*folder.glob("pixels-*")]) == len(others) == len({one.fingerprint for one in preparations})


def test_images_without_one_shape_are_not_kept(folder, images):
    prepare = ImagePreparation.from_processor(align_base(do_resize=False, do_center_crop=False))
    assert np.array_equal(cached(folder, prepare).read(images[0]), fresh(images[0], prepare))
    assert not folder.exists()


def test_processes_that_fill_it_at_once_leave_each_image_once(folder, images):
    code = "for path in np.random.default_rng(os.getpid()).permutation(sys.argv[2:]): cache.read(str(path))"
    for child in [start(folder, code, *images) for _ in range(3)]:
        assert child.wait(60) == 0
    assert count(folder) == len(images)
    cache = cached(folder)
    assert all(np.array_equal(cache.read(path), fresh(path)) for path in images)
    assert count(folder) == len(images)


def test_a_filler_that_is_killed_leaves_no_torn_image_and_no_lock(folder, images):
    """It dies inside its writing, once the second image and its entry are begun."""
    code = """
    cache.read(sys.argv[2])
    files = cache._files
    fcntl.lockf(files._index, fcntl.LOCK_EX)
    os.pwrite(files._pixels, b"x" * 1000, files._size)
    os.pwrite(files._index, b"x" * 7, 20)
    print("begun", flush=True)
    time.sleep(60)
    """
    child = start(folder, code, images[0])
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    assert count(folder) == 1 + 7 / 20
    cache = cached(folder)
    for path in images[:3]:
        assert np.array_equal(cache.read(path), fresh(path))
    assert count(folder) == 3
    assert all(np.array_equal(cached(folder).read(path), fresh(path)) for path in images[:3])


def test_an_image_that_the_disk_has_lost_is_decoded_anew(folder, images):
    cached(folder).read(images[0])
    pixels = index(folder).with_name("pixels")
    content = pixels.read_bytes()
    for lost in (bytes(len(content)), content[: len(content) // 2], b""):
        pixels.write_bytes(lost)
        cache = cached(folder)
        assert np.array_equal(cache.read(images[0]), fresh(images[0]))
        assert np.array_equal(cache.read(images[0]), fresh(images[0]))


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Lets no file grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_images_are_decoded_and_what_was_begun_is_taken_back(folder, images):
    cache, size = cached(folder), fresh(images[0]).size
    with room_for(2 * size + 100):
        for path in images:
            assert np.array_equal(cache.read(path), fresh(path))
    fault = f"Decoded images are no longer kept in {folder}: File too large. "
    assert cache.fault == fault + "Set data.cache to another folder, or to null."
    assert count(folder) == 2
    assert index(folder).with_name("pixels").stat().st_size == 2 * size
    again = cached(folder)
    assert all(np.array_equal(again.read(path), fresh(path)) for path in images)
    assert (again.fault, count(folder)) == ("", len(images))


@pytest.mark.parametrize("place", ["a file", "a folder of the system", "a folder that takes no files"])
def test_a_place_that_takes_no_files_is_done_without(folder, images, place):
    if place == "a file":
        folder.write_text("")
    elif place == "a folder of the system":
        folder = Path("/proc/nothing")
    elif os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    else:
        folder.mkdir(mode=0o500)
    cache = cached(folder)
    assert np.array_equal(cache.read(images[0]), fresh(images[0]))
    assert cache.fault.startswith(f"Decoded images are no longer kept in {folder}: ")


def test_more_than_the_disk_has_room_for_is_not_kept(folder, images):
    cache = PixelCache(folder, PREPARE, 10**12)
    for _ in range(2):
        assert np.array_equal(cache.read(images[0]), fresh(images[0]))
    assert (cache.fault, count(folder)) == ("", 0)


def test_images_that_nobody_asks_for_are_removed_in_time(folder, images):
    prepare = ImagePreparation.from_processor(align_base())
    cached(folder).read(images[0])
    old = index(folder)
    os.utime(old, 2 * (time.time() - UNUSED + 60,))
    cached(folder, prepare).read(images[0])
    assert old.exists()
    os.utime(old, 2 * (time.time() - UNUSED - 60,))
    (folder / "own.txt").write_text("of the user")
    cached(folder, prepare).read(images[0])
    assert not old.parent.exists()
    assert len([*folder.iterdir()]) == 2


def test_what_cannot_be_read_has_the_same_reason_and_is_not_kept(folder, images, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.jpg").write_bytes(Path(images[1]).read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    cache = cached(folder)
    cache.read(images[0])
    for name in ("empty.png", "half.jpg", "text.png", "pipe.png", "none.png", "0.tar:a.png@0+10"):
        path = str(tmp_path / name)
        assert cache.read(path) == try_image(path)
        assert isinstance(cache.read(path), str)
    assert count(folder) == 1


def test_a_system_without_posix_locks_keeps_nothing(folder, images):
    """Windows has no fcntl."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        + CHILD.replace("fcntl, ", "")
        + ("print(cache.read(sys.argv[2]).tobytes() == prepare(Image.open(sys.argv[2]).convert('RGB')).tobytes())")
    )
    command = [sys.executable, "-c", code, str(folder), images[0]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
    assert not folder.exists()
