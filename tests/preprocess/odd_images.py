"""Small valid image files of every kind that is read, and seeded damage to them."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps
from raw_data import encoded


def picture(width: int = 61, height: int = 40) -> Image.Image:
    """A smooth colour picture: no two corners alike."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / (5 + band) + y / (9 - band) + band) for band in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def ycck_jpeg(image: Image.Image) -> bytes:
    """A CMYK JPEG as Adobe writes it: an Adobe marker with transform 2, and all values inverted."""
    # An encoder that takes YCbCr for CMYK stores the four planes as they are; the marker makes them YCCK.
    luma_chroma = ImageOps.invert(image).convert("YCbCr").split()
    planes = [*map(ImageOps.invert, luma_chroma), Image.new("L", image.size, 0)]
    data = encoded(Image.merge("CMYK", planes), quality=95)
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\2" + data[at + 1 :]


def rgb16_png(image: Image.Image) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""
    wide = np.asarray(image).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def every_kind() -> dict[str, bytes]:
    """Return one valid file of each kind, by name."""
    image = picture()
    grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    frames = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.rotate(180)]
    palette = image.quantize(17)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": encoded(image, quality=90),
        "progressive jpeg": encoded(image, progressive=True),
        "jpeg 4:4:4 with restarts": encoded(image, subsampling=0, restart_marker_blocks=3),
        "turned jpeg": encoded(image, exif=exif),
        "grey jpeg": encoded(image.convert("L")),
        "cmyk jpeg": encoded(image.convert("CMYK")),
        "ycck jpeg": ycck_jpeg(image),
        "png": encoded(image, "PNG"),
        "16-bit rgb png": rgb16_png(image),
        "16-bit grey png": encoded(grey16, "PNG"),
        "palette png": encoded(palette, "PNG"),
        "palette png with transparency": encoded(palette, "PNG", transparency=bytes(range(0, 170, 10))),
        "alpha png": encoded(image.convert("RGBA"), "PNG"),
        "grey alpha png": encoded(image.convert("LA"), "PNG"),
        "bilevel png": encoded(image.convert("1"), "PNG"),
        "animated png": encoded(image, "PNG", save_all=True, append_images=frames),
        "animated gif": encoded(palette, "GIF", save_all=True, append_images=frames),
        "bmp": encoded(image, "BMP"),
        "ppm": encoded(image, "PPM"),
        "tiff": encoded(image, "TIFF"),
    }


def damaged(files: list[bytes], rng: random.Random) -> bytes:
    """Return one of the files with one or two faults of the kinds that disks, networks and enemies make."""
    data = bytearray(rng.choice(files))
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(7)
        at = rng.randrange(len(data) + 1)
        if kind == 0:  # bits are flipped anywhere
            for _ in range(rng.randint(1, 6)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:  # the end is missing
            del data[at:]
        elif kind == 2:  # a piece is doubled
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif kind == 3:  # a piece of another file
            other = rng.choice(files)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randint(1, 300)]
        elif kind == 4:  # another file's second half
            other = rng.choice(files)
            data = data[: len(data) // 2] + other[len(other) // 2 :]
        elif kind == 5:  # the header has other numbers: sizes, depths, counts
            for _ in range(rng.randint(1, 3)):
                if data:
                    place = rng.randrange(min(len(data), 64))
                    data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        else:  # a block of zeros, as a disk leaves it
            length = rng.randint(1, 512)
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


def mutations(count: int, seed: int) -> list[bytes]:
    """Return `count` damaged files, always the same."""
    rng = random.Random(seed)
    files = list(every_kind().values())
    return [damaged(files, rng) for _ in range(count)]


def opened_rgb(data: bytes) -> np.ndarray:
    """Return what plain Pillow makes of a file, as torchvision's ImageFolder reads it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
