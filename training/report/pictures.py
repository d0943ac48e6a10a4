"""The pictures of a report: conv1 kernels, grids of predictions, the confusion matrix.

Pillow sets pixels, matplotlib sets text (it brings its own font engine and DejaVu Sans, so a PNG looks the same on
every machine; scripts outside of that font show as boxes in a PNG and as themselves in report.html).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import IdentityTransform
from PIL import Image

from training.report.examples import Card
from training.report.kernels import kernel_grids

DPI = 100
_PIXELS = IdentityTransform()

INK, MUTED = "#1f2328", "#666b73"
TRUE, WRONG = "#2b6a8f", "#b4532a"
TRUE_BAR, OTHER_BAR = "#a9cfe4", "#e6ded1"


KERNEL_MARGIN = 24
KERNEL_HEADING = 34  # pixels above each tower's block


def kernels_png(weights: np.ndarray, towers: int = 1) -> bytes:
    """Return one PNG of conv1's (F, 3, k, k) weights; each tower is a block of rows of its own with a heading."""
    grids = kernel_grids(weights, towers)
    width = max(grid.width for _, grid in grids) + 2 * KERNEL_MARGIN
    height = sum(grid.height + KERNEL_HEADING for _, grid in grids) + KERNEL_MARGIN
    figure = Figure(figsize=(max(width, 320) / DPI, height / DPI), dpi=DPI)
    top = 0
    for title, grid in grids:
        top += KERNEL_HEADING
        _text(figure, KERNEL_MARGIN, height - top + 10, title, fontsize=10)
        figure.figimage(np.asarray(grid), KERNEL_MARGIN, height - top - grid.height, origin="upper")
        top += grid.height
    return _png(figure)


CARD_WIDTH, CARD_HEIGHT, CARD_GAP = 230, 300, 20
CARD_IMAGE, CARD_BAR, CARD_HEADING = 150, 22, 50
CARDS_PER_ROW = 4


def cards_png(cards: Sequence[Card], title: str) -> bytes:
    """Return a PNG of samples with their guesses as bars, the true class's bar in another colour."""
    rows = -(-len(cards) // CARDS_PER_ROW)
    width = CARDS_PER_ROW * (CARD_WIDTH + CARD_GAP) + CARD_GAP
    height = CARD_HEADING + rows * (CARD_HEIGHT + CARD_GAP)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    _text(figure, CARD_GAP, height - 0.6 * CARD_HEADING, _shorten(title, 90), fontsize=12, va="center")
    for i, card in enumerate(cards):
        left = CARD_GAP + i % CARDS_PER_ROW * (CARD_WIDTH + CARD_GAP)
        top = height - CARD_HEADING - i // CARDS_PER_ROW * (CARD_HEIGHT + CARD_GAP)
        _draw_card(figure, left, top, card)
    return _png(figure)


def _draw_card(figure: Figure, left: int, top: int, card: Card) -> None:
    """Draw a card whose upper left corner is at (left, top) pixels, counted from the lower left of the figure."""
    small = card.thumbnail.width < CARD_IMAGE
    resample = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    pixels = np.asarray(card.thumbnail.resize((CARD_IMAGE, CARD_IMAGE), resample))
    figure.figimage(pixels, left + (CARD_WIDTH - CARD_IMAGE) // 2, top - CARD_IMAGE, origin="upper")
    colour = TRUE if card.rank == 1 else WRONG
    middle, name = left + CARD_WIDTH / 2, _shorten(card.true_name, 27)
    _text(figure, middle, top - CARD_IMAGE - 15, name, ha="center", va="center", color=colour, weight="bold")
    for row, guess in enumerate(card.guesses):
        y = top - CARD_IMAGE - 35 - row * CARD_BAR - CARD_BAR / 2
        size = (round(guess.probability * CARD_WIDTH), CARD_BAR - 3)
        bar = TRUE_BAR if guess.is_true else OTHER_BAR
        figure.add_artist(Rectangle((left, y - size[1] / 2), *size, color=bar, lw=0, transform=_PIXELS))
        weight = "bold" if guess.is_true else "normal"
        text = {"va": "center_baseline", "fontsize": 8}
        _text(figure, left + 5, y, _shorten(guess.name, 25), weight=weight, **text)
        _text(figure, left + CARD_WIDTH, y, f"{guess.probability:.0%}", ha="right", color=MUTED, **text)


def _text(figure: Figure, x: float, y: float, text: str, **look: Any) -> None:
    """Set text at (x, y) pixels from the lower left; a dollar sign in it is no formula."""
    figure.text(x, y, text, transform=_PIXELS, parse_math=False, **{"fontsize": 9, "color": INK, **look})


def confusion_png(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """Return a PNG of a confusion matrix (classes, classes): row the true class, column the first guess.

    A cell's strength is the square root of its share of the row, so that single mistakes can be seen;
    the diagonal has a colour of its own.
    """
    side = 2.2 + 0.24 * len(names)
    figure = Figure(figsize=(max(side, 4.5), max(side, 4.2)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(_confusion_colours(matrix), interpolation="nearest")
    labels = [_shorten(name, 24) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90)
    axes.set_yticks(range(len(names)), labels)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set(fontsize=8, color=INK, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#d0ccc4")
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    return _png(figure)


def _confusion_colours(matrix: np.ndarray) -> np.ndarray:
    strength = np.sqrt(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[..., None]
    colour = np.where(np.eye(len(matrix), dtype=bool)[..., None], to_rgb(TRUE), to_rgb(WRONG))
    return 1 + strength * (colour - 1)


def _shorten(name: str, length: int) -> str:
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"font.family": "DejaVu Sans"}):
        # Class names may be in any script; a box in the PNG is no reason to fail or to fill the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
