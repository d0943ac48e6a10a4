"""Transformation of a raw image to a sample: decode to RGB, resize the short side, encode as JPEG.

The build and `training.predict` share this module, so predicted and training images are treated alike.
"""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import ExifTags, Image, ImageOps, __version__, features

from preprocess.images.decoding import SIMPLEJPEG_VERSION, Decoded, UnreadableImage, decode
from preprocess.images.value_range import RangeUse, ValueRange

CHROMA = "4:2:0"
RESAMPLE = "bicubic"
MAX_ASPECT = 16  # beyond it, a short side of 256 makes a long side that no crop will see


def codec_versions() -> dict[str, str]:
    """Return the versions of the libraries that influence a sample's bytes."""
    return {
        "Pillow": __version__,
        "libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg")),
        "simplejpeg": SIMPLEJPEG_VERSION,
        **{name: str(features.version(name)) for name in ("webp", "libtiff", "avif")},
    }


class Sample(NamedTuple):
    """A raw file turned into a sample."""

    pixels: Image.Image
    """Resized, RGB or RGBX, before encoding."""
    jpeg: bytes
    largest: int | None
    """As in `Decoded`."""
    range_use: RangeUse | None
    """As in `Decoded`."""


def decode_rgb(data: bytes, apply_exif: bool = False) -> Image.Image:
    """Decode all pixels of an image file to RGB as torchvision's ImageFolder does.

    CMYK, grey, palette and alpha are converted as Pillow converts them (alpha is dropped, not composed); of
    an animation, the first frame counts. 16-bit grey keeps its upper byte, as Pillow itself does with 16-bit RGB
    (its own conversion of grey would cut all values off at 255). Floating-point and 32-bit images are unreadable.

    `apply_exif` turns the image as its EXIF orientation says; ImageFolder does not.

    Raises:
        UnreadableImage: as `preprocess.images.decoding.decode`.
    """
    decoded = decode(data, apply_exif=apply_exif)
    image = decoded.image if decoded.image.mode == "RGB" else decoded.image.convert("RGB")
    return _turned(image, decoded.orientation)


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Scale the short side to exactly `short_side` pixels, the long one to the nearest (antialiased bicubic).

    Raises:
        UnreadableImage: the long side is over `MAX_ASPECT` times the short one.
    """
    return _resized(Decoded(image, image.size, 1, 1), short_side)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode RGB (or RGBX) as a baseline 4:2:0 JPEG without EXIF, profile or comment; same pixels, same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=CHROMA, comment=b"")
    return buffer.getvalue()


def make_sample(
    data: bytes, short_side: int, quality: int, apply_exif: bool = False, value_range: ValueRange | None = None
) -> Sample:
    """Turn a raw file into a sample; `value_range` is as in `preprocess.images.decoding.decode`.

    A JPEG whose short side is at least 6, 12 or 24 times `short_side` is decoded at 1/2, 1/4 or 1/8 of its size, from
    the low frequencies of its blocks, and resized from there: the mean difference is below 1 grey level. The EXIF
    orientation, if requested, is applied after resizing.

    Raises:
        UnreadableImage: as `decode_rgb` and `resize_short_side`.
    """
    decoded = decode(data, short_side, apply_exif, value_range)
    pixels = _turned(_resized(decoded, short_side), decoded.orientation)
    return Sample(pixels, encode_jpeg(pixels, quality), decoded.largest, decoded.range_use)


def _resized(decoded: Decoded, short_side: int) -> Image.Image:
    width, height = decoded.size
    short = min(width, height)
    if max(width, height) > MAX_ASPECT * short:
        raise UnreadableImage(f"{width}x{height} pixels: a long side over {MAX_ASPECT} times the short one")
    if short == short_side:
        return decoded.image
    # Integers: the nearest pixel, halves up, on any machine.
    size = ((2 * width * short_side + short) // (2 * short), (2 * height * short_side + short) // (2 * short))
    box = (0, 0, width / decoded.scale, height / decoded.scale)
    return decoded.image.resize(size, Image.Resampling.BICUBIC, box)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(image)
