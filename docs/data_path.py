"""The picture of the data path: raw images, shards, batches, two towers, a report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from pipeline.loader import make_loader
from preprocess.manifest import read_manifest

INK, ACCENT, SOFT = "#1f2328", "#2b6a8f", "#dbe9f2"
WIDTH, HEIGHT = 13.0, 2.9
"""Size of the picture in inches."""
TITLES = {"raw images": 0.25, "shards": 2.75, "batches": 5.15, "two towers": 7.6, "report, MLflow run": 10.95}
"""Left edge of each column in inches."""
COMMANDS = {"preprocess.build_shards": 2.05, "make_loader": 4.52, "training.run": 6.98, "training.evaluate": 10.3}
"""Left end of each arrow in inches."""
FILES = ("train-000000.tar", "train-000000.idx", "...", "val-000000.tar", "mean.npy", "manifest.json")
LAYERS = ((0.24, 0.72), (0.2, 0.62), (0.18, 0.5), (0.18, 0.5), (0.18, 0.46), (0.1, 0.72), (0.1, 0.72), (0.1, 0.4))
"""Width and height of the boxes of conv1 to fc8 in inches."""
LINKED = (2, 5, 6, 7)
"""Positions of the layers that read both towers: conv3, fc6, fc7, fc8."""
UPPER, LOWER = 1.95, 1.05
"""Height of the middle of each tower in inches."""


def draw_data_path(shards: Path, report: Path, picture: Path) -> None:
    """Draw the samples of `shards` on their way to `report`, a PNG of the report page."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=120, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for title, left in TITLES.items():
        axes.text(left, 2.58, title, fontsize=13, weight="bold", color=INK)
    _draw_images(axes, shards)
    for number, name in enumerate(FILES):
        axes.text(TITLES["shards"], 2.22 - 0.29 * number, name, fontsize=10, family="monospace", color=INK)
    _draw_towers(axes, TITLES["two towers"])
    left = TITLES["report, MLflow run"]
    page = Image.open(report)
    right = left + 1.95
    bottom = 2.4 - (right - left) * page.height / page.width
    axes.imshow(page, extent=(left, right, bottom, 2.4), interpolation="antialiased")
    axes.add_patch(Rectangle((left, bottom), right - left, 2.4 - bottom, fill=False, edgecolor=ACCENT))
    for command, start in COMMANDS.items():
        ends = ((start, 1.5), (start + 0.58, 1.5))
        axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=16, color=INK, shrinkA=0, shrinkB=0))
        axes.text(start + 0.29, 0.15, command, fontsize=9.5, ha="center", family="monospace", color=ACCENT)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    figure.savefig(picture)


def _draw_images(axes: Any, shards: Path) -> None:
    loader = make_loader(shards, "train", 9)
    for number in range(4):
        image = Image.open(io.BytesIO(loader.example(number * 7).jpeg)).resize((160, 160))
        left, bottom = TITLES["raw images"] + number % 2 * 0.88, 1.55 - number // 2 * 0.88
        axes.imshow(image, extent=(left, left + 0.8, bottom, bottom + 0.8))
    views = next(iter(loader))[0].permute(0, 2, 3, 1).numpy() + read_manifest(shards).color_stats.mean
    for number, view in enumerate(views):
        left, bottom = TITLES["batches"] + number % 3 * 0.6, 1.8 - number // 3 * 0.6
        axes.imshow(view.clip(0, 255).astype("uint8"), extent=(left, left + 0.55, bottom, bottom + 0.55))


def _draw_towers(axes: Any, left: float) -> None:
    for number, (width, height) in enumerate(LAYERS):
        for middle in (UPPER, LOWER):
            box = (left, middle - height / 2)
            axes.add_patch(Rectangle(box, width, height, facecolor=SOFT, edgecolor=ACCENT, zorder=2))
        if number in LINKED:
            axes.plot((left - 0.19, left), (UPPER, LOWER), color=ACCENT, linewidth=1)
            axes.plot((left - 0.19, left), (LOWER, UPPER), color=ACCENT, linewidth=1)
        name = f"{'conv' if number < 5 else 'fc'}{number + 1}"
        axes.text(left + width / 2, 0.42, name, fontsize=7.5, ha="center", color=INK)
        left += width + 0.19
