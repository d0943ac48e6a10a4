"""Colour statistics over all pixels, from exact integer sums that are divided once, at the end.

Sums of integers do not depend on their order, so the result is the same for any number of workers.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from preprocess.manifest import Rgb

# With pixels taken around 128, a product is at most 2^14 in magnitude, so float32, which holds every integer up
# to 2^24, sums 2^10 of them without an error, in any order: BLAS does the work. Its dot products of 2^10 numbers
# are never spread over threads. What is worked on at a time stays in a processor's own cache.
_CENTRE = 128
_BLOCK = 1024
_BLOCKS_AT_A_TIME = 32
_ONES = np.ones(_BLOCK, np.float32)
_LARGEST_RECENT = 2**16 // 256  # uint16 holds as many squares
_DIGITS = 12  # LAPACK's last bits depend on the processor; the manifest's must not
_SAVED = ("pixels", "images", "sums", "products", "square")


class RgbSums:
    """Exact sums over the pixels of images whose short side is `short_side`.

    Attributes:
        pixels: how many pixels were added.
        images: how many images were added.
        sums: int64 (3,), of R, G and B.
        products: int64 (3, 3), of the products of two channels; int64 lasts for 1.4e14 pixels.
        square: (3, short_side, short_side), of the central squares, pixel by pixel: uint32 while images are
            added (16 million of them), uint64 once merged.
    """

    def __init__(self, short_side: int) -> None:
        """Start from nothing."""
        self.pixels = 0
        self.images = 0
        self.sums = np.zeros(3, np.int64)
        self.products = np.zeros((3, 3), np.int64)
        self._square = np.zeros((3, short_side, short_side), np.uint32)
        self._recent = np.zeros((3, short_side, short_side), np.uint16)  # half the memory to go through each time
        self._recent_images = 0

    @property
    def square(self) -> np.ndarray:
        """Sums of the central squares."""
        self._gather_recent()
        return self._square

    def add(self, image: Image.Image) -> None:
        """Add all pixels of one RGB (or RGBX) image, and its central square.

        The square lies where torchvision's CenterCrop cuts it: half of an odd margin is rounded to even.
        """
        pixels = image.width * image.height
        side = self._recent.shape[1]
        top, left = round((image.height - side) / 2), round((image.width - side) / 2)
        centred = np.zeros((3, -(-pixels // _BLOCK) * _BLOCK), np.uint8)  # zeros at the end add nothing
        for number, band in enumerate("RGB"):
            values = np.frombuffer(image.tobytes("raw", band), np.uint8)
            plane = values.reshape(image.height, image.width)
            self._recent[number] += plane[top : top + side, left : left + side]
            np.bitwise_xor(values, _CENTRE, out=centred[number, :pixels])  # as int8, this is x - c
        self._recent_images += 1
        if self._recent_images == _LARGEST_RECENT:
            self._gather_recent()
        centred_sums, centred_products = _centred_sums(centred.view(np.int8))
        sums = centred_sums + pixels * _CENTRE
        self.pixels += pixels
        self.images += 1
        self.sums += sums
        # sum(x y) = sum((x - c)(y - c)) + c sum(x) + c sum(y) - n c^2
        shift = _CENTRE * (sums[:, None] + sums[None, :]) - pixels * _CENTRE**2
        self.products += centred_products + shift

    def merge(self, other: RgbSums) -> None:
        """Add the sums of other images."""
        self.pixels += other.pixels
        self.images += other.images
        self.sums += other.sums
        self.products += other.products
        self._square = np.add(self.square, other.square, dtype=np.uint64)

    def to_bytes(self) -> memoryview:
        """Return the sums as a file's content, exactly."""
        file = io.BytesIO()  # NumPy writing to a full disk itself raises all kinds of errors
        np.savez(file, allow_pickle=False, **{name: getattr(self, name) for name in _SAVED})
        return file.getbuffer()

    @staticmethod
    def load(path: Path, short_side: int) -> RgbSums:
        """Read a file that holds what `to_bytes` gave, of images of this short side.

        Raises:
            OSError: there is no such file.
            Exception: it is not whole, or not of such images.
        """
        loaded = RgbSums(short_side)
        with np.load(path, allow_pickle=False) as arrays:
            for name in _SAVED:
                value, empty = arrays[name], getattr(loaded, name)
                if value.shape != np.shape(empty):
                    raise ValueError(f"{name} is of shape {value.shape}")
                setattr(loaded, name.replace("square", "_square"), value if value.shape else int(value))
        return loaded

    def mean_image(self) -> np.ndarray:
        """Return the mean of the central squares: float32 (short_side, short_side, 3), 0-255 units."""
        mean = self.square / np.float64(self.images)
        return np.ascontiguousarray(mean.transpose(1, 2, 0), np.float32)

    def finish(self, mean_image: str) -> Rgb:
        """Divide: mean, covariance (by n, not n - 1), eigenvalues descending, eigenvectors in columns.

        The largest component of each eigenvector is positive. Means and covariances are the floats nearest to
        the exact values, eigenvalues and eigenvectors are rounded to 12 digits.

        Args:
            mean_image: name of the file that holds `mean_image()`.

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
        return Rgb(
            pixels=n,
            mean=tuple(float(Fraction(total, n)) for total in sums),
            covariance=tuple(tuple(row) for row in covariance),
            eigenvalues=_rounded(values),
            eigenvectors=tuple(_rounded(row) for row in vectors),
            mean_image=mean_image,
        )

    def _gather_recent(self) -> None:
        self._square += self._recent
        self._recent[:] = 0
        self._recent_images = 0


def _centred_sums(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 (3,) and (3, 3): the sums and the sums of products of three rows of int8, whole blocks of them."""
    blocks = centred.reshape(3, -1, _BLOCK)
    sums, squares, neighbours = (np.empty((rows, blocks.shape[1]), np.float32) for rows in (3, 3, 2))
    outer = np.empty(blocks.shape[1], np.float32)
    for first in range(0, blocks.shape[1], _BLOCKS_AT_A_TIME):
        some = slice(first, first + _BLOCKS_AT_A_TIME)
        floats = blocks[:, some].astype(np.float32)
        np.vecdot(floats, _ONES, out=sums[:, some])
        np.vecdot(floats, floats, out=squares[:, some])
        np.vecdot(floats[:2], floats[1:], out=neighbours[:, some])
        np.vecdot(floats[0], floats[2], out=outer[some])
    (rr, gg, bb), (rg, gb), rb = _total(squares), _total(neighbours), _total(outer)
    return _total(sums), np.array([[rr, rg, rb], [rg, gg, gb], [rb, gb, bb]])


def _total(block_sums: np.ndarray) -> np.ndarray:
    return block_sums.sum(axis=-1, dtype=np.float64).astype(np.int64)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
