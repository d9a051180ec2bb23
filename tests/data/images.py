"""Images of noise, and the parts of a PNG."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(width: int, height: int, channels: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng([seed, width, height, channels])
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
