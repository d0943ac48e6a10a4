"""Pages of one file that hold everything they show and load nothing, from the templates in this folder."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from training.report.paired import wilson_interval

TABLE_CLASSES = 60
"""Most classes of a table; those of more are folded away behind the first and the last."""
EXTREMES = 10
"""Classes that are shown at each end of what is folded away."""


def render(template: str, context: Mapping[str, Any]) -> str:
    """Return the page of a template; every string of the context is escaped."""
    return environment().get_template(template).render(context)


def environment() -> Environment:
    """Return the environment of the templates."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        points=_points,
        thousands="{:,}".format,
        interval=_interval,
        p_value=_p_value,
        rate=_rate,
        data_uri=_data_uri,
    )
    return environment


def _percent(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value * 100:.{digits}f} %"


def _points(value: float | None, digits: int) -> str:
    """Return a difference of accuracies in points, with its sign; what rounds to zero has none."""
    if value is None:
        return "–"
    text = f"{value * 100:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def _interval(accuracy: float, samples: int) -> tuple[float, float]:
    return wilson_interval(round(accuracy * samples), samples)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _data_uri(image: Image.Image) -> str:
    """Return an image as a data URI: PNG where pixels must stay exact, JPEG for photographs."""
    exact = image.mode == "RGBA" or image.width < 96
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if exact else "JPEG", optimize=True, **({} if exact else {"quality": 85}))
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
