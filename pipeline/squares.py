"""How decoded squares are kept: two forms, one byte a number, each image a row of bytes.

A form says how many bytes an image takes, makes a row of an image (`pack`) and reads grey levels out of rows
(`levels`). All of it is exact: integers, or floats that hold whole multiples of a power of two below 24 bits. That is
why a compiled pass, an eager one and a GPU give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

FRACTION_BITS = 11
"""Of the coefficients that make RGB: with chroma in sixteenths all sums stay below 2^24, where float32 is exact."""
RED_CR, GREEN_CB, GREEN_CR, BLUE_CB = (
    round(coefficient * 2**FRACTION_BITS) for coefficient in (1.402, -0.344136, -0.714136, 1.772)
)
"""YCbCr to RGB, full range (ITU-T T.871, section 7)."""

LUMA = (19595, 38470, 7471)
CB = (-11059, -21709, 32768)
CR = (32768, -27439, -5329)
"""RGB to YCbCr in 65536ths, full range; each adds up to 65536 or 0 (T.871)."""


class Squares(Protocol):
    """A form in which squares are kept."""

    @property
    def side(self) -> int:
        """Side of the squares in pixels."""

    @property
    def bytes(self) -> int:
        """Bytes of an image."""

    def pack(self, images: Tensor) -> Tensor:
        """Make rows of images: uint8 n,side,side,3 -> uint8 n,bytes."""

    def levels(self, rows: Tensor, numbers: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read red, green and blue of pixels, float32 in grey levels, 0 to 255.

        Args:
            rows: uint8 k,bytes.
            numbers: the row of each image, int64 n,1,1.
            y, x: which pixels of the square, int32 n,height,1 and n,1,width: half the work of int64.
        """


@dataclass(frozen=True)
class RgbSquares:
    """As they were decoded: nothing is lost."""

    side: int

    @property
    def bytes(self) -> int:
        """Bytes of an image."""
        return 3 * self.side**2

    def pack(self, images: Tensor) -> Tensor:
        """Make rows of images: uint8 n,side,side,3 -> uint8 n,bytes."""
        return images.flatten(1)

    def levels(self, rows: Tensor, numbers: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read red, green and blue of pixels: see `Squares`."""
        at = (y * self.side + x) * 3
        return rows[numbers, at].float(), rows[numbers, at + 1].float(), rows[numbers, at + 2].float()


@dataclass(frozen=True)
class YccSquares:
    """Full-range YCbCr 4:2:0, a plane after another: 1.5 bytes a pixel, 98,304 bytes for 256x256.

    Chroma is averaged over 2x2 pixels (an odd side's last row and column are repeated), and read back by the triangle
    filter that libjpeg uses: 9, 3, 3 and 1 sixteenths of the nearest four.
    """

    side: int

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

    def levels(self, rows: Tensor, numbers: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read red, green and blue of pixels: see `Squares`."""
        luma = rows[numbers, y * self.side + x].float() * (16 << FRACTION_BITS)
        near_y, far_y, near_x, far_x = *self._taps(y), *self._taps(x)

        def chroma(plane: int) -> Tensor:
            def at(y: Tensor, x: Tensor) -> Tensor:
                return rows[numbers, plane + y * self.chroma_side + x].float()

            near = 9 * at(near_y, near_x) + 3 * at(near_y, far_x)
            return near + 3 * at(far_y, near_x) + at(far_y, far_x) - 16 * 128

        blue_difference = chroma(self.side**2)
        red_difference = chroma(self.side**2 + self.chroma_side**2)
        colours = (
            luma + RED_CR * red_difference,
            luma + GREEN_CB * blue_difference + GREEN_CR * red_difference,
            luma + BLUE_CB * blue_difference,
        )
        red, green, blue = ((colour * (2.0**-FRACTION_BITS / 16)).clamp(0, 255) for colour in colours)
        return red, green, blue

    def _taps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chroma sample that covers each pixel, and the next one on the pixel's side of it."""
        near = pixels >> 1
        return near, (near + (pixels & 1) * 2 - 1).clamp(0, self.chroma_side - 1)


def _weighted(weights: tuple[int, int, int], planes: Tensor) -> Tensor:
    red, green, blue = planes
    return weights[0] * red + weights[1] * green + weights[2] * blue
