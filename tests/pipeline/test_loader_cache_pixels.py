"""Pixels from a cache: within bounds of the decoded ones in training, equal in evaluation."""

import numpy as np
import pytest
import torch
from shard_folders import CROP, textured, write_shards
from test_loader_pixels import PLAIN, batches
from test_loader_switches import UNLIT

import pipeline.sampler
from pipeline.augment import Augmentation, AugmentParams
from pipeline.cache.batch_kernel import CropFlipNormalize
from pipeline.cache.formats import Rgb888, YCbCr420
from pipeline.loader import make_loader
from pipeline.reading.samples import Samples
from preprocess.images.transform import encode_jpeg
from preprocess.manifest import read_manifest


@pytest.fixture(autouse=True)
def passes(request):
    """Line by line, but where it is about compilation."""
    if "compiled_pass" not in request.fixturenames:
        request.getfixturevalue("uncompiled")


@pytest.fixture
def compiled_pass():
    """Asked for by a test that compiles."""


@pytest.fixture
def same_order(monkeypatch):
    """Give the cached loader the order of the other: then position by position all random numbers are the same."""

    def apply(data):
        shards = Samples(data, read_manifest(data), "train").shard_samples
        monkeypatch.setattr(
            pipeline.sampler.Partition,
            "order",
            lambda partition, epoch: pipeline.sampler.draw_epoch(shards, partition.seed, epoch, 0).order,
        )

    return apply


def both(data, batch_size, device="cpu", **options):
    """Batches of the second epoch, cached and decoded, and that their labels agree."""
    found = []
    for kind in ("device", "none"):
        loader = make_loader(data, "train", batch_size, seed=4, cache=kind, device=device, **options)
        loader.epoch = 1
        images, labels = batches(loader)
        assert images.dtype == torch.float32
        found += [images, labels]
    assert torch.equal(found[1], found[3])
    return found[0], found[2]


def write_smooth_shards(folder, side, count):
    """Images with about the detail of photographs: those of `numbered` are far harsher."""
    rng = np.random.default_rng(3)
    sizes = [(side, side + 4 * (number % 3)) for number in range(count)]
    small = [textured(rng, width // 4, height // 4) for width, height in sizes]
    files = [encode_jpeg(image.resize(size), 95) for image, size in zip(small, sizes, strict=True)]
    return write_shards(folder, {"train": [files], "val": [files]}, classes=count, short_side=side)


@pytest.fixture(scope="module")
def smooth_shards(tmp_path_factory):
    """60 images with a short side of 32 pixels."""
    return write_smooth_shards(tmp_path_factory.mktemp("smooth") / "shards", 32, 60)


@pytest.mark.parametrize("side", [256, 64, 32])
def test_pixels_are_within_the_bounds_of_the_decoded_path(tmp_path, side, same_order, device):
    data = write_smooth_shards(tmp_path / "shards", side, 20)
    same_order(data)
    for augmentation in (PLAIN, Augmentation()):
        kept, decoded = both(data, 20, augmentation=augmentation, device=device)
        found = (kept - decoded).abs().flatten(1).mean(dim=1)
        assert found.mean() < 2
        assert found.max() < 4


@pytest.mark.parametrize("crop", [32, 28, 27, 1])
@pytest.mark.parametrize(
    "augmentation",
    [
        PLAIN,
        UNLIT,
        Augmentation(flip=False, granularity="chunk"),
        Augmentation(lighting="code-2012"),
        Augmentation(lighting="code-2012", lighting_off_epoch=1),
    ],
)
@pytest.mark.parametrize(("units", "mean"), [("grey", "channel"), ("unit-std", "image"), ("unit", "channel")])
def test_every_switch_does_what_it_does_without_a_cache(smooth_shards, same_order, crop, augmentation, units, mean):
    same_order(smooth_shards)
    kept, decoded = both(smooth_shards, 20, crop=crop, augmentation=augmentation, units=units, mean=mean)
    scale = {"grey": 1.0, "unit": 255.0, "unit-std": read_manifest(smooth_shards).color_stats.covariance[0][0] ** 0.5}[
        units
    ]
    assert kept.shape == decoded.shape
    difference = (kept - decoded).abs().flatten(1).mean(dim=1) * scale
    assert difference.max() < (4 if crop > 1 else 16)


def test_evaluation_is_on_the_very_pixels_that_are_decoded_without(numbered, device):
    for options in ({"crop": CROP}, {"crop": 25, "crops": 10}, {"crop": 27, "crops": 10, "mean": "image"}):
        for units in ("grey", "unit-std"):
            common = {"device": device, "units": units, **options}
            decoded, labels = batches(make_loader(numbered, "val", 20, **common))
            loader = make_loader(numbered, "val", 20, cache="device", **common)
            for _ in range(2):
                kept, kept_labels = batches(loader)
                assert torch.equal(kept_labels, labels)
                assert kept.shape == decoded.shape
                assert (kept - decoded).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("split", ["train", "val"])
def test_host_memory_feeds_a_gpu_with_the_bits_of_its_own(numbered, split):
    first = make_loader(numbered, split, 20, device="cuda", cache="device")
    second = make_loader(numbered, split, 20, device="cuda", cache="host")
    for _ in range(2):
        for a, b in zip(first, second, strict=True):
            assert a[0].is_cuda
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("side", [16, 15, 2, 1])
def test_planes_are_those_of_the_formula_and_a_grey_image_comes_back_exactly(side):
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    squares = YCbCr420(side)
    rows = squares.pack(torch.from_numpy(images)).numpy()
    assert rows.shape == (3, squares.bytes)
    padded = np.pad(images, ((0, 0), (0, side % 2), (0, side % 2), (0, 0)), mode="edge").astype(np.float64)
    luma = images @ [0.299, 0.587, 0.114]
    fours = padded.reshape(3, len(padded[0]) // 2, 2, -1, 2, 3).mean(axis=(2, 4))
    chroma = [fours @ weights + 128 for weights in ([-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312])]
    expected = np.concatenate([plane.reshape(3, -1) for plane in (luma, *chroma)], axis=1)
    assert abs(rows - expected).max() <= 0.51
    grey = torch.arange(side * side).view(1, side, side, 1).expand(-1, -1, -1, 3).to(torch.uint8) % 251
    assert torch.equal(view_of(squares, grey)[0].to(torch.uint8), grey[0].permute(2, 0, 1))
    coloured = torch.from_numpy(images)
    assert torch.equal(view_of(Rgb888(side), coloured), coloured.permute(0, 3, 1, 2).float())


def test_a_compiled_pass_gives_the_bits_of_an_eager_one_and_so_does_one_that_cannot_be_compiled(
    smooth_shards, compiled_pass, monkeypatch, caplog
):
    def epoch(split):
        common = {"cache": "host", "units": "unit-std", "mean": "image"}
        return [images.clone() for images, _ in make_loader(smooth_shards, split, 25, **common)]

    def warnings():
        records = (record for record in caplog.records if record.name == "pipeline.cache.batch_kernel")
        return [record.getMessage() for record in records]

    compiled = {split: epoch(split) for split in ("train", "val")}
    assert not warnings()
    with torch.compiler.set_stance("force_eager"):
        eager = {split: epoch(split) for split in ("train", "val")}

    def fails(*_, **__):
        def run(*_):
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    without = {split: epoch(split) for split in ("train", "val")}
    for split, batches_of in compiled.items():
        assert all(torch.equal(a, b) for a, b in zip(batches_of, eager[split], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(batches_of, without[split], strict=True))
    assert warnings() == ["the pass over the cache is not compiled, so it is slower: no C++ compiler"] * 2


@pytest.mark.parametrize("side", [9, 8])
def test_windows_are_those_of_libjpegs_triangle_filter_wherever_they_begin_mirrored_or_not(side):
    rng = np.random.default_rng(side)
    squares = YCbCr420(side)
    rows = rng.integers(0, 256, (5, squares.bytes), dtype=np.uint8)
    luma, chroma = np.split(rows.astype(np.float64), [side**2], axis=1)
    planes = np.pad(
        chroma.reshape(5, 2, squares.chroma_side, squares.chroma_side), ((0, 0), (0, 0), (1, 1), (1, 1)), "edge"
    )
    at = np.arange(side)
    weights = np.zeros((side, squares.chroma_side + 2))
    weights[at, at // 2 + 1] = 0.75
    weights[at, at // 2 + 1 + np.where(at % 2, 1, -1)] = 0.25
    blue, red = np.moveaxis(weights @ planes @ weights.T - 128, 1, 0)
    luma = luma.reshape(5, side, side)
    colours = luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue
    expected = np.stack(colours, axis=1).clip(0, 255)
    for crop in (1, 4, 5, side):
        starts = np.arange(side - crop + 1)
        views = np.stack(np.meshgrid(np.arange(5), starts, starts, [0, 1], indexing="ij"), axis=-1).reshape(-1, 4)
        numbers, corners, flips = views[:, 0], views[:, 1:3].astype(np.int32), views[:, 3].astype(np.int32)
        fused = CropFlipNormalize(squares, len(views), crop, None, torch.device("cpu"))
        found = fused(
            torch.from_numpy(rows),
            numbers,
            AugmentParams(corners, np.full_like(corners, crop), flips, *untreated(len(views))),
        )
        for image, (number, y, x, flip) in zip(found, views, strict=True):
            window = expected[number, :, y : y + crop, x : x + crop]
            assert abs(image.numpy() - (window[..., ::-1] if flip else window)).max() < 0.1


def test_views_made_in_groups_are_those_made_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    squares = YCbCr420(16)
    rows = torch.from_numpy(rng.integers(0, 256, (50, squares.bytes), dtype=np.uint8))

    def views(count):
        corners, flips = np.zeros((count, 2), np.int32), np.arange(count, dtype=np.int32) % 2
        given = AugmentParams(corners, np.full_like(corners, 12), flips, *untreated(count))
        return CropFlipNormalize(squares, 50, 12, None, torch.device("cpu"))(rows, np.arange(count), given).clone()

    at_once = views(50)
    assert len(at_once) == 50
    for pixels in (12**2 * 7, 1):
        monkeypatch.setattr("pipeline.cache.batch_kernel.GROUP_PIXELS", pixels)
        for count in (50, 49, 7, 1):
            assert torch.equal(views(count), at_once[:count])


def test_256_pixels_take_98_304_bytes():
    assert YCbCr420(256).bytes == 98_304


def view_of(squares, images):
    """The whole squares of images, in grey levels."""
    side, n = squares.side, len(images)
    fused = CropFlipNormalize(squares, n, side, None, torch.device("cpu"))
    corners, flips = np.zeros((n, 2), np.int32), np.zeros(n, np.int32)
    return fused(
        squares.pack(images), np.arange(n), AugmentParams(corners, np.full_like(corners, side), flips, *untreated(n))
    )


def untreated(n):
    """Return the mean to subtract from grey levels, and their divisor."""
    return np.zeros((n, 3), np.float32), np.ones((n, 3), np.float32)
