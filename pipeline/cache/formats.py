"""Pixel formats of the cache: RGB and YCbCr 4:2:0, one byte per number, one row of bytes per image.

A format packs squares into rows (`pack`), reads windows from rows as one int32 per pixel, so that mirroring moves one
number (`read_windows`), and converts them to grey levels (`to_rgb`). All of it is exact: integers, or floats that hold
multiples of a power of two below 24 bits. A compiled kernel, an eager one and a GPU therefore give the same bits.

The compiler vectorizes a loop along x only where it reads neighbours of 8, 32 or 64 bits each. A window is therefore
read as a slice that begins at x (`unfold`), and sums of chroma are 32 bits that hold both planes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FRACTION_BITS = 11
"""Of the coefficients that make RGB: with chroma in sixteenths all sums stay below 2^24, where float32 is exact."""
RED_CR, GREEN_CB, GREEN_CR, BLUE_CB = (
    round(coefficient * 2**FRACTION_BITS) for coefficient in (1.402, -0.344136, -0.714136, 1.772)
)
"""YCbCr to RGB, full range (ITU-T T.871, section 7)."""

SUM_BITS = 12
"""Of chroma in sixteenths, in a word: 16 * 255 is below 2^12. Blue's is lowest, then red's, then 8 bits of luma."""
SUM_MASK = (1 << SUM_BITS) - 1

LUMA = (19595, 38470, 7471)
CB = (-11059, -21709, 32768)
CR = (32768, -27439, -5329)
"""RGB to YCbCr in 65536ths, full range; each adds up to 65536 or 0 (T.871)."""


@dataclass(frozen=True)
class Rgb888:
    """Pixels as they were decoded: nothing is lost."""

    side: int
    """Side of the squares in pixels."""

    @property
    def bytes(self) -> int:
        """Bytes of an image."""
        return 3 * self.side**2

    def pack(self, images: Tensor) -> Tensor:
        """Make rows of images: uint8 n,side,side,3 -> uint8 n,bytes."""
        return images.flatten(1)

    def read_windows(self, rows: Tensor, numbers: Tensor, y: Tensor, x: Tensor, width: int) -> Tensor:
        """Read windows of rows (uint8 k,bytes): int32 n,height,width, a byte a colour, red lowest.

        Args:
            rows: of the cache.
            numbers: the row of each window, int64 n.
            y: lines of the square, int32 n,height.
            x: the first column, int32 n.
            width: number of columns.
        """
        windows = rows.unflatten(1, (self.side, self.side, 3)).unfold(2, width, 1)
        red, green, blue = windows[numbers[:, None], y, x[:, None]].int().unbind(2)
        return red | green << 8 | blue << 16

    def to_rgb(self, packed: Tensor) -> Tensor:
        """Convert windows to red, green and blue, float32 n,3,height,width in grey levels, 0 to 255."""
        shifts = 8 * torch.arange(3, dtype=torch.int32, device=packed.device)
        return (packed[:, None] >> shifts[:, None, None] & 255).float()


@dataclass(frozen=True)
class YCbCr420:
    """Full-range YCbCr 4:2:0, a plane after another: 1.5 bytes a pixel, 98,304 bytes for 256x256.

    Chroma is averaged over 2x2 pixels (an odd side's last row and column are repeated), and read back by the triangle
    filter that libjpeg uses: 9, 3, 3 and 1 sixteenths of the nearest four.
    """

    side: int
    """Side of the squares in pixels."""

    @property
    def chroma_side(self) -> int:
        """Side of a chroma plane."""
        return (self.side + 1) // 2

    @property
    def bytes(self) -> int:
        """Bytes of an image."""
        return self.side**2 + 2 * self.chroma_side**2

    def pack(self, images: Tensor) -> Tensor:
        """Make rows of images: uint8 n,side,side,3 -> uint8 n,bytes."""
        planes = images.permute(3, 0, 1, 2).contiguous().int()
        luma = _weighted(LUMA, planes) + (1 << 15) >> 16
        odd = self.side % 2
        if odd:
            planes = torch.cat([planes, planes[:, :, -1:]], dim=2)
            planes = torch.cat([planes, planes[..., -1:]], dim=3)
        rows = planes[:, :, 0::2] + planes[:, :, 1::2]
        fours = rows[..., 0::2] + rows[..., 1::2]
        chroma = [(_weighted(weights, fours) + (128 << 18) + (1 << 17) >> 18).clamp(max=255) for weights in (CB, CR)]
        return torch.cat([plane.flatten(1).to(torch.uint8) for plane in (luma, *chroma)], dim=1)

    def read_windows(self, rows: Tensor, numbers: Tensor, y: Tensor, x: Tensor, width: int) -> Tensor:
        """Read windows, as `Rgb888` does: luma, and chroma as sums of sixteenths (`SUM_BITS`)."""
        luma = rows[:, : self.side**2].unflatten(1, (self.side, self.side)).unfold(2, width, 1)
        lines = self._chroma_lines(rows, numbers[:, None], y)
        image, line = (torch.arange(count, device=y.device) for count in y.shape)
        chroma = lines.unfold(2, width, 1)[image[:, None], line, x[:, None]]
        return luma[numbers[:, None], y, x[:, None]].int() << 2 * SUM_BITS | chroma

    def to_rgb(self, packed: Tensor) -> Tensor:
        """Convert windows to colours, as `Rgb888` does."""
        packed = packed[:, None]
        luma = (packed >> 2 * SUM_BITS & 255).float() * (16 << FRACTION_BITS)
        blue_difference = ((packed & SUM_MASK) - 16 * 128).float()
        red_difference = ((packed >> SUM_BITS & SUM_MASK) - 16 * 128).float()
        channel = torch.arange(3, device=packed.device)[:, None, None]
        cb, cr = (_of_channel(channel, *weights) for weights in ((0, GREEN_CB, BLUE_CB), (RED_CR, GREEN_CR, 0)))
        colours = luma + cb * blue_difference + cr * red_difference
        return (colours * (2.0**-FRACTION_BITS / 16)).clamp(0, 255)

    def _chroma_lines(self, rows: Tensor, numbers: Tensor, y: Tensor) -> Tensor:
        """Return chroma of whole lines at the resolution of luma: words without luma, n,height,2 * chroma_side."""
        planes = rows[:, self.side**2 :].unflatten(1, (2, self.chroma_side, self.chroma_side))
        near = y >> 1
        far = (near + (y & 1) * 2 - 1).clamp(0, self.chroma_side - 1)

        def both(columns: slice, at: Tensor) -> Tensor:
            blue, red = (planes[:, plane, :, columns][numbers, at].int() for plane in range(2))
            return blue | red << SUM_BITS

        # Beyond an edge is the edge's own column. Each part is summed apart: the whole would be written, then copied.
        parts = slice(0, 1), slice(None), slice(self.chroma_side - 1, None)
        sums = torch.cat([3 * both(columns, near) + both(columns, far) for columns in parts], dim=2)
        left, right = (3 * sums[..., 1:-1] + neighbour for neighbour in (sums[..., :-2], sums[..., 2:]))
        # Two neighbours are one number of 64 bits, the left one first in memory: loops store what they have in order.
        return (left.long() | right.long() << 32).view(torch.int32)


PixelFormat = Rgb888 | YCbCr420
"""A format in which squares are kept."""


def _of_channel(channel: Tensor, red: int, green: int, blue: int) -> Tensor:
    return torch.where(channel == 0, float(red), torch.where(channel == 1, float(green), float(blue)))


def _weighted(weights: tuple[int, int, int], planes: Tensor) -> Tensor:
    red, green, blue = planes
    return weights[0] * red + weights[1] * green + weights[2] * blue
