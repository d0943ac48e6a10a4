"""The forms that a convolution takes on a GPU, run on the CPU: the same values and gradients as torch's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from training.models.convolution import convolve_by_blocks, convolve_by_groups


def check(form: Callable[[Tensor, nn.Conv2d], Tensor], layer: nn.Conv2d, images: Tensor) -> None:
    layer.double()
    images = images.double().requires_grad_()
    expected, found = layer(images), form(images, layer)
    torch.testing.assert_close(found, expected)
    gradient, wanted = torch.randn_like(expected), [images, *layer.parameters()]
    for one, other in zip(*(torch.autograd.grad(y, wanted, gradient) for y in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [
        (11, 4, 0, 227, 227),
        (11, 4, 2, 224, 231),
        (5, 2, 2, 56, 57),
        (3, 2, 1, 9, 10),
        (4, 4, 0, 9, 10),
        (2, 3, 0, 8, 7),
    ],
)
def test_blocks_of_pixels_as_channels(kernel: int, stride: int, padding: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    check(convolve_by_blocks, nn.Conv2d(3, 4, kernel, stride, padding), torch.randn(2, 3, height, width))


def test_groups_one_by_one() -> None:
    torch.manual_seed(0)
    check(convolve_by_groups, nn.Conv2d(8, 12, 5, padding=2, groups=2), torch.randn(2, 8, 9, 7))
