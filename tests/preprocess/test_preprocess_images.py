import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import odd_images
import pytest
from odd_images import opened_rgb
from PIL import Image, ImageOps, JpegImagePlugin, features
from raw_data import encoded

from preprocess.images import decoding
from preprocess.images.transform import (
    UnreadableImage,
    decode_rgb,
    encode_jpeg,
    make_sample,
    resize_short_side,
)

KINDS = odd_images.every_kind()


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


@pytest.fixture(params=["simplejpeg", "Pillow"])
def jpeg_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have JPEGs decoded by one library, then by the other."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decoding, "simplejpeg", None)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_the_rgb_that_pillow_makes(kind: str, jpeg_decoder: str) -> None:
    decoded = decode_rgb(KINDS[kind])
    assert decoded.mode == "RGB"
    if kind != "16-bit grey png":  # the next test
        assert np.array_equal(np.asarray(decoded), opened_rgb(KINDS[kind]))
    original = odd_images.picture() if not re.search("grey|bilevel", kind) else odd_images.picture().convert("L")
    tolerance = {"bilevel png": 128}.get(kind, 20 if re.search("palette|gif", kind) else 4)
    assert np.abs(np.asarray(decoded, np.int16) - np.asarray(original.convert("RGB"))).mean() < tolerance


@pytest.mark.parametrize("kind", ["16-bit grey png", "palette png with transparency", "cmyk jpeg", "alpha png"])
def test_a_large_image_is_converted_in_strips_to_the_same_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.asarray(decode_rgb(KINDS[kind]))
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 7 * whole.shape[1] + 3)
    assert np.array_equal(np.asarray(decode_rgb(KINDS[kind])), whole)


WEBP, AVIF = b"RIFF\x20\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"


@pytest.mark.parametrize(("kind", "feature"), [("WEBP", "webp"), ("AVIF", "avif")])
def test_a_format_is_read_where_pillow_is_built_with_it(kind: str, feature: str) -> None:
    if not features.check(feature):
        pytest.skip(f"Pillow is built without {kind}")
    data = encoded(odd_images.picture(), kind, quality=95)
    difference = np.asarray(decode_rgb(data), np.int16) - np.asarray(odd_images.picture())
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_compressed_tiffs_are_read_where_pillow_is_built_with_libtiff(compression: str) -> None:
    if not features.check("libtiff"):
        pytest.skip("Pillow is built without libtiff")
    data = encoded(odd_images.picture(), "TIFF", compression=compression)
    difference = np.asarray(decode_rgb(data), np.int16) - np.asarray(odd_images.picture())
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (WEBP, "WEBP, which Pillow is built without"),
        (AVIF, "AVIF, which Pillow is built without"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which is not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000, which is not supported"),
    ],
)
def test_a_format_that_cannot_be_read_is_named(data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _: False)
    monkeypatch.setattr(decoding.Image, "open", raising(Image.UnidentifiedImageError()))
    with pytest.raises(UnreadableImage, match=f"^{reason}$"):
        decode_rgb(data)


def test_a_compressed_tiff_without_libtiff_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.Image, "open", raising(OSError("decoder libtiff not available")))
    with pytest.raises(UnreadableImage, match=r"^compressed TIFF, which Pillow is built without$"):
        decode_rgb(b"II*\0")


def raising(error: Exception) -> Callable[..., None]:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_simplejpeg_and_pillow_decode_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    rng = np.random.default_rng(5)
    for number in range(24):
        noise = Image.fromarray(rng.integers(0, 256, [*rng.integers(1, 40, 2).tolist(), 3], np.uint8))
        big = noise.resize(rng.integers(1, 200, 2).tolist(), Image.Resampling.BICUBIC)
        big = big.convert("L") if number % 8 == 7 else big
        data = encoded(big, quality=50 + number, subsampling=number % 3, progressive=number % 2)
        with monkeypatch.context() as patch:
            ours = np.asarray(decode_rgb(data))
            patch.setattr(decoding, "simplejpeg", None)
            assert np.array_equal(ours, np.asarray(decode_rgb(data)))


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("kind", ["RGB", "CMYK", "L"])
def test_scaled_decoding_stays_within_one_grey_level(scale: int, kind: str, jpeg_decoder: str) -> None:
    side = 24
    rng = np.random.default_rng(scale)
    size = (3 * scale * side + 5, 4 * scale * side + 3)
    # As photographs have it: half the amplitude at twice the frequency.
    layers = [
        rng.uniform(-1, 1, (size[1] // step + 2, size[0] // step + 2, 3)) * step for step in (2, 4, 8, 16, 32, 64)
    ]
    total = np.zeros((size[1], size[0], 3))
    for layer in layers:
        for band in range(3):
            plane = Image.fromarray(layer[:, :, band].astype(np.float32))
            total[:, :, band] += np.asarray(plane.resize(size, Image.Resampling.BICUBIC))
    photograph = Image.fromarray(np.clip(127 + 1.2 * total, 0, 255).astype(np.uint8))
    data = encoded(photograph.convert(kind), quality=92)
    decoded = decoding.decode(data, side)
    assert (decoded.scale, decoded.image.width) == (scale, -(-size[0] // scale))
    pixels, *_ = make_sample(data, side, 95)
    exact = resize_short_side(decode_rgb(data), side)
    assert pixels.size == exact.size
    difference = np.asarray(pixels.convert("RGB"), np.int16) - np.asarray(exact, np.int16)
    assert np.abs(difference).mean() < 1
    assert np.asarray(exact).std() > 20


def test_a_jpeg_is_not_scaled_when_it_is_barely_larger() -> None:
    assert decoding.decode(encoded(Image.new("RGB", (300, 144))), 25).scale == 1
    assert decoding.decode(encoded(Image.new("RGB", (300, 150))), 25).scale == 2


def test_16_bit_grey_keeps_its_gradations() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint16) * 257, (20, 1))
    decoded = np.asarray(decode_rgb(encoded(Image.fromarray(levels), "PNG")))
    assert np.array_equal(decoded, np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_exif_orientation_is_not_applied_and_nothing_is_carried_along(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = encoded(picture, exif=exif, comment=b"by somebody", icc_profile=b"\0" * 128, dpi=(300, 300))
    pixels, jpeg, *_ = make_sample(raw, 40, 95)
    assert pixels.size == (60, 40)  # turned, it would be 40 x 60
    with Image.open(io.BytesIO(jpeg)) as sample:
        assert sample.size == (60, 40)
        assert not sample.getexif()
        assert not {"comment", "icc_profile", "dpi"} & sample.info.keys()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied_when_asked_for(orientation: int, kind: str) -> None:
    image = odd_images.picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        turned = ImageOps.exif_transpose(opened.convert("RGB"))
    assert np.array_equal(np.asarray(decode_rgb(data, apply_exif=True)), np.asarray(turned))
    pixels, jpeg, *_ = make_sample(data, 20, 95, apply_exif=True)
    expected = resize_short_side(turned, 20)
    assert pixels.size == expected.size
    assert np.abs(np.asarray(pixels.convert("RGB"), np.int16) - np.asarray(expected, np.int16)).max() <= 1
    with Image.open(io.BytesIO(jpeg)) as sample:
        assert not sample.getexif()


def test_rubbish_in_exif_does_not_cost_the_image() -> None:
    for exif in (b"Exif\0\0rubbish", b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x05\x01\x12", b"Exif\0\0II\x2a\0\xff\xff\xff\x7f"):
        data = encoded(odd_images.picture(), exif=exif)
        assert make_sample(data, 20, 95, apply_exif=True)[0].size == (31, 20)


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
    resized, jpeg, *_ = make_sample(encoded(Image.fromarray(pixels), "PNG"), side, 95)
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


@pytest.mark.parametrize(
    ("size", "reason"),
    [((60_000, 60_000), "more than 178,956,970 pixels"), ((10_000, 9_000), "343 MiB are needed to decode it")],
)
def test_decompression_bombs_are_refused_from_their_headers(
    size: tuple[int, int], reason: str, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode_rgb(png_header(*size))
    assert not recwarn.list


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(Image.new("RGB", (2100, 2100)), progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert decode_rgb(data[:-2] + 100 * scan + data[-2:]).size == (2100, 2100)
    with pytest.raises(UnreadableImage, match="more than 500 scans"):
        decode_rgb(data[:-2] + 500 * scan + data[-2:])


def test_damaged_files_are_samples_or_refused() -> None:
    good, reasons = 0, []
    for data in odd_images.mutations(200, seed=1):
        try:
            pixels, jpeg, *_ = make_sample(data, 16, 95)
        except UnreadableImage as error:
            reasons.append(str(error))
            continue
        good += 1
        with Image.open(io.BytesIO(jpeg)) as sample:
            sample.load()
            assert (sample.mode, sample.size, min(sample.size)) == ("RGB", pixels.size, 16)
    assert 40 < good < 160
    assert all(0 < len(reason) <= 120 and "0x" not in reason for reason in reasons)


def test_absurd_aspect_ratios_are_refused() -> None:
    assert resize_short_side(Image.new("RGB", (160, 10)), 32).size == (512, 32)
    with pytest.raises(UnreadableImage, match="161x10 pixels: a long side over 16 times the short one"):
        resize_short_side(Image.new("RGB", (161, 10)), 32)


def tiff(values: np.ndarray, big_endian: bool = False) -> bytes:
    if not big_endian:
        return encoded(Image.fromarray(values), "TIFF")
    data = values.astype(">u2").tobytes()
    tags = [(256, 3, values.shape[1]), (257, 3, values.shape[0]), (258, 3, 16), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 8 + 2 + 12 * 8 + 4), (278, 3, values.shape[0]), (279, 4, len(data))]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1) + struct.pack(">HH" if kind == 3 else ">I", *([value, 0][: 5 - kind]))
        for tag, kind, value in tags
    )
    return b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4) + data


RAMP = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(RAMP), "floating-point values, whose range nothing tells; use --value-range LOW HIGH"),
        (tiff((RAMP * 1e6).astype(np.int32)), "signed or 32-bit values, whose range nothing tells; use --value-range"),
        (b"Pf 2 1 -1.0\n" + struct.pack("<ff", 0.5, 1.0), "floating-point values, whose range nothing tells"),
    ],
)
def test_values_without_a_defined_range_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=f"^{reason}"):
        make_sample(data, 16, 95)


@pytest.mark.parametrize(
    ("data", "value_range"),
    [
        (tiff(RAMP), (0, 1)),
        (tiff(RAMP * 1000 - 300), (-300, 700)),
        (tiff((RAMP * 4095).astype(np.uint16)), (0, 4095)),
        (tiff((RAMP * 4095).astype(np.uint16), big_endian=True), (0, 4095)),
        (encoded(Image.fromarray((RAMP * 4095).astype(np.uint16)), "PNG"), (0, 4095)),
        (tiff((RAMP * 1e6).astype(np.int32)), (0, 1e6)),
    ],
)
def test_a_value_range_brings_deep_images_to_8_bits(data: bytes, value_range: tuple[float, float]) -> None:
    pixels = np.asarray(make_sample(data, 64, 95, value_range=value_range).pixels)
    assert np.abs(pixels[:, :, 0].astype(int) - np.round(RAMP * 255)).max() <= 1
    assert (pixels == pixels[:, :, :1]).all()


def test_a_value_range_that_does_not_suit_an_image_is_said() -> None:
    with pytest.raises(UnreadableImage, match=r"^values 2 to 3, all outside of --value-range 0 1$"):
        make_sample(tiff(RAMP + 2), 16, 95, value_range=(0, 1))
    with pytest.raises(UnreadableImage, match=r"^values that are not finite numbers$"):
        make_sample(tiff(np.where(RAMP > 0.5, np.nan, RAMP)), 16, 95, value_range=(0, 1))
    with pytest.raises(UnreadableImage, match=r"^16-bit colours, of which Pillow keeps 8 bits"):
        make_sample(KINDS["16-bit rgb png"], 16, 95, value_range=(0, 4095))
    assert make_sample(KINDS["png"], 16, 95, value_range=(0, 1)).jpeg == make_sample(KINDS["png"], 16, 95).jpeg


def test_12_bit_data_in_16_bit_files_is_noticed() -> None:
    narrow = Image.fromarray(np.asarray(odd_images.picture()) // 16)
    for data, largest in (
        (tiff((RAMP * 4095).astype(np.uint16)), 4095),
        (tiff((RAMP * 65535).astype(np.uint16), big_endian=True), 65535),
        (odd_images.rgb16_png(narrow), 256 * int(np.asarray(narrow).max()) + 255),
        (KINDS["png"], None),
        (KINDS["jpeg"], None),
    ):
        assert make_sample(data, 16, 95).largest == largest
