"""Integer sums over the pixels of one image, in C where there is a compiler, in NumPy elsewhere: the same numbers.

In C it is one pass over bytes; NumPy takes as long as decoding the image does.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess.whole_files import write_whole

_SOURCE = Path(__file__).with_suffix(".c")
_COMPILE = ("-O3", "-shared", "-fPIC")
PAIRS = np.triu_indices(3)
"""Which two channels the last six sums multiply."""


def add_image(image: Image.Image, sums: np.ndarray, square: np.ndarray) -> None:
    """Add an image to sums over all its pixels, and its central square, byte by byte, to a sum of squares.

    The square lies where torchvision's CenterCrop cuts it: half of an odd margin is rounded to even.

    Args:
        image: RGB, or RGBX.
        sums: int64 (9,): of R, G, B, RR, RG, RB, GG, GB and BB.
        square: uint16 (side, side, 4); the fourth channel holds nothing of use.

    Raises:
        ValueError: the image is smaller than the square.
    """
    pixels = image.tobytes("raw", "RGBX")
    (width, height), side = image.size, len(square)
    if min(width, height) < side:
        raise ValueError(f"an image of {width}x{height} pixels has no square of {side}")
    top, left = round((height - side) / 2), round((width - side) / 2)
    library = _library()
    if library is not None:
        library.add_image(pixels, width, height, top, left, side, sums.ctypes, square.ctypes)
        return
    rows = np.frombuffer(pixels, np.uint8).reshape(height, width, 4)
    square += rows[top : top + side, left : left + side]
    # Exact: float64 holds every integer up to 2^53, and no image has 2^37 pixels.
    colours = rows.reshape(-1, 4)[:, :3].astype(np.float64)
    sums += np.concatenate([colours.sum(axis=0), (colours.T @ colours)[PAIRS]]).astype(np.int64)


def prepare() -> None:
    """Compile now, or warn that it cannot be done: once, where otherwise each worker would."""
    if _library() is None:
        warnings.warn(
            f"{_SOURCE.name} cannot be compiled with {' '.join(_compiler())}: NumPy computes the colour statistics, "
            "which takes longer",
            stacklevel=2,
        )


@cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled functions, from the user's cache if they are there; None where they cannot be compiled."""
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.CalledProcessError):
        return None
    library.add_image.argtypes = (ctypes.c_char_p, *(ctypes.c_size_t,) * 5, ctypes.c_void_p, ctypes.c_void_p)
    library.add_image.restype = None
    return library


def _compiled() -> Path:
    made_of = (platform.machine(), *_COMPILE, _SOURCE.read_text())
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twotower" / f"colour_sums-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / path.name
            command = [*_compiler(), *_COMPILE, str(_SOURCE), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True)
            write_whole(path, built.read_bytes())
    return path


def _compiler() -> list[str]:
    return os.environ.get("CC", "cc").split()
