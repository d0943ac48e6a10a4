import pytest
import torch
from torch import Tensor

from training.models import build
from training.models.lrn import LocalResponseNorm, sum_of_views


def formula(x: Tensor, alpha: float, k: float, size: int, beta: float) -> Tensor:
    """Section 3.3 for one tower, channel by channel."""
    reach = size // 2
    sums = [x[:, max(0, i - reach) : i + reach + 1].pow(2).sum(1) for i in range(x.shape[1])]
    return x / (k + alpha * torch.stack(sums, 1)) ** beta


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize(("k", "size", "beta"), [(2.0, 5, 0.75), (1.0, 3, 0.75), (2.0, 9, 0.5), (0.5, 1, 1.0)])
def test_values_and_gradients_are_the_formula_s(
    k: float, size: int, beta: float, towers: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 12, 6, 5) * 60).to(memory_format=memory_format).requires_grad_()
    gradient = torch.randn_like(x)
    expected = torch.cat([formula(part, 1e-3, k, size, beta) for part in x.chunk(towers, 1)], 1)
    found = LocalResponseNorm(12, towers, alpha=1e-3, k=k, size=size, beta=beta)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (dx,), (dx_expected,) = (torch.autograd.grad(y, x, gradient) for y in (found, expected))
    assert (dx - dx_expected).abs().max() <= 1e-4 * dx_expected.abs().max()


def test_a_network_has_the_response_normalisation_that_its_switches_name() -> None:
    switches = {"lrn": "paper", "lrn_alpha": 1e-3, "lrn_k": 1.5, "lrn_size": 3, "lrn_beta": 0.5}
    network = build("alexnet-single", 10, **switches)
    x = torch.randn(1, 96, 3, 3) * 50
    torch.testing.assert_close(network.norm1(x), formula(x, 1e-3, 1.5, 3, 0.5), rtol=1e-5, atol=1e-5)


def test_it_is_torch_s_with_alpha_times_size() -> None:
    x = torch.randn(2, 96, 5, 5) * 50
    reference = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(LocalResponseNorm(96, 1, alpha=1e-4)(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("towers", "size"), [(1, 5), (2, 5), (2, 1), (3, 9)])
def test_the_window_s_sum_on_a_gpu_is_the_band_s(towers: int, size: int) -> None:
    x = torch.randn(2, 12, 4, 3)
    band = LocalResponseNorm(12, towers, alpha=1.0, size=size).band
    torch.testing.assert_close(sum_of_views(x, towers, size), torch.nn.functional.conv2d(x, band))
