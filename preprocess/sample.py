"""The embedded sample: raw images drawn from a seed, for demos and tests without data.

Ten classes of figures on mottled grounds. Colours, the lighter one of the two, position, size, tilt, proportions and
clutter are drawn at random for every image, so that no pixel's mean says anything about the class and a linear model
fails; a convolutional network learns the figures within minutes. A mirrored figure stays in its class.

The files are like a collection of photographs: many sizes and shapes, JPEGs of several qualities, some grey,
CMYK or with an EXIF orientation, PNGs with the ending .JPEG, and a few that are broken.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from preprocess.run.pool import Tally
from preprocess.sources.catalogue import Catalogue, FileRef, shuffle_key

NAME = "sample"

_PER_CLASS = {"train": 240, "val": 50}
_BROKEN = ("truncated", "truncated", "empty", "empty", "text", "text")
_FILES_PER_TASK = 50
_OVERSAMPLING = 3  # of the figure's mask, for soft edges
_TILT = 15  # degrees to either side: stripes stay horizontal or vertical

Point = tuple[float, float]


def catalogue() -> Catalogue:
    """Return the sample's files as they would be found in a folder; a seed changes only their content."""
    found = ((path.split("/")[0], path.split("/")[1], path, FileRef(path)) for path in _paths())
    return Catalogue.of({name: name for name in FIGURES}, found)


def _paths() -> list[str]:
    return [
        f"{split}/{name}/{name}_{number:04d}.JPEG"
        for split, count in _PER_CLASS.items()
        for name in FIGURES
        for number in range(count)
    ]


def draw_tasks(seed: int) -> list[dict[str, str | None]]:
    """Divide the files into tasks; each maps paths to their fault, as for `draw_file`."""
    paths = _paths()
    broken = dict(zip(sorted(paths, key=lambda path: shuffle_key("broken", seed, path)), _BROKEN, strict=False))
    parts = (paths[at : at + _FILES_PER_TASK] for at in range(0, len(paths), _FILES_PER_TASK))
    return [{path: broken.get(path) for path in part} for part in parts]


def draw(folder: Path, seed: int, task: Mapping[str, str | None], tally: Tally) -> None:
    """Draw the files of one task into `folder`."""
    for path, broken in task.items():
        data = draw_file(seed, path, broken)
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        tally.count(size=len(data))


def draw_file(seed: int, path: str, broken: str | None = None) -> bytes:
    """Return the bytes of one raw file; its class is the name of its folder.

    Args:
        seed: with the path, determines the bytes.
        path: in the sample, `<split>/<class>/<file>`.
        broken: None, `truncated`, `empty` or `text`.
    """
    if broken == "empty":
        return b""
    if broken == "text":
        return b"<html><body>404: this image has moved</body></html>\n"
    key = shuffle_key("draw", seed, path)
    rng = random.Random(key)
    picture = _draw_picture(path.split("/")[1], rng, np.random.default_rng(int.from_bytes(key, "big")))
    data = _encode(picture, rng)
    return data[: len(data) // 2] if broken == "truncated" else data


class _Canvas:
    """A mask to draw on in the figure's own coordinates: the figure fills -1..1, at any position and tilt."""

    def __init__(self, size: tuple[int, int], rng: random.Random) -> None:
        self.rng = rng
        self._mask = Image.new("L", (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._mask)
        short = min(self._mask.size)
        self._radius = short * rng.uniform(0.34, 0.5)
        # The centre stays in the central square, which is what training and evaluation look at.
        shift = max(0.5 * short - self._radius, 0.0)
        self._x = self._mask.width / 2 + rng.uniform(-shift, shift)
        self._y = self._mask.height / 2 + rng.uniform(-shift, shift)
        angle = math.radians(rng.uniform(-_TILT, _TILT))
        self._cos, self._sin = math.cos(angle), math.sin(angle)

    def polygon(self, points: Iterable[Point], fill: int = 255) -> None:
        self._draw.polygon([self._place(point) for point in points], fill=fill)

    def line(self, points: Iterable[Point], width: float) -> None:
        placed = [self._place(point) for point in points]
        self._draw.line(placed, fill=255, width=max(round(width * self._radius), 1), joint="curve")

    def disc(self, centre: Point, radius: float, fill: int = 255) -> None:
        (x, y), r = self._place(centre), radius * self._radius
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def mask(self) -> Image.Image:
        return self._mask.reduce(_OVERSAMPLING)

    def _place(self, point: Point) -> Point:
        x, y = point[0] * self._radius, point[1] * self._radius
        return self._x + x * self._cos - y * self._sin, self._y + x * self._sin + y * self._cos


def _horizontal_stripes(canvas: _Canvas) -> None:
    count = canvas.rng.randint(3, 6)
    for index in range(count):
        top = -1 + 2 * index / count
        bottom = top + canvas.rng.uniform(0.8, 1.2) / count
        canvas.polygon([(-1, top), (1, top), (1, bottom), (-1, bottom)])


def _vertical_stripes(canvas: _Canvas) -> None:
    count = canvas.rng.randint(3, 6)
    for index in range(count):
        left = -1 + 2 * index / count
        right = left + canvas.rng.uniform(0.8, 1.2) / count
        canvas.polygon([(left, -1), (right, -1), (right, 1), (left, 1)])


def _checkerboard(canvas: _Canvas) -> None:
    count = canvas.rng.randint(4, 5)
    step = 2 / count
    for row in range(count):
        for column in range(row % 2, count, 2):
            x, y = -1 + column * step, -1 + row * step
            canvas.polygon([(x, y), (x + step, y), (x + step, y + step), (x, y + step)])


def _dots(canvas: _Canvas) -> None:
    count = canvas.rng.randint(4, 6)
    radius = canvas.rng.uniform(0.4, 0.55) / count
    for row in range(count):
        for column in range(count):
            canvas.disc((-1 + (2 * column + 1) / count, -1 + (2 * row + 1) / count), radius)


def _rings(canvas: _Canvas) -> None:
    count = canvas.rng.randint(3, 5)
    for index in range(2 * count - 1):
        canvas.disc((0, 0), 1 - index / (2 * count - 1), fill=0 if index % 2 else 255)


def _rays(canvas: _Canvas) -> None:
    count = canvas.rng.randint(6, 9)
    start = canvas.rng.uniform(0, math.pi)
    for index in range(count):
        angles = (start + math.pi * (2 * index + edge) / count for edge in (0, 1))
        canvas.polygon([(0, 0), *((math.cos(angle), math.sin(angle)) for angle in angles)])


def _star(canvas: _Canvas) -> None:
    inner = canvas.rng.uniform(0.3, 0.4)
    corners = []
    for index in range(10):
        radius, angle = inner if index % 2 else 1.0, math.pi * index / 5
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    canvas.polygon(corners)


def _triangle(canvas: _Canvas) -> None:
    base = canvas.rng.uniform(0.85, 1.0)
    canvas.polygon([(0, -1), (base, 0.8), (-base, 0.8)])


def _cross(canvas: _Canvas) -> None:
    arm = canvas.rng.uniform(0.2, 0.36)
    canvas.polygon([(-1, -arm), (1, -arm), (1, arm), (-1, arm)])
    canvas.polygon([(-arm, -1), (arm, -1), (arm, 1), (-arm, 1)])


def _zigzag(canvas: _Canvas) -> None:
    rows, teeth = canvas.rng.randint(3, 4), canvas.rng.randint(3, 4)
    for row in range(rows):
        middle = -1 + (2 * row + 1) / rows
        height = canvas.rng.uniform(0.45, 0.6) / rows
        points = [(-1 + index / teeth, middle + (height if index % 2 else -height)) for index in range(2 * teeth + 1)]
        canvas.line(points, 0.5 / rows)


FIGURES: dict[str, Callable[[_Canvas], None]] = {
    "checkerboard": _checkerboard,
    "cross": _cross,
    "dots": _dots,
    "horizontal-stripes": _horizontal_stripes,
    "rays": _rays,
    "rings": _rings,
    "star": _star,
    "triangle": _triangle,
    "vertical-stripes": _vertical_stripes,
    "zigzag": _zigzag,
}


def _draw_picture(name: str, rng: random.Random, noise: np.random.Generator) -> Image.Image:
    size = _size(rng)
    canvas = _Canvas(size, rng)
    FIGURES[name](canvas)
    ground, colour = _colours(rng)
    picture = _mottled(size, ground, 30, rng)
    _scatter_clutter(picture, rng)
    picture.paste(_mottled(size, colour, 20, rng), mask=canvas.mask())
    grain = rng.randint(2, 16)
    pixels = np.asarray(picture, np.int16)
    pixels = pixels + noise.integers(-grain, grain + 1, pixels.shape, np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _size(rng: random.Random) -> tuple[int, int]:
    # Small ones are the most: median 162.
    short = round(120 * (400 / 120) ** rng.random() ** 2)
    long = round(short * rng.uniform(1.0, 1.8))
    return (short, long) if rng.random() < 0.4 else (long, short)


def _colours(rng: random.Random) -> tuple[list[int], list[int]]:
    """Return two colours, a dark and a light one, either first."""
    pair = [[rng.randint(low, high) for _ in range(3)] for low, high in ((20, 110), (150, 240))]
    rng.shuffle(pair)
    return pair[0], pair[1]


def _mottled(size: tuple[int, int], colour: list[int], spread: int, rng: random.Random) -> Image.Image:
    """Return an image that varies smoothly around one colour."""
    columns, rows = rng.randint(2, 5), rng.randint(2, 5)
    patches = bytes(
        min(max(channel + rng.randint(-spread, spread), 0), 255) for _ in range(columns * rows) for channel in colour
    )
    return Image.frombytes("RGB", (columns, rows), patches).resize(size, Image.Resampling.BICUBIC)


def _scatter_clutter(picture: Image.Image, rng: random.Random) -> None:
    """Draw a few thin strokes behind the figure, so that not every edge in the image belongs to it."""
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(0, 2)):
        ends = [(rng.randint(0, picture.width), rng.randint(0, picture.height)) for _ in range(2)]
        draw.line(ends, fill=tuple(rng.randint(0, 255) for _ in range(3)), width=rng.randint(1, 4))


def _encode(picture: Image.Image, rng: random.Random) -> bytes:
    """Return the file as one of many cameras, scanners and programs would have left it."""
    buffer = io.BytesIO()
    kind = rng.random()
    quality = rng.choice((60, 75, 85, 92))
    if kind < 0.02:
        picture.save(buffer, "PNG", compress_level=1)
    elif kind < 0.04:
        picture.convert("CMYK").save(buffer, "JPEG", quality=quality)
    elif kind < 0.08:
        picture.convert("L").save(buffer, "JPEG", quality=quality)
    elif kind < 0.11:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((3, 6, 8))  # Orientation
        picture.save(buffer, "JPEG", quality=quality, exif=exif)
    else:
        picture.save(buffer, "JPEG", quality=quality, progressive=kind > 0.9)
    return buffer.getvalue()
