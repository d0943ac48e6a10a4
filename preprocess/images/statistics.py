"""Colour statistics over all pixels, from exact integer sums that are divided once, at the end.

Integer sums do not depend on their order, so the result is the same for any number of workers.
"""

from __future__ import annotations

import hashlib
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess.images.color_sums import PAIRS, add_image
from preprocess.manifest import ColorStats

_LARGEST_RECENT = 2**16 // 256  # uint16 holds as many squares
_DIGITS = 12  # LAPACK's last bits depend on the processor; the manifest's must not
_SAVED = ("pixels", "images", "sums", "products", "square")


class ColorSums:
    """Exact sums over the pixels of images whose short side is `short_side`."""

    def __init__(self, short_side: int) -> None:
        """Start from nothing."""
        self.pixels = 0
        self.images = 0
        self._sums = np.zeros(9, np.int64)  # as `add_image` takes them
        self._square = np.zeros((short_side, short_side, 3), np.uint32)
        self._recent = np.zeros((3, short_side, short_side), np.uint16)  # less memory to go through each time
        self._recent_images = 0

    @property
    def sums(self) -> np.ndarray:
        """Sums of R, G and B: int64 (3,)."""
        return self._sums[:3]

    @property
    def products(self) -> np.ndarray:
        """Sums of the products of two channels: int64 (3, 3), which lasts for 1.4e14 pixels."""
        products = np.empty((3, 3), np.int64)
        products[PAIRS] = products.T[PAIRS] = self._sums[3:]
        return products

    @property
    def square(self) -> np.ndarray:
        """Sums of the central squares, pixel by pixel: (short_side, short_side, 3).

        uint32 while images are added (16 million of them), uint64 once merged.
        """
        self._gather_recent()
        return self._square

    def add(self, image: Image.Image) -> None:
        """Add all pixels of one RGB (or RGBX) image, and its central square.

        Raises:
            ValueError: the image is smaller than the square.
        """
        add_image(image, self._sums, self._recent)
        self.pixels += image.height * image.width
        self.images += 1
        self._recent_images += 1
        if self._recent_images == _LARGEST_RECENT:
            self._gather_recent()

    def merge(self, other: ColorSums) -> None:
        """Add the sums of other images."""
        self.pixels += other.pixels
        self.images += other.images
        self._sums += other._sums
        self._square = np.add(self.square, other.square, dtype=np.uint64)

    def to_bytes(self) -> memoryview:
        """Return the sums as a file's content, exactly."""
        file = io.BytesIO()  # NumPy writing to a full disk itself raises all kinds of errors
        np.savez(file, allow_pickle=False, **{name: getattr(self, name) for name in _SAVED})
        return file.getbuffer()

    @staticmethod
    def load(path: Path, short_side: int) -> ColorSums:
        """Read a file with the content of `to_bytes`, for images of this short side.

        Raises:
            OSError: there is no such file.
            Exception: it is broken, or of other images.
        """
        loaded = ColorSums(short_side)
        with np.load(path, allow_pickle=False) as arrays:
            for name in _SAVED:
                if arrays[name].shape != np.shape(getattr(loaded, name)):
                    raise ValueError(f"{name} is of shape {arrays[name].shape}")
            loaded.pixels, loaded.images = int(arrays["pixels"]), int(arrays["images"])
            loaded._sums[:3], loaded._sums[3:] = arrays["sums"], arrays["products"][PAIRS]
            loaded._square = arrays["square"]
        return loaded

    def mean_image(self) -> np.ndarray:
        """Return the mean of the central squares: float32 (short_side, short_side, 3), 0-255 units."""
        mean = self.square / np.float64(self.images)
        return mean.astype(np.float32)

    def mean_image_file(self) -> bytes:
        """Return `mean_image()` as the content of a `.npy` file."""
        file = io.BytesIO()
        np.save(file, self.mean_image())
        return file.getvalue()

    def finish(self, mean_image: str) -> ColorStats:
        """Divide: mean, covariance (by n, not n - 1), eigenvalues descending, eigenvectors in columns.

        The largest component of each eigenvector is positive. Means and covariances are the floats nearest to
        the exact values, eigenvalues and eigenvectors are rounded to 12 digits. `mean_image` names the file that holds
        `mean_image_file()`.

        Raises:
            ValueError: no pixels were added.
        """
        if self.pixels == 0:
            raise ValueError("no pixels, no statistics")
        n, sums, products = self.pixels, self.sums.tolist(), self.products.tolist()
        covariance = [
            [float(Fraction(n * products[i][j] - sums[i] * sums[j], n * n)) for j in range(3)] for i in range(3)
        ]
        values, vectors = np.linalg.eigh(np.array(covariance))
        values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
        strongest = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.sign(vectors[strongest, range(3)])
        return ColorStats(
            pixels=n,
            mean=tuple(float(Fraction(total, n)) for total in sums),
            covariance=tuple(tuple(row) for row in covariance),
            eigenvalues=_rounded(values),
            eigenvectors=tuple(_rounded(row) for row in vectors),
            mean_image=mean_image,
            mean_image_sha256=hashlib.sha256(self.mean_image_file()).hexdigest(),
        )

    def _gather_recent(self) -> None:
        self._square += self._recent.transpose(1, 2, 0)
        self._recent[:] = 0
        self._recent_images = 0


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
