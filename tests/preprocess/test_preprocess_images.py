import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from raw_data import encoded

from preprocess.images import (
    UnreadableImage,
    decode_rgb,
    encode_jpeg,
    make_sample,
    resize_short_side,
)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth colour picture of 90 x 60 pixels: no two corners alike."""
    y, x = np.mgrid[0:60, 0:90]
    return Image.fromarray(np.stack([2 * x, 4 * y, 255 - x - y], axis=-1).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("P", "GIF")],
)
def test_every_mode_becomes_the_rgb_that_pillow_makes(picture: Image.Image, mode: str, kind: str) -> None:
    data = encoded(picture.convert(mode), kind)
    decoded = decode_rgb(data)
    assert decoded.mode == "RGB"
    with Image.open(io.BytesIO(data)) as reference:
        assert np.array_equal(np.asarray(decoded), np.asarray(reference.convert("RGB")))


def test_16_bit_grey_keeps_its_gradations() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint16) * 257, (20, 1))
    decoded = np.asarray(decode_rgb(encoded(Image.fromarray(levels), "PNG")))
    assert np.array_equal(decoded, np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_exif_orientation_is_not_applied_and_nothing_is_carried_along(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = encoded(picture, exif=exif, comment=b"by somebody", icc_profile=b"\0" * 128, dpi=(300, 300))
    pixels, jpeg = make_sample(raw, 40, 95)
    assert pixels.size == (60, 40)  # turned, it would be 40 x 60
    with Image.open(io.BytesIO(jpeg)) as sample:
        assert sample.size == (60, 40)
        assert not sample.getexif()
        assert not {"comment", "icc_profile", "dpi"} & sample.info.keys()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((100, 100), (256, 256)), ((257, 256), (257, 256)),
     ((1000, 63), (4063, 256)), ((3, 2), (384, 256)), ((512, 513), (256, 257)), ((2048, 2049), (256, 256))],
)  # fmt: skip
def test_short_side_is_exact_and_the_long_side_nearest(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_short_side(Image.new("RGB", size), 256).size == expected


@pytest.mark.parametrize("side", [23, 150])
def test_resizing_is_pillows_bicubic(picture: Image.Image, side: int) -> None:
    resized = resize_short_side(picture, side)
    reference = picture.resize(resized.size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(resized), np.asarray(reference))


def test_shrinking_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (256, 128))).convert("RGB")
    small = np.asarray(resize_short_side(stripes, 64), np.int16)
    assert np.abs(small - 127).max() < 20  # without a filter, stripes of one pixel stay black or white


@pytest.mark.parametrize("side", [16, 17, 64])
def test_an_image_of_the_right_size_keeps_its_pixels(side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 5, 3), np.uint8)
    resized, jpeg = make_sample(encoded(Image.fromarray(pixels), "PNG"), side, 95)
    assert np.array_equal(np.asarray(resized), pixels)
    with Image.open(io.BytesIO(jpeg)) as sample:
        assert sample.size == (side + 5, side)


def test_jpegs_are_420_and_follow_the_quality(picture: Image.Image) -> None:
    sizes = []
    for quality in (30, 75, 95):
        data = encode_jpeg(picture, quality)
        assert data == encode_jpeg(picture.copy(), quality)
        sizes.append(len(data))
        with Image.open(io.BytesIO(data)) as sample:
            assert JpegImagePlugin.get_sampling(sample) == 2
            error = np.abs(np.asarray(sample, np.int16) - np.asarray(picture, np.int16)).mean()
    assert sizes == sorted(set(sizes))
    assert error < 2


def test_broken_files_are_refused_with_a_stable_reason(picture: Image.Image) -> None:
    jpeg, png = encoded(picture), encoded(picture, "PNG")
    broken = {
        b"": "empty file",
        b"<html>": "not an image in a known format",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not an image in a known format",
        jpeg[:2]: "not an image in a known format",
        jpeg[:-60]: "image file is truncated (2 bytes not processed)",
        png[:-40]: "image file is truncated",
        png[:-60] + b"\0" * 60: "unrecognized data stream contents when reading image file",
    }
    for data, reason in broken.items():
        for _ in range(2):
            with pytest.raises(UnreadableImage) as caught:
                decode_rgb(data)
            assert str(caught.value) == reason


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])
def test_decompression_bombs_are_refused_from_their_headers(
    size: tuple[int, int], recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(UnreadableImage, match="more than 89,478,485 pixels"):
        decode_rgb(png_header(*size))
    assert not recwarn.list


def test_absurd_aspect_ratios_are_refused() -> None:
    assert resize_short_side(Image.new("RGB", (160, 10)), 32).size == (512, 32)
    with pytest.raises(UnreadableImage, match="161x10 pixels: a long side over 16 times the short one"):
        resize_short_side(Image.new("RGB", (161, 10)), 32)
