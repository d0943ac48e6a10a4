"""Integer sums over the pixels of one image, in C where there is a compiler, in NumPy elsewhere: the same numbers.

In C it is one pass over bytes; NumPy takes as long as decoding the image does.
"""

from __future__ import annotations

import contextlib
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

from atomic_files import atomic_write
from preprocess.images.pixel_memory import pixel_memory

_SOURCE = Path(__file__).with_suffix(".c")
_COMPILE = ("-O3", "-shared", "-fPIC")
_SEAL_BYTES = hashlib.sha256().digest_size
PAIRS = np.triu_indices(3)
"""Which two channels the last six sums multiply."""


def add_image(image: Image.Image, sums: np.ndarray, square: np.ndarray) -> None:
    """Add an image to sums over all its pixels, and its central square, level by level, to a sum of squares.

    The square lies where torchvision's CenterCrop cuts it: half of an odd margin is rounded to even.

    Args:
        image: RGB, or RGBX.
        sums: int64 (9,): of R, G, B, RR, RG, RB, GG, GB and BB.
        square: uint16 (3, side, side).

    Raises:
        ValueError: the image is smaller than the square.
    """
    (width, height), side = image.size, square.shape[-1]
    if min(width, height) < side:
        raise ValueError(f"an image of {width}x{height} pixels has no square of {side}")
    top, left = round((height - side) / 2), round((width - side) / 2)
    library = _library()
    if library is not None:
        pixels, kept = pixel_memory(image)
        library.add_image(pixels, width, height, top, left, side, sums.ctypes.data, square.ctypes.data)
        del kept
        return
    rows = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(height, width, 4)[:, :, :3]
    square += rows[top : top + side, left : left + side].transpose(2, 0, 1)
    # Exact: float64 holds every integer up to 2^53, and no image has 2^37 pixels.
    colours = rows.reshape(-1, 3).astype(np.float64)
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
        library = _loaded(_compiled())
    except (OSError, subprocess.CalledProcessError):
        return None
    library.add_image.argtypes = (ctypes.c_void_p, *(ctypes.c_size_t,) * 5, ctypes.c_void_p, ctypes.c_void_p)
    library.add_image.restype = None
    return library


def _loaded(content: bytes) -> ctypes.CDLL:
    """Load a library from memory: a file that is cut short later, while it is mapped, ends the process."""
    descriptor = os.memfd_create("color_sums")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _compiled() -> bytes:
    """Return the library, from the cache if what lies there is whole; a cache that cannot be used is done without."""
    made_of = "\n".join((platform.machine(), *_COMPILE, _SOURCE.read_text()))
    name = f"color_sums-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.sealed"
    path = None
    with contextlib.suppress(RuntimeError):  # no home is known
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twotower" / name
    if path is not None:
        with contextlib.suppress(OSError):
            sealed = path.read_bytes()
            if _sealed(sealed[_SEAL_BYTES:]) == sealed:
                return sealed[_SEAL_BYTES:]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "color_sums.so"
        command = [*_compiler(), *_COMPILE, str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True)
        content = built.read_bytes()
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, _sealed(content))
    return content


def _sealed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


def _compiler() -> list[str]:
    return os.environ.get("CC", "cc").split()
