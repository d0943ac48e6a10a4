"""The picture of a study: the difference of each variant from the base, a dot for each seed, mean and interval."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.figure import Figure

from training.ablation.table import Row
from training.report.pictures import DPI, INK, MUTED, TRUE, WRONG

_WIDTH, _ROW, _MARGIN = 8.0, 0.5, 1.5
"""Inches: width, height of a variant, height of title and axis."""
_CAPTION = "top-1 less that of the base with the same seed, percentage points\ndots: seeds; bar: mean and 95 % interval"


def differences_png(rows: list[Row], title: str) -> bytes:
    """Return a PNG of the variants that have a difference from the base, top-1 accuracy in percentage points."""
    shown = [(row, row.difference) for row in rows if row.difference is not None]
    with rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(_WIDTH, _MARGIN + _ROW * max(len(shown), 1)), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=MUTED, lw=1)
        for place, (_, difference) in enumerate(shown):
            points = [100 * value for value in difference.by_seed.values()]
            axes.plot(points, [place] * len(points), "o", color=TRUE, alpha=0.7, ms=7, mew=0, zorder=3)
            half = None if difference.half_width is None else 100 * difference.half_width
            axes.errorbar(100 * difference.mean, place, xerr=half, fmt="|", color=WRONG, ms=14, mew=2, capsize=4)
        axes.set_yticks(range(len(shown)), [f"{row.words}, n = {len(gain.by_seed)}" for row, gain in shown])
        axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlabel(_CAPTION, color=MUTED)
        axes.set_title(title, color=INK, fontsize=11, parse_math=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
