"""Decoding of image files to RGB pixels, with limits on formats, memory and time.

simplejpeg decodes sound JPEGs, to the same pixels as Pillow in less time; Pillow (pillow-simd) decodes everything
else, or everything if simplejpeg is missing.
"""

from __future__ import annotations

import io
import re
import warnings
from importlib.metadata import version
from typing import NamedTuple

from PIL import ExifTags, Image, JpegImagePlugin, features

from errors import InputError
from preprocess.images.formats import format_of
from preprocess.images.value_range import (
    RangeUse,
    ValueRange,
    check_range,
    is_deep,
    largest_value,
    range_use,
    raw_mode,
    to_8_bits,
)

try:
    import simplejpeg

    SIMPLEJPEG_VERSION = version("simplejpeg")
except ImportError:
    simplejpeg = None
    SIMPLEJPEG_VERSION = "none"

# What images of data sets are in. Pillow knows forty more, among them EPS, which starts an interpreter.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP", *(("AVIF",) if "avif" in features.modules else ()))
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif"}  # format -> the feature of Pillow that reads it
MAX_BYTES = 288 << 20  # of memory, for file, decoder and pixels of one image: a worker stays under 400 MiB
MAX_PIXELS = 178_956_970  # seconds of decoding; Pillow raises beyond it
MAX_SCANS = 500  # of a JPEG; each covers all of the image

# DCT-scaled decoding leaves the short side at least this many times too long: then the mean difference from full
# decoding stays under 1 grey level in every photograph.
_SCALED_SURPLUS = 3
# A JPEG under both needs no look at its structure: it decodes within about a second and 64 MiB, whatever it holds.
_QUICK_PIXELS = 1 << 22
_QUICK_WORK = 1 << 36  # pixels times bytes; the bytes bound the number of scans
_STRIP_PIXELS = 1 << 20
_START_OF_SCAN = b"\xff\xda"


class UnreadableImage(InputError):  # noqa: N818 - the reason is the message, the name says what was met
    """A file that cannot become a sample; the message is a short reason without paths or addresses."""


class Decoded(NamedTuple):
    """Decoded pixels, perhaps fewer than the file holds."""

    image: Image.Image
    """Mode RGB, or RGBX."""
    size: tuple[int, int]
    """Width and height of the image in the file."""
    scale: int
    """1, 2, 4 or 8: the file's pixels per decoded pixel along one side."""
    orientation: int
    """EXIF orientation, 1 to 8, if it is to be applied; else 1."""
    largest: int | None = None
    """The largest value, at most, of a file of 16 bits a channel whose upper 8 bits were kept; None for others."""
    range_use: RangeUse | None = None
    """Of an image that a value range has brought to 8 bits; None for others."""


def decode(
    data: bytes, short_side: int | None = None, apply_exif: bool = False, value_range: ValueRange | None = None
) -> Decoded:
    """Decode an image file's bytes; `preprocess.images.transform.decode_rgb` defines the pixels.

    Args:
        data: the file.
        short_side: pixels after resizing; a JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size. None for all
            pixels.
        apply_exif: return the EXIF orientation.
        value_range: the values of black and white, in images of one channel of more than 8 bits; by default, those of
            16 bits keep the upper 8, and those of 32 bits or floating point are unreadable.

    Raises:
        UnreadableImage: an empty file, no known image format, truncated or broken data, over `MAX_PIXELS` or
            `MAX_BYTES`, over `MAX_SCANS`.
    """
    if not data:
        raise UnreadableImage("empty file")
    if not apply_exif:
        decoded = _quick_jpeg(data, short_side)
        if decoded is not None:
            return decoded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and broken EXIF
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _opened(image, data, short_side, apply_exif, value_range)
        except UnreadableImage:
            raise
        except Image.DecompressionBombError:
            raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from None
        except Image.UnidentifiedImageError:
            raise UnreadableImage(why_unreadable(data) or "not an image in a known format") from None
        except Exception as error:
            # A broken file raises nearly anything in Pillow's parsers: SyntaxError, struct.error, IndexError.
            raise UnreadableImage(_reason(error)) from error


def why_unreadable(head: bytes) -> str | None:
    """Return the reason why an image that begins with `head` cannot be read in this environment; None for others."""
    name = format_of(head)
    if name in _OPTIONAL and not features.check(_OPTIONAL[name]):
        return f"{name}, which Pillow is built without"
    return f"{name}, which is not supported" if name is not None and name not in (*FORMATS, *_OPTIONAL) else None


def _quick_jpeg(data: bytes, short_side: int | None) -> Decoded | None:
    """Decode a JPEG of usual size and kind; None if it is anything else."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    pixels = width * height
    if colours not in ("YCbCr", "RGB", "Gray") or pixels > _QUICK_PIXELS or pixels * len(data) > _QUICK_WORK:
        return None
    scale = _scale(width, height, short_side)
    image = _sound_jpeg(data, width, height, scale)
    return None if image is None else Decoded(image, (width, height), scale, 1)


def _opened(
    image: Image.Image, data: bytes, short_side: int | None, apply_exif: bool, value_range: ValueRange | None
) -> Decoded:
    size, scale = image.size, 1
    rgb = largest = use = None
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        assert image.fp is not None
        further_scans = data.count(_START_OF_SCAN, image.fp.tell())  # it stands where the first one begins
        if further_scans >= MAX_SCANS:
            raise UnreadableImage(f"a JPEG of more than {MAX_SCANS} scans")
        scale = _scale(*size, short_side)
        if scale > 1:
            image.draft(None, (size[0] // scale, size[1] // scale))
        _check_memory(image, len(data) + (_coefficient_bytes(image, size) if further_scans else 0))
        if image.mode in ("RGB", "L"):
            rgb = _sound_jpeg(data, *size, scale)
    else:
        _check_memory(image, len(data))
    orientation = _orientation(image) if apply_exif else 1
    if rgb is None:
        raw = raw_mode(image)
        image.load()
        check_range(image, raw, value_range)
        if value_range is None:
            largest = largest_value(image, raw)
        elif is_deep(image):
            use = range_use(image, value_range)
        rgb = _to_rgb(image, value_range)
    return Decoded(rgb, size if scale > 1 else rgb.size, scale, orientation, largest, use)


def _sound_jpeg(data: bytes, width: int, height: int, scale: int) -> Image.Image | None:
    """Decode with simplejpeg; None for a file with any fault, which Pillow then names."""
    if simplejpeg is None:
        return None
    least = {} if scale == 1 else {"min_width": -(-width // scale), "min_height": -(-height // scale), "min_factor": 2}
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGBX", **least)
    except ValueError:
        return None
    if pixels.shape[:2] != (-(-height // scale), -(-width // scale)):
        return None
    return Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)


def _scale(width: int, height: int, short_side: int | None) -> int:
    if short_side is None:
        return 1
    surplus = min(width, height) // (_SCALED_SURPLUS * short_side)
    return next(scale for scale in (8, 4, 2, 1) if surplus >= scale or scale == 1)


def _check_memory(image: Image.Image, other_bytes: int) -> None:
    """Raise `UnreadableImage` if decoding and converting an image of this header takes over `MAX_BYTES`."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    converted = 0 if image.mode == "RGB" else 4
    needed = other_bytes + image.width * image.height * (stored + converted)
    if needed > MAX_BYTES:
        raise UnreadableImage(f"{needed >> 20} MiB are needed to decode it, more than {MAX_BYTES >> 20}")


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile, size: tuple[int, int]) -> int:
    """Return the bytes of coefficients that a decoder keeps for several scans: two for each sample."""
    most = max(h * v for _, h, v, _ in image.layer)
    return 2 * size[0] * size[1] * sum(h * v for _, h, v, _ in image.layer) // most


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above; rubbish in EXIF does not make an image unreadable
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _to_rgb(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Convert in strips, so that an intermediate format takes little memory."""
    if image.mode == "RGB":
        return image
    rows = max(_STRIP_PIXELS // image.width, 1)
    if rows >= image.height:
        return _strip_to_rgb(image, value_range)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_strip_to_rgb(strip, value_range), (0, top))
    return rgb


def _strip_to_rgb(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    if is_deep(image):
        image = to_8_bits(image, value_range)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if "decoder libtiff not available" in str(error):
        return "compressed TIFF, which Pillow is built without"
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(r"<[^>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}", "...", text)
    return (text or type(error).__name__)[:120]
