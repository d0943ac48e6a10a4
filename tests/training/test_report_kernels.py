import numpy as np
import pytest

from training.report.kernels import GAP, LEAST_SMOOTHNESS, colourfulness, kernel_grids, kernel_levels, smoothness


def test_zero_is_grey_and_one_scale_holds_for_all_kernels():
    weights = np.zeros((3, 3, 2, 2), np.float32)
    weights[0, 0, 0, 0], weights[1, 1, 1, 1], weights[1, 2, 0, 1] = 0.5, -0.25, -0.5
    levels = kernel_levels(weights)
    assert (levels[2] == 128).all()
    assert levels[0, :, 0, 0].tolist() == [255, 128, 128]
    assert levels[1, :, 1, 1].tolist() == [128, 64, 128]
    assert levels[1, 2, 0, 1] == 0
    assert (kernel_levels(np.zeros((2, 3, 5, 5))) == 128).all()


def test_grey_kernels_are_drawn_and_odd_ones_refused():
    assert kernel_levels(np.ones((6, 1, 5, 5))).shape == (6, 3, 5, 5)
    with pytest.raises(ValueError, match="conv1 kernels"):
        kernel_levels(np.ones((6, 4, 5, 5)))
    with pytest.raises(ValueError, match="7 kernels do not divide into 2 towers"):
        kernel_grids(np.ones((7, 3, 5, 5)), 2)


def test_a_weight_that_is_not_finite_is_magenta():
    weights = np.full((2, 3, 2, 2), 0.1)
    weights[1, 2, 0, 0] = np.nan
    levels = kernel_levels(weights)
    assert levels[1, :, 0, 0].tolist() == [255, 0, 255]
    assert (levels[0] == 255).all()


def gratings(count=32, size=11):
    """Return grey gratings of periods of 4 to 8 pixels in all directions, under a Gaussian window."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size // 2
    angle, period, phase = rng.uniform(0, np.pi, count), rng.uniform(4, 8, count), rng.uniform(0, 2 * np.pi, count)
    along = np.multiply.outer(np.cos(angle), x) + np.multiply.outer(np.sin(angle), y)
    waves = np.cos(2 * np.pi * along / period[:, None, None] + phase[:, None, None])
    return np.repeat((waves * np.exp(-(x**2 + y**2) / 18))[:, None], 3, axis=1)


def test_random_kernels_are_told_from_learned_ones():
    for size in (3, 5, 11):
        noise = np.random.default_rng(0).normal(size=(96, 3, size, size))
        assert abs(smoothness(noise)) < LEAST_SMOOTHNESS / 2
    assert smoothness(gratings()) > 1.5 * LEAST_SMOOTHNESS
    assert smoothness(np.full((2, 3, 5, 5), np.nan)) == smoothness(np.zeros((2, 3, 5, 5))) == 0.0


def test_colour_is_what_differs_between_the_channels():
    grey, blue_yellow = np.ones((1, 3, 5, 5)), np.ones((1, 3, 5, 5)) * np.array([1.0, 1.0, -2.0])[:, None, None]
    mixed = grey + blue_yellow
    assert colourfulness(np.concatenate([grey, blue_yellow, mixed])) == pytest.approx([0.0, 1.0, 6.0 / 9.0])
    assert colourfulness(np.zeros((1, 1, 5, 5))).tolist() == [0.0]


def test_each_tower_s_kernels_are_sorted_by_colour():
    """Kernels of one value for each channel: the stronger the red among them, the more colour."""
    red = np.array([0.9, 0.0, 0.3, 0.6, 0.1, 0.7])
    weights = np.ones((6, 3, 11, 11)) * np.stack([1 + red, 1 - red / 2, 1 - red / 2], axis=1)[..., None, None]
    levels = kernel_levels(weights)[:, 0, 0, 0]
    for (_, grid), order in zip(kernel_grids(weights, 2), ([1, 2, 0], [4, 3, 5]), strict=True):
        shown = [np.asarray(grid)[0, i * (66 + GAP), 0] for i in range(3)]
        assert shown == levels[order].tolist()
    titles = [title for title, _ in kernel_grids(weights, 2)]
    assert titles[0].startswith("Tower 1: 3 kernels, ")
    assert titles[0].removesuffix(" colour") != titles[1].replace("Tower 2", "Tower 1").removesuffix(" colour")
