import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from errors import InputError
from training.models import NETWORKS, build

PUBLISHED_SHAPES = {
    "conv1.weight": (96, 3, 11, 11),
    "conv2.weight": (256, 48, 5, 5),
    "conv3.weight": (384, 256, 3, 3),
    "conv4.weight": (384, 192, 3, 3),
    "conv5.weight": (256, 192, 3, 3),
    "fc6.weight": (4096, 9216),
    "fc7.weight": (4096, 4096),
    "fc8.weight": (1000, 4096),
}


COUNTS = {
    "alexnet": (34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000),
    "alexnet-single": (34_944, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameter_counts_per_layer_are_the_published_ones(name: str) -> None:
    network = build(name, 1000)
    layers = [*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
    counts = (sum(p.numel() for p in network.get_submodule(layer).parameters()) for layer in layers)
    assert tuple(counts) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("alexnet", 1000, 60_965_224),
        ("alexnet-single", 1000, 62_378_344),
        ("alexnet-conv", 1000, 62_378_344),
        ("alexnet-owt", 1000, 61_100_840),
        ("alexnet-half", 1000, 59_798_312),
        ("lenet5", 10, 62_006),
        # Not published: a checkpoint of these would no longer fit.
        ("alexnet-small", 10, 1_177_898),
        ("alexnet-tf", 1000, 11_686_696),
        ("alexnet-paddle", 10, 21_622_154),
    ],
)
def test_parameter_count_is_the_published_one(name: str, classes: int, published: int) -> None:
    assert sum(parameter.numel() for parameter in build(name, classes).parameters()) == published


def test_the_state_dict_has_the_contract_s_names_and_merged_shapes() -> None:
    state = build("alexnet", 1000).state_dict()
    weights = {name: tuple(tensor.shape) for name, tensor in state.items() if name.endswith("weight")}
    assert weights == PUBLISHED_SHAPES
    assert set(state) == {name.replace("weight", kind) for name in PUBLISHED_SHAPES for kind in ("weight", "bias")}


def formula_lrn(x: Tensor) -> Tensor:
    """Section 3.3, spelled out over channels: k = 2, n = 5, alpha = 1e-4, beta = 0.75."""
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        window = x[:, max(0, i - 2) : i + 3]
        out[:, i] = x[:, i] / (2 + 1e-4 * window.pow(2).sum(1)).pow(0.75)
    return out


def towers_forward(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Run section 3.5 with the two towers as separate networks, linked into conv3, fc6, fc7 and fc8."""

    def conv(name: str, x: Tensor, tower: int, **geometry: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"].chunk(2)[tower], state[f"{name}.bias"].chunk(2)[tower], **geometry)

    pooled = []
    for tower in (0, 1):
        x = formula_lrn(F.relu(conv("conv1", F.pad(images, (0, 3, 0, 3)), tower, stride=4)))
        x = formula_lrn(F.relu(conv("conv2", F.max_pool2d(x, 3, 2), tower, padding=2)))
        pooled.append(F.max_pool2d(x, 3, 2))
    both = torch.cat(pooled, 1)
    outputs = []
    for tower in (0, 1):
        x = F.relu(conv("conv3", both, tower, padding=1))
        x = F.relu(conv("conv4", x, tower, padding=1))
        outputs.append(F.max_pool2d(F.relu(conv("conv5", x, tower, padding=1)), 3, 2))
    x = torch.cat(outputs, 1).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    return F.linear(x, state["fc8.weight"], state["fc8.bias"])


def test_the_network_is_the_two_towers_of_section_3_5() -> None:
    torch.manual_seed(0)
    network = build("alexnet", 10, dropout=0.0, init="he")
    # 0-255 centred pixels, as in 2012: only there does the response normalisation do anything.
    images = torch.randn(2, 3, 224, 224) * 60
    torch.testing.assert_close(network(images), towers_forward(network.state_dict(), images), rtol=1e-4, atol=1e-4)


def test_paper_initialisation() -> None:
    torch.manual_seed(0)
    state = build("alexnet", 1000).state_dict()
    ones = {name for name, tensor in state.items() if name.endswith("bias") and (tensor == 1).all()}
    assert ones == {f"{layer}.bias" for layer in ("conv2", "conv4", "conv5", "fc6", "fc7")}
    for name in PUBLISHED_SHAPES:
        assert state[name].std().item() == pytest.approx(0.01, rel=0.03)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(28, 5, 1), (56, 5, 2), (224, 11, 8), (224, 11, 4), (227, 11, 4), (33, 7, 3)]
)
def test_the_small_network_takes_the_image_size_it_was_built_for(size: int, kernel: int, stride: int) -> None:
    network = build("alexnet-small", 7, image_size=size, first_kernel=kernel, first_stride=stride)
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    network, images = build("alexnet-small", 7, init="he"), torch.randn(2, 3, 28, 28)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_what_cannot_be_built_is_refused_with_its_reason() -> None:
    with pytest.raises(InputError, match=r"network.name is 'resnet'; use alexnet, "):
        build("resnet", 10)
    with pytest.raises(InputError, match=r"parallel.model 2 does not divide the 7 classes; use divisors of 1$"):
        NETWORKS["alexnet"].check(7, width=2)
    with pytest.raises(InputError, match=r"parallel.model 2 is more than the 1 tower"):
        NETWORKS["alexnet-single"].check(10, width=2)
