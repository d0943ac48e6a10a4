"""The kernels of the first layer: as pictures, by tower and colourfulness, and how far from random they are."""

from __future__ import annotations

import numpy as np
from PIL import Image

KERNELS_PER_ROW = 16
KERNEL_PIXELS = 66  # 11x11 kernels six times enlarged; others to the nearest integer factor below
GAP = 6
LEAST_SMOOTHNESS = 0.2
"""Smoothness from which kernels count as learned: random ones have 0, a grating with a period of 4 pixels 0.5."""


def colourfulness(weights: np.ndarray) -> np.ndarray:
    """Return the part of the energy of each kernel that is colour, (F,) float64: 0 for grey ones, 1 without any grey.

    For weights (F, 3 or 1, k, k) it is the squared deviation from the mean of the channels over the squared weights;
    random kernels have 2/3. A kernel of zeros has 0, one that is not finite NaN.
    """
    weights = weights.astype(np.float64)
    colour = weights - weights.mean(axis=1, keepdims=True)
    energy = (weights**2).sum(axis=(1, 2, 3))
    return (colour**2).sum(axis=(1, 2, 3)) / np.where(energy == 0, 1.0, energy)


def smoothness(weights: np.ndarray) -> float:
    """Return the mean correlation of neighbouring weights of a kernel, over the finite kernels of (F, C, k, k).

    It is the autocorrelation at a distance of one pixel, about zero, averaged over rows and columns; 0 without kernels.
    """
    weights = weights[np.isfinite(weights).all(axis=(1, 2, 3))].astype(np.float64)
    side = weights.shape[-1]
    energy = (weights**2).sum(axis=(1, 2, 3))
    known = energy > 0
    if side < 2 or not known.any():
        return 0.0
    across = (weights[..., 1:] * weights[..., :-1]).sum(axis=(1, 2, 3))
    down = (weights[..., 1:, :] * weights[..., :-1, :]).sum(axis=(1, 2, 3))
    # A row of k weights has k - 1 pairs of neighbours.
    return float(((across + down)[known] / energy[known]).mean() / 2 * side / (side - 1))


def has_structure(weights: np.ndarray) -> bool:
    """Tell whether the kernels (F, C, k, k) are smoother than random ones, as those of a trained network are."""
    return smoothness(weights) >= LEAST_SMOOTHNESS


def describe_structure(weights: np.ndarray) -> str:
    """Return in a sentence or two how far from random the kernels (F, C, k, k) are."""
    measured = f"Neighbouring weights correlate by {smoothness(weights):.2f}, those of random kernels by 0."
    if has_structure(weights):
        return measured
    return f"These kernels have no structure yet: they are still close to their random start. {measured}"


def kernel_levels(weights: np.ndarray) -> np.ndarray:
    """Return (F, 3, k, k) uint8 for conv1's (F, 3 or 1, k, k) weights: zero is 128, not finite is magenta.

    The scale is the largest absolute weight of all kernels, so that they can be compared with each other.
    """
    if weights.ndim != 4 or weights.shape[1] not in (1, 3):
        raise ValueError(f"conv1 kernels must be of shape (F, 3, k, k) or (F, 1, k, k), not {weights.shape}")
    weights = np.repeat(weights, 3 // weights.shape[1], axis=1).astype(np.float64)
    finite = np.isfinite(weights).all(axis=1)
    known = np.where(finite[:, None], weights, 0.0)
    levels = np.rint(127.5 + 127.5 * known / (np.abs(known).max() or 1.0)).astype(np.uint8)
    broken = np.array([255, 0, 255], np.uint8)[None, :, None, None]
    return np.where(finite[:, None], levels, broken)


def kernel_grids(weights: np.ndarray, towers: int, per_row: int = KERNELS_PER_ROW) -> list[tuple[str, Image.Image]]:
    """Return a heading and an RGBA picture per tower, `per_row` kernels a row, transparent in between.

    The heading says how many kernels there are, how colourful, and where they have no structure yet.

    The kernels of a tower are sorted by colourfulness, grey ones first, so that a tower of edges and one of colours
    can be told apart (2012 paper, section 6.1). They are enlarged by an integer factor. The weights (F, 3 or 1, k, k)
    hold the first tower's filters first.
    """
    levels, colours = kernel_levels(weights), colourfulness(weights)
    if towers < 1 or len(levels) % towers:
        raise ValueError(f"{len(levels)} kernels do not divide into {towers} towers")
    structure = "" if has_structure(weights) else ", no structure yet"
    grids = []
    for tower, chosen in enumerate(np.split(np.arange(len(levels)), towers), start=1):
        order = chosen[np.argsort(colours[chosen], kind="stable")]
        name = "conv1" if towers == 1 else f"Tower {tower}"
        mean = float(np.mean(np.nan_to_num(colours[chosen])))
        title = f"{name}: {len(chosen)} kernels, {mean * 100:.0f} % colour{structure}"
        grids.append((title, _kernel_grid(levels[order], per_row)))
    return grids


def _kernel_grid(levels: np.ndarray, per_row: int) -> Image.Image:
    filters, _, _, size = levels.shape
    side = size * max(1, KERNEL_PIXELS // size)
    step = side + GAP
    rows, columns = -(-filters // per_row), min(filters, per_row)
    grid = Image.new("RGBA", (columns * step - GAP, rows * step - GAP))
    for i, kernel in enumerate(levels):
        tile = Image.fromarray(kernel.transpose(1, 2, 0)).resize((side, side), Image.Resampling.NEAREST)
        grid.paste(tile, (i % per_row * step, i // per_row * step))
    return grid
