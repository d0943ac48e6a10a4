"""What turns one raw image into one sample: decode to RGB, resize the short side, encode as JPEG.

The build and `training.predict` share this module, so a picture that is predicted has been treated as the
pictures that were trained on. It needs Pillow (pillow-simd) and the standard library alone.
"""

from __future__ import annotations

import io
import re
import warnings

from PIL import Image, __version__, features

from preprocess.manifest import InputError

CHROMA = "4:2:0"
RESAMPLE = "bicubic"

# What ImageFolder's endings can name, and GIF, which is found under them. Pillow knows forty more, among them
# EPS, which starts an interpreter.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own threshold of suspicion: 341 MiB as RGBX
MAX_ASPECT = 16  # beyond it, a short side of 256 makes a long side that no crop will see


class UnreadableImage(InputError):  # noqa: N818 - the reason is the message, the name says what was met
    """A file that cannot become a sample; the message is a short reason without paths or addresses."""


def codec_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a sample's bytes."""
    return {"Pillow": __version__, "libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg"))}


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image file's bytes to RGB as torchvision's ImageFolder does, EXIF orientation not applied.

    CMYK, grey, palette and alpha are converted as Pillow converts them (alpha is dropped, not composed); of
    an animation, the first frame counts. 16-bit grey keeps its upper byte, as Pillow itself does with 16-bit RGB
    (its own conversion of grey would cut all values off at 255).

    Raises:
        UnreadableImage: an empty file, no known image format, truncated or broken data, or over `MAX_PIXELS`.
    """
    if not data:
        raise UnreadableImage("empty file")
    with warnings.catch_warnings():
        # Pillow warns from MAX_PIXELS on and raises from twice that on: one limit is enough.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return _to_rgb(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from None
        except Image.UnidentifiedImageError:
            raise UnreadableImage("not an image in a known format") from None
        except Exception as error:
            # A broken file raises nearly anything in Pillow's parsers: SyntaxError, struct.error, IndexError.
            raise UnreadableImage(_reason(error)) from error


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Scale the short side to exactly `short_side` pixels, the long one to the nearest (antialiased bicubic).

    Raises:
        UnreadableImage: the long side is over `MAX_ASPECT` times the short one.
    """
    width, height = image.size
    short = min(width, height)
    if max(width, height) > MAX_ASPECT * short:
        raise UnreadableImage(f"{width}x{height} pixels: a long side over {MAX_ASPECT} times the short one")
    if short == short_side:
        return image
    # Integers: the nearest pixel, halves up, on any machine.
    width, height = ((2 * side * short_side + short) // (2 * short) for side in (width, height))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode RGB as a baseline 4:2:0 JPEG without EXIF, profile or comment; same pixels, same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=CHROMA, comment=b"")
    return buffer.getvalue()


def make_sample(data: bytes, short_side: int, quality: int) -> tuple[Image.Image, bytes]:
    """Turn a raw file into a sample: the resized RGB pixels before encoding, and the JPEG of them.

    Raises:
        UnreadableImage: as `decode_rgb` and `resize_short_side` say.
    """
    pixels = resize_short_side(decode_rgb(data), short_side)
    return pixels, encode_jpeg(pixels, quality)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256))
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(r"<[^>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}", "...", text)
    return (text or type(error).__name__)[:120]
