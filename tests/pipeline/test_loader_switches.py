"""The augmentations of 2012 and of later: each switch does what it says, to the pixels of the loader's batches."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from shard_folders import CROP, SHORT_SIDE
from test_loader_pixels import PLAIN, batches, decoded, grey_levels, located, mean_difference, statistics  # noqa: F401
from torchvision.models import AlexNet_Weights
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import center_crop, resized_crop

from pipeline.augment import Augmentation
from pipeline.crops import resized_shapes
from pipeline.images import load_images
from pipeline.loader import make_loader
from pipeline.sampler import ATTEMPTS, draw_attempts, draw_epoch

SHARDS = [30, 1, 25, 40, 7]
SLACK = SHORT_SIDE - CROP
UNLIT = Augmentation(lighting="off")


def first_epoch(data, augmentation, batch_size=103, **options):
    return batches(make_loader(data, "train", batch_size, seed=4, augmentation=augmentation, **options))


def places(images, labels, statistics, loader):  # noqa: F811
    """Where in the central square each image was cut, and whether it was mirrored."""
    squares = (center_crop(decoded(loader, int(label)), [SHORT_SIDE, SHORT_SIDE]) for label in labels)
    pairs = zip(grey_levels(images, statistics), squares, strict=True)
    found = [located(image, square) for image, square in pairs]
    assert max(difference for _, difference in found) <= 1
    return [where for where, _ in found]


def test_a_chunk_of_32_images_of_the_global_batch_shares_crop_and_flip(numbered, statistics):  # noqa: F811
    augmentation = Augmentation(lighting="off", granularity="chunk")
    ranks = [
        make_loader(numbered, "train", 25, seed=4, rank=r, world_size=2, augmentation=augmentation) for r in (0, 1)
    ]
    parts = [list(loader) for loader in ranks]
    found = []
    for batch in zip(*parts, strict=True):
        where = [place for images, labels in batch for place in places(images, labels, statistics, ranks[0])]
        assert len(set(where[:32])) == len(set(where[32:])) == 1
        found += [where[0], where[32]]
    assert len(set(found)) > 2


def test_crops_of_the_whole_image_reach_both_ends_of_every_side(numbered, statistics):  # noqa: F811
    loader = make_loader(numbered, "train", 103, augmentation=Augmentation(lighting="off", crop_region="whole-image"))
    positions = []
    for _ in range(4):
        images, labels = batches(loader)
        for image, label in zip(grey_levels(images, statistics), labels, strict=True):
            file = decoded(loader, int(label))
            (y, x, _), difference = located(image, file)
            assert difference <= 1
            positions.append((y, x, file.shape[1] - CROP, file.shape[2] - CROP))
    ys, xs, last_ys, last_xs = np.array(positions).T
    outside = (abs(ys - last_ys / 2) > SLACK / 2 + 1) | (abs(xs - last_xs / 2) > SLACK / 2 + 1)
    assert outside.mean() > 0.1  # what no crop of the central square would be
    for offsets, last in ((ys, last_ys), (xs, last_xs)):
        assert (offsets == 0).any()
        assert (offsets == last).any()


def test_a_chunk_shares_windows_and_flips_but_not_the_noise():
    plan = draw_epoch([70], 0, 0, SLACK)
    shared = plan.shared_by_chunks(64, 32)
    for kind in ("offsets", "flips", "crop_fractions"):
        values = getattr(shared, kind)
        assert all(len(np.unique(values[part], axis=0)) == 1 for part in (slice(0, 32), slice(32, 64), slice(64, 70)))
    assert np.array_equal(shared.normals, plan.normals)


@pytest.mark.parametrize(("region", "smallest_area"), [("whole-image", 0.08), ("central-square", 0.5)])
def test_resized_crops_are_torchvision_s_of_the_same_window(numbered, statistics, device, region, smallest_area):  # noqa: F811
    augmentation = Augmentation(
        lighting="off", flip=False, crop_size="random", crop_region=region, smallest_area=smallest_area
    )
    loader = make_loader(numbered, "train", 25, seed=4, device=device, augmentation=augmentation)
    images, labels = batches(loader)
    plan, attempts = draw_epoch(SHARDS, 4, 0, SLACK), draw_attempts(4, 0, slice(0, 103))
    for place, (image, label) in enumerate(zip(grey_levels(images, statistics), labels, strict=True)):
        file = decoded(loader, int(label))
        if region == "central-square":
            file = center_crop(file, [SHORT_SIDE, SHORT_SIDE])
        extent = np.array([file.shape[1:]])
        shape = resized_shapes(extent, attempts[place : place + 1], smallest_area)[0]
        corner = np.floor(plan.crop_fractions[place] * (extent[0] - shape + 1)).astype(int)
        reference = resized_crop(file.float(), *corner.tolist(), *shape.tolist(), [CROP, CROP], antialias=True)
        assert mean_difference(image[None], reference[None]) <= 1.5


def test_shapes_of_resized_crops_are_distributed_as_torchvision_s():
    extents = np.tile([[256, 341]], (4000, 1))
    ours = resized_shapes(extents, np.random.default_rng(0).random((4000, ATTEMPTS, 2)), 0.08)
    torch.manual_seed(0)
    image = torch.empty(3, 256, 341)
    transform = RandomResizedCrop(224)
    theirs = np.array([[t["height"], t["width"]] for t in (transform.make_params([image]) for _ in range(4000))])
    for measure in (lambda s: s[:, 0] * s[:, 1] / (256 * 341), lambda s: s[:, 1] / s[:, 0]):
        quantiles = [np.quantile(measure(shapes.astype(float)), [0.1, 0.3, 0.5, 0.7, 0.9]) for shapes in (ours, theirs)]
        assert abs(quantiles[0] / quantiles[1] - 1).max() < 0.08
    narrow = resized_shapes(np.array([[10, 1000], [1000, 10]]), np.full((2, ATTEMPTS, 2), 0.99), 0.08)
    assert narrow.tolist() == [[10, 13], [13, 10]]


def test_the_numbers_of_a_batch_are_those_of_its_positions():
    whole = draw_attempts(3, 1, slice(0, 50))
    assert np.array_equal(draw_attempts(3, 1, slice(17, 40)), whole[17:40])
    assert len(np.unique(whole)) == whole.size


def test_lighting_ends_at_its_epoch_and_changes_nothing_else(numbered):
    def epochs(**switches):
        loader = make_loader(numbered, "train", 50, seed=6, augmentation=Augmentation(**switches))
        return [batches(loader)[0] for _ in range(3)]

    for lighting in ("paper", "code-2012"):
        ending, lit, unlit = (
            epochs(lighting=lighting, lighting_off_epoch=1),
            epochs(lighting=lighting),
            epochs(lighting="off"),
        )
        assert torch.equal(ending[0], lit[0])
        assert not torch.equal(ending[0], unlit[0])
        assert all(torch.equal(ending[epoch], unlit[epoch]) for epoch in (1, 2))


@pytest.mark.parametrize("units", ["grey", "unit", "unit-std"])
def test_the_mean_image_is_subtracted_unmoved_and_unflipped(numbered, statistics, units, device):  # noqa: F811
    mean_image = np.load(numbered / "mean.npy")
    mean = torch.from_numpy(mean_image[2:30, 2:30].transpose(2, 0, 1).copy())
    channels = torch.tensor(statistics.color_stats.mean, dtype=torch.float32)[:, None, None]
    scale = {
        "grey": 1,
        "unit": 255,
        "unit-std": torch.tensor(np.diag(statistics.color_stats.covariance)).sqrt()[:, None, None],
    }
    for split, options in (
        ("train", {"augmentation": Augmentation()}),
        ("train", {"augmentation": Augmentation(lighting="code-2012")}),
        ("val", {}),
        ("val", {"crops": 10}),
    ):
        common = {"device": device, "units": units, **options}
        by_channel, _ = batches(make_loader(numbered, split, 20, **common))
        by_image, _ = batches(make_loader(numbered, split, 20, mean="image", **common))
        lit = options.get("augmentation", PLAIN).lighting == "code-2012"
        expected = by_channel + (channels - mean) / scale[units] / (1.1 if lit else 1)
        assert (by_image - expected).abs().max() < 1e-3
    other, _ = batches(make_loader(numbered, "val", 20, mean="image", mean_image=mean_image + 10, units=units))
    own, _ = batches(make_loader(numbered, "val", 20, mean="image", units=units))
    assert torch.allclose(own - other, (10 / scale[units] * torch.ones(3, 1, 1)).float(), atol=1e-3)
    files = [make_loader(numbered, "val", 20).example(index).jpeg for index in range(53)]
    options = {
        "short_side": SHORT_SIDE,
        "color_stats": statistics.color_stats,
        "units": units,
        "mean_image": mean_image,
    }
    assert torch.equal(load_images(files, **options), own)


@pytest.mark.parametrize("cache", ["none", "host"])
def test_torchvision_s_units_are_those_of_its_published_weights(numbered, statistics, cache):  # noqa: F811
    channels = torch.tensor(statistics.color_stats.mean, dtype=torch.float32)[:, None, None]
    normalise = AlexNet_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalise.mean, normalise.std))
    for split, augmentation in (("train", PLAIN), ("val", None)):
        common = {"cache": cache, "augmentation": augmentation}
        grey, found = (
            batches(make_loader(numbered, split, 20, units=units, **common))[0] for units in ("grey", "torchvision")
        )
        assert torch.allclose(found, ((grey + channels) / 255 - mean) / std, atol=1e-5)


def test_unit_divides_by_255(numbered):
    grey, unit = (batches(make_loader(numbered, "val", 20, units=units))[0] for units in ("grey", "unit"))
    assert torch.allclose(unit * 255, grey, atol=1e-3)


def lighting_of(data, epochs, lighting):
    """The colour shifts of many images: the difference of a lit and an unlit loader's batches, n,3."""
    loaders = [
        make_loader(data, "train", 103, crop=1, augmentation=Augmentation(lighting=mode, flip=False))
        for mode in (lighting, "off")
    ]
    divisor = 1.1 if lighting == "code-2012" else 1.0
    shifts = []
    for _ in range(epochs):
        (lit, _), (unlit, _) = (next(iter(loader)) for loader in loaders)
        shifts.append((lit.double() * divisor - unlit.double())[:, :, 0, 0])
    return torch.cat(shifts).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("lighting", ["paper", "code-2012"])
def test_100_000_shifts_of_the_loader_s_batches_have_the_covariance_of_the_formula(numbered, statistics, lighting):  # noqa: F811
    shifts = lighting_of(numbered, 971, lighting)
    assert len(shifts) > 100_000
    values, vectors = np.array(statistics.color_stats.eigenvalues), np.array(statistics.color_stats.eigenvectors)
    variances = (0.1 * values / 255) ** 2 if lighting == "paper" else 0.01 * values
    expected = vectors @ np.diag(variances) @ vectors.T
    assert abs(np.cov(shifts.T) - expected).max() < 0.02 * abs(expected).max()
    principal = np.diag(vectors.T @ np.cov(shifts.T) @ vectors)
    assert abs(principal / variances - 1).max() < 0.05
    assert abs(shifts.mean(axis=0)).max() < 4 * np.sqrt(variances.max() / len(shifts))


def test_crop_offsets_and_flips_of_the_loader_s_batches_are_uniform(numbered, statistics):  # noqa: F811
    loader = make_loader(numbered, "train", 103, seed=1, augmentation=UNLIT)
    found = []
    for _ in range(12):
        images, labels = next(iter(loader))
        found += places(images, labels, statistics, loader)
    ys, xs, mirrored = np.array(found).T
    joint = np.bincount((ys * (SLACK + 1) + xs) * 2 + mirrored, minlength=2 * (SLACK + 1) ** 2)
    assert len(joint) == 50
    for counts in (joint, np.bincount(ys), np.bincount(xs), np.bincount(mirrored)):
        assert chisquare(counts).pvalue > 0.001
