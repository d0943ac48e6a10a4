"""Pixels of the loader against Pillow, torchvision and numpy on the same files."""

import io

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from shard_folders import CROP, SHORT_SIDE, cut, texture_jpegs
from torchvision.transforms.v2.functional import center_crop, ten_crop

from pipeline.augment import Augmentation
from pipeline.images import load_images
from pipeline.loader import make_loader
from pipeline.sampler import draw_epoch
from preprocess.manifest import read_manifest

SLACK = SHORT_SIDE - CROP
PLAIN = Augmentation(crop_position="centre", flip=False, lighting="off")


def decoded(loader, index):
    """The stored file as Pillow sees it: uint8 3,H,W."""
    image = Image.open(io.BytesIO(loader.example(index).jpeg))
    assert image.mode == "RGB"
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def batches(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images).cpu(), torch.cat(labels).cpu()


def grey_levels(images, manifest):
    """Undo the subtraction of the mean."""
    return images + torch.tensor(manifest.color_stats.mean, dtype=torch.float32)[:, None, None]


def mean_difference(images, reference):
    return (images - reference.float()).abs().flatten(1).mean(dim=1).max().item()


@pytest.fixture(scope="module")
def statistics(numbered):
    return read_manifest(numbered)


def test_val_is_the_centre_crop_of_torchvision(tiny_shards, device):
    loader = make_loader(tiny_shards, "val", 16, device=device)
    images, _ = batches(loader)
    assert images.dtype == torch.float32
    assert images.shape == (42, 3, 56, 56)
    reference = torch.stack([center_crop(decoded(loader, index), [56, 56]) for index in range(42)])
    assert mean_difference(grey_levels(images, read_manifest(tiny_shards)), reference) <= 1


@pytest.mark.parametrize("crop", [SHORT_SIDE, CROP, 27, 25, 1])
def test_centre_and_ten_crops_are_those_of_the_central_square(numbered, statistics, device, crop):
    centre, _ = batches(make_loader(numbered, "val", 20, crop=crop, device=device))
    loader = make_loader(numbered, "val", 20, crop=crop, crops=10, device=device)
    ten, _ = batches(loader)
    squares = [center_crop(decoded(loader, index), [SHORT_SIDE, SHORT_SIDE]) for index in range(53)]
    assert centre.shape == (53, 3, crop, crop)
    assert ten.shape == (53, 10, 3, crop, crop)
    reference = torch.stack([center_crop(square, [crop, crop]) for square in squares])
    assert mean_difference(grey_levels(centre, statistics), reference) <= 1
    reference = torch.stack([torch.stack(ten_crop(square, [crop, crop])) for square in squares])
    assert mean_difference(grey_levels(ten, statistics), reference) <= 1


def located(image, square):
    """Where in the square a crop was taken: (y, x, mirrored), with the difference in grey levels."""
    image, square = image.numpy(), square.numpy()
    windows = sliding_window_view(square, image.shape[1:], axis=(1, 2)).transpose(1, 2, 0, 3, 4)
    both = np.stack([windows, windows[..., ::-1]], axis=2).astype(np.float32)
    difference = abs(both - image).mean(axis=(3, 4, 5))
    where = np.unravel_index(difference.argmin(), difference.shape)
    return tuple(map(int, where)), difference.min()


def test_train_crops_and_flips_are_the_plan_s_and_reach_every_offset(numbered, statistics, device):
    loader = make_loader(numbered, "train", 103, seed=8, device=device, augmentation=Augmentation(lighting="off"))
    squares = [center_crop(decoded(loader, index), [SHORT_SIDE, SHORT_SIDE]) for index in range(103)]
    found = []
    for epoch in range(5):
        images, labels = batches(loader)
        plan = draw_epoch([30, 1, 25, 40, 7], 8, epoch, SLACK)
        assert labels.tolist() == plan.order.tolist()
        for place, (image, label) in enumerate(zip(grey_levels(images, statistics), labels, strict=True)):
            where, difference = located(image, squares[label])
            assert difference <= 1
            assert where == (*plan.offsets[place], plan.flips[place])
            found.append(where)
    ys, xs, mirrored = np.array(found).T
    # 515 draws of 5 offsets: 103 each, standard deviation 9; of 2 flips: 257, standard deviation 11.
    for offsets in (ys, xs):
        counts = np.bincount(offsets, minlength=SLACK + 1)
        assert len(counts) == SLACK + 1
        assert (abs(counts - 103) < 45).all()
    assert abs(mirrored.sum() - 257) < 55
    assert abs(np.corrcoef(np.array(found).T) - np.eye(3)).max() < 0.2


def test_each_augmentation_can_be_switched_off_alone(numbered, statistics):
    def first(**switches):
        loader = make_loader(numbered, "train", 40, seed=2, augmentation=Augmentation(**switches))
        return next(iter(loader))[0]

    loader = make_loader(numbered, "train", 40, seed=2, augmentation=PLAIN)
    images, labels = next(iter(loader))
    reference = torch.stack([center_crop(decoded(loader, int(label)), [CROP, CROP]) for label in labels])
    assert mean_difference(grey_levels(images, statistics), reference) <= 1
    mirrored = first(crop_position="centre", lighting="off")
    flips = torch.from_numpy(draw_epoch([30, 1, 25, 40, 7], 2, 0, SLACK).flips[:40]).bool()
    assert torch.equal(torch.where(flips[:, None, None, None], images.flip(-1), images), mirrored)
    shift = first(crop_position="centre", flip=False) - images
    assert 0.1 < shift.abs().max() < 60
    assert shift.flatten(2).std(dim=2).max() < 1e-4


@pytest.mark.parametrize("lighting", ["paper", "code-2012"])
def test_lighting_is_the_formula_applied_to_the_plan_s_numbers(numbered, statistics, device, lighting):
    augmentation = Augmentation(lighting=lighting)
    lit, labels = batches(make_loader(numbered, "train", 50, seed=6, device=device, augmentation=augmentation))
    augmentation = Augmentation(lighting="off")
    unlit, _ = batches(make_loader(numbered, "train", 50, seed=6, device=device, augmentation=augmentation))
    normals = draw_epoch([30, 1, 25, 40, 7], 6, 0, SLACK).normals[: len(labels)].astype(np.float64)
    eigenvalues, vectors = np.array(statistics.color_stats.eigenvalues), np.array(statistics.color_stats.eigenvectors)
    if lighting == "paper":
        delta = np.stack([vectors @ (0.1 * z * eigenvalues / 255) for z in normals])
        expected = unlit + torch.from_numpy(delta)[:, :, None, None]
    else:
        delta = np.stack([0.1 * vectors @ (z * np.sqrt(eigenvalues)) for z in normals])
        expected = (unlit + torch.from_numpy(delta)[:, :, None, None]) / 1.1
    assert (lit - expected).abs().max() < 1e-3
    assert abs(normals.mean()) < 0.25
    assert 0.8 < normals.std() < 1.2


def test_lighting_noise_has_the_covariance_of_the_training_colours(statistics):
    from pipeline.augment import lighting_shift

    normals = draw_epoch([100_000], seed=0, epoch=0, slack=0).normals
    shift = lighting_shift(normals, statistics.color_stats, "code-2012")
    covariance = 0.01 * np.array(statistics.color_stats.covariance)
    assert abs(np.cov(shift.T) - covariance).max() < 0.02 * covariance.max()


def test_unit_std_divides_by_the_standard_deviation_of_the_training_colours(numbered, statistics, device):
    grey, _ = batches(make_loader(numbered, "val", 30, device=device))
    unit, _ = batches(make_loader(numbered, "val", 30, device=device, units="unit-std"))
    std = torch.tensor(np.sqrt(np.diagonal(statistics.color_stats.covariance)), dtype=torch.float32)
    assert torch.allclose(unit * std[:, None, None], grey, atol=1e-3)


def test_other_statistics_replace_the_manifest_s(numbered, make_shards):
    other = read_manifest(numbered).color_stats
    data = make_shards({"train": [texture_jpegs(5, 2)], "val": cut(texture_jpegs(6, 4), [4])}, classes=4)
    shifted = read_manifest(data).color_stats
    assert shifted == other  # the helper takes them from one and the same picture
    half = type(other)(**{**vars(other), "mean": tuple(value / 2 for value in other.mean)})
    whole, _ = batches(make_loader(data, "val", 4))
    less, _ = batches(make_loader(data, "val", 4, color_stats=half))
    assert torch.allclose(less - whole, torch.tensor(other.mean)[:, None, None].float() / 2, atol=1e-3)


def test_images_for_prediction_go_the_way_of_evaluation(numbered, statistics, device):
    for crops in (1, 10):
        loader = make_loader(numbered, "val", 53, crops=crops, units="unit-std", device=device)
        images, _ = batches(loader)
        files = [loader.example(index).jpeg for index in range(53)] * 2
        options = {"crops": crops, "units": "unit-std", "device": device}
        predicted = load_images(files, short_side=SHORT_SIDE, color_stats=statistics.color_stats, **options)
        assert predicted.device.type == device
        assert torch.equal(predicted.cpu(), torch.cat([images, images]))


def test_batches_are_on_the_device_and_stay_what_they_were(numbered, device):
    loader = make_loader(numbered, "train", 10, device=device)
    kept, copies = [], []
    for images, labels in loader:
        assert images.device.type == labels.device.type == device
        assert labels.dtype == torch.int64
        kept.append((images, labels))
        copies.append((images.clone(), labels.clone()))
    assert len(kept) == 10
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(kept, copies, strict=True))


def test_number_of_threads_changes_nothing(numbered):
    one = make_loader(numbered, "train", 34, num_threads=1)
    many = make_loader(numbered, "train", 34, num_threads=5)
    for _ in range(2):
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, many, strict=True))


def test_training_does_what_the_paper_did_unless_told_otherwise(numbered):
    default, named = (
        batches(make_loader(numbered, "train", 20, seed=1, **options))[0]
        for options in ({}, {"augmentation": Augmentation()})
    )
    assert torch.equal(default, named)
    paper = {"crop_position": "random", "crop_region": "central-square", "crop_size": "fixed", "flip": True}
    assert Augmentation() == Augmentation(**paper, granularity="image", lighting="paper", lighting_off_epoch=None)
