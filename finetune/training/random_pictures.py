"""Random pictures: overlapping shapes in random colours."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_CORNERS = (3, 4, 40)
"""Triangles, rectangles, and what passes for ellipses."""

_SHAPES = (5, 60)
_SQUEEZE = (0.3, 1.0)
_SHADE = 0.5
_NOISE = 12.0


def draw_picture(number: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Draws a picture of 5 to 59 shapes of all sizes, each in front of those drawn so far, most of them small.

    It is a dead leaves image, on which towers can learn what edges and textures are (Baradad et al. 2021, arXiv
    2106.05963): shapes hide each other as things do. Here each changes its colour from one side to the other, and there
    is some noise.

    Args:
        number: Says which picture: the same number and size give the same picture.
        height: In pixels.
        width: In pixels.

    Returns:
        Levels, of shape (3, height, width).
    """
    random = np.random.default_rng(number)
    picture = np.empty((height, width, 3))
    picture[:] = random.integers(256, size=3)
    for _ in range(random.integers(*_SHAPES)):
        _add_shape(picture, random)
    picture += random.normal(0, random.uniform(0, _NOISE), picture.shape)
    return picture.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)


def _add_shape(picture: npt.NDArray[np.float64], random: np.random.Generator) -> None:
    height, width, _ = picture.shape
    size = 2 + max(height, width) / 2 * random.random() ** 2
    centre, turned = random.random(2) * (width, height), 2 * np.pi * random.random()
    along = np.array([np.cos(turned), np.sin(turned)])
    across = random.uniform(*_SQUEEZE) * np.array([-along[1], along[0]])
    corners = _CORNERS[random.integers(len(_CORNERS))]
    angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    points = centre + size * (np.cos(angles)[:, None] * along + np.sin(angles)[:, None] * across)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([*map(tuple, points)], fill=1)
    rows, columns = np.nonzero(np.asarray(mask))
    shade = 255 * random.uniform(-_SHADE, _SHADE) / (2 * size)
    ramp = shade * ((columns - centre[0]) * along[0] + (rows - centre[1]) * along[1])
    picture[rows, columns] = (random.integers(256, size=3) + ramp[:, None]).clip(0, 255)
