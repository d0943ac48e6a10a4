import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from preprocess.images import color_sums
from preprocess.images.statistics import ColorSums

SIDE = 24


@pytest.fixture(autouse=True, params=["C", "NumPy"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds for both ways to compute the sums."""
    if request.param == "NumPy":
        monkeypatch.setattr(color_sums, "_extension", None)
    else:
        assert color_sums._extension is not None, "bootstrap.sh has not compiled it"
    return request.param


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Resized images as a build would see them: one short side, all kinds of long ones, correlated channels."""
    rng = np.random.default_rng(3)
    sizes = [(24, 24), (24, 37), (41, 24), (24, 384), (51, 24), (24, 25), (86, 24)]
    pictures = []
    for size in sizes:
        shared = rng.integers(0, 160, (*size, 1))
        pictures.append(Image.fromarray((shared + rng.integers(0, 96, (*size, 3))).astype(np.uint8)))
    return pictures


def sums_of(images: list[Image.Image], side: int = SIDE) -> ColorSums:
    sums = ColorSums(side)
    for image in images:
        sums.add(image)
    return sums


def all_pixels(images: list[Image.Image]) -> np.ndarray:
    return np.concatenate([np.asarray(image).reshape(-1, 3) for image in images]).astype(np.int64)


def test_the_sums_are_exact(images: list[Image.Image]) -> None:
    pixels, sums = all_pixels(images), sums_of(images)
    assert sums.pixels == len(pixels)
    assert np.array_equal(sums.sums, pixels.sum(axis=0))
    assert np.array_equal(sums.products, pixels.T @ pixels)


@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
def test_the_sums_are_exact_at_the_extremes(level: int) -> None:
    flat = np.full((1200, 1300, 3), level, np.uint8)
    flat[:, :, 1] = 255 - level
    sums = sums_of([Image.fromarray(flat)], side=1200)
    pixels = all_pixels([Image.fromarray(flat)])
    assert np.array_equal(sums.sums, pixels.sum(axis=0))
    assert np.array_equal(sums.products, pixels.T @ pixels)


@pytest.mark.parametrize("width", [1, 7, 15, 31, 33, 1023, 1024, 1025, 2047, 2049])
def test_the_sums_are_exact_at_awkward_sizes(width: int) -> None:
    rng = np.random.default_rng(width)
    for height in (1, 3, 18):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        sums = sums_of([Image.fromarray(pixels)], side := min(height, width))
        flat = pixels.reshape(-1, 3).astype(np.int64)
        assert np.array_equal(sums.sums, flat.sum(axis=0))
        assert np.array_equal(sums.products, flat.T @ flat)
        top, left = round((height - side) / 2), round((width - side) / 2)
        assert np.array_equal(sums.square, pixels[top : top + side, left : left + side])


@pytest.mark.parametrize("height", [2047, 2048, 2049, 2100])
def test_the_sums_are_exact_where_pillow_keeps_an_image_in_pieces(height: int) -> None:
    # 2048 rows of 2048 pixels are 16 MiB, the most that Pillow allocates in one piece.
    pixels = np.arange(height * 2048 * 3, dtype=np.uint32).astype(np.uint8).reshape(height, 2048, 3)
    pixels[::7] += 100
    flat = pixels.reshape(-1, 3).astype(np.int64)
    sums = sums_of([Image.fromarray(pixels)])
    assert np.array_equal(sums.products, flat.T @ flat)


def test_an_image_on_borrowed_memory_counts_as_any_other() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, SIDE, 4), np.uint8)
    borrowed = Image.frombuffer("RGBX", (SIDE, 30), pixels, "raw", "RGBX", 0, 1)
    own = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))
    assert sums_of([borrowed]).finish("mean.npy") == sums_of([own]).finish("mean.npy")


def test_adding_an_image_neither_changes_nor_keeps_it() -> None:
    image = Image.new("RGB", (SIDE, 40), (1, 2, 3))
    references, before = sys.getrefcount(image), image.tobytes()
    sums = sums_of([image])
    assert (sys.getrefcount(image), image.tobytes()) == (references, before)
    del image
    assert sums.finish("mean.npy").mean == (1, 2, 3)


def test_any_division_of_the_work_gives_the_same(images: list[Image.Image]) -> None:
    whole = sums_of(images)
    for parts in ([images[:3], images[3:]], [[image] for image in images[::-1]], [images[4:], [], images[:4]]):
        total = ColorSums(SIDE)
        for part in parts:
            total.merge(sums_of(part))
        assert total.finish("mean.npy") == whole.finish("mean.npy")
        assert np.array_equal(total.mean_image(), whole.mean_image())


def test_mean_covariance_and_eigenvectors_are_numpys(images: list[Image.Image]) -> None:
    pixels, rgb = all_pixels(images), sums_of(images).finish("mean.npy")
    assert rgb.mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    covariance = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(rgb.covariance, covariance, rtol=1e-9)
    values, vectors = np.linalg.eigh(covariance)
    assert rgb.eigenvalues == pytest.approx(values[::-1], rel=1e-9)
    ours = np.array(rgb.eigenvectors)
    np.testing.assert_allclose(np.abs((ours * vectors[:, ::-1]).sum(axis=0)), 1, atol=1e-9)  # column by column
    np.testing.assert_allclose(np.array(rgb.covariance) @ ours, ours * rgb.eigenvalues, rtol=1e-6, atol=1e-6)
    for column in ours.T:
        assert column[np.abs(column).argmax()] > 0


def test_the_mean_image_is_that_of_the_central_squares(images: list[Image.Image]) -> None:
    squares = []
    for image in images:
        pixels = np.asarray(image, np.float64)
        top, left = (round((length - SIDE) / 2) for length in pixels.shape[:2])
        squares.append(pixels[top : top + SIDE, left : left + SIDE])
    mean = sums_of(images).mean_image()
    assert (mean.shape, mean.dtype) == ((SIDE, SIDE, 3), np.float32)
    np.testing.assert_allclose(mean, np.mean(squares, axis=0), rtol=1e-6)


def test_the_mean_image_stays_exact_over_many_images() -> None:
    white, black = Image.new("RGB", (5, 4), "white"), Image.new("RGB", (4, 4))
    sums = sums_of([white] * 600 + [black] * 200, side=4)
    assert sums.square.min() == sums.square.max() == 600 * 255
    assert np.array_equal(sums.mean_image(), np.full((4, 4, 3), 191.25, np.float32))


@pytest.mark.parametrize(("margin", "left"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)])
def test_the_central_square_lies_where_center_crop_cuts_it(margin: int, left: int) -> None:
    ramp = np.tile(np.arange(8 + margin, dtype=np.uint8)[None, :, None], (8, 1, 3))
    assert sums_of([Image.fromarray(ramp)], side=8).mean_image()[0, 0, 0] == left


def test_grey_images_have_one_direction_and_no_negative_variance() -> None:
    for seed in range(20):
        levels = np.random.default_rng(seed).integers(0, 256, (SIDE, 99), np.uint8)
        rgb = sums_of([Image.fromarray(levels).convert("RGB")]).finish("mean.npy")
        assert rgb.eigenvalues[0] == pytest.approx(3 * levels.var(), rel=1e-9)
        assert all(0 <= value < 1e-9 for value in rgb.eigenvalues[1:])
        assert [row[0] for row in rgb.eigenvectors] == pytest.approx([3**-0.5] * 3)


def test_channels_are_not_mixed_up() -> None:
    for order in itertools.permutations((10, 100, 200)):
        picture = Image.new("RGB", (SIDE, SIDE), order)
        assert sums_of([picture]).finish("mean.npy").mean == order


def test_no_pixels_are_an_error() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        ColorSums(SIDE).finish("mean.npy")


def test_an_image_smaller_than_the_square_is_an_error() -> None:
    with pytest.raises(ValueError, match="an image of 23x24 pixels has no square of 24"):
        sums_of([Image.new("RGB", (23, 24))])


@pytest.mark.parametrize("kind", ["C"], indirect=True)
def test_buffers_of_another_size_are_refused() -> None:
    sums, square = np.zeros(9, np.int64), np.zeros((3, 4, 4), np.uint16)
    add = color_sums._extension.add_image
    add(bytes(4 * 5 * 4), 5, 4, 0, 1, 4, sums, square)
    for pixels, side, total, squares in (
        (bytes(4 * 5 * 4 - 1), 4, sums, square),
        (bytes(4 * 5 * 4), 5, sums, np.zeros((3, 5, 5), np.uint16)),
        (bytes(4 * 5 * 4), 4, sums[:8], square),
        (bytes(4 * 5 * 4), 4, sums, square[:2]),
        (None, 4, sums, square),
    ):
        with pytest.raises(ValueError, match="do not have the size"):
            add(pixels, 5, 4, 0, 0, side, total, squares)


@pytest.mark.parametrize("kind", ["NumPy"], indirect=True)
def test_without_the_extension_there_is_one_warning() -> None:
    with pytest.warns(UserWarning, match="twotower_color_sums is not in this environment: NumPy computes") as caught:
        color_sums.warn_if_slow()
    assert len(caught) == 1
