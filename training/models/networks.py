"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import nn

from errors import InputError, check_choice
from training.models.alexnet import AlexNet
from training.models.architecture import Architecture
from training.models.contract import Links, NetworkArchitecture
from training.models.lenet import LeNet5, LeNetArchitecture

_SINGLE = Architecture(towers=1)
_OWT = Architecture(
    channels=(64, 192, 384, 256, 256),
    towers=1,
    hybrid=True,
    first_padding=2,
    rounding="down",
    map_side=6,
    names="torchvision",
    lrn="off",
    dropout_place="inputs",
    init="torch",
)

NETWORKS: dict[str, NetworkArchitecture] = {
    # The paper's.
    "alexnet": Architecture(),
    "alexnet-single": _SINGLE,
    # Run 145-half, the network on one GPU that the paper compares with: half the kernels in conv1 to conv4.
    "alexnet-half": Architecture(channels=(48, 128, 192, 192, 256), towers=1),
    # "One weird trick" (Krizhevsky 2014) as torchvision has it.
    "alexnet-owt": _OWT,
    # fc6 to fc8 as convolutions; weights by `training.models.to_fully_convolutional`.
    "alexnet-conv": replace(_SINGLE, fully_convolutional=True, map_side=6),
    "alexnet-owt-conv": replace(_OWT, fully_convolutional=True, hybrid=False),
    # A TensorFlow listing without a fully connected part: SAME convolutions, VALID pooling. Its strides take 64 pixels
    # and more.
    "alexnet-tf": Architecture(
        channels=(64, 192, 384, 256, 256),
        hidden=(),
        towers=1,
        first_padding="same",
        rounding="down",
        order1="act-pool-lrn",
        order2="act-pool-lrn",
        dropout=0.0,
        init="truncated",
    ),
    # A PaddlePaddle listing for CIFAR-10. `img_cmrnorm` has offset 1 and divides its scale by the size; its dropout
    # scales in evaluation.
    "alexnet-paddle": Architecture(
        towers=1,
        first_padding=1,
        image_size=32,
        lrn="code-2012",
        lrn_k=1.0,
        order1="act-pool-lrn",
        order2="act-pool-lrn",
        dropout_form="2012",
        init="he",
    ),
    "alexnet-small": Architecture(
        channels=(48, 96, 128, 128, 128), hidden=(512, 512), first_kernel=5, first_stride=1, image_size=28
    ),
    "lenet5": LeNetArchitecture(),
}

_FAMILIES: dict[type[NetworkArchitecture], Callable[[Any, int, Links], nn.Module]] = {
    Architecture: AlexNet,
    LeNetArchitecture: LeNet5,
}


def build(name: str, num_classes: int, **switches: object) -> nn.Module:
    """Return the network `name` for a single device; see `architecture` for the switches, `make_network` for the rest.

    Raises:
        InputError: an unknown name, a switch that the network cannot have, or too small an image.
    """
    return make_network(architecture(name, **switches), num_classes)


def make_network(architecture: NetworkArchitecture, num_classes: int, links: Links | None = None) -> nn.Module:
    """Return the network of this architecture, its weights drawn from torch's global generator.

    `links` connect this device with those that share the network; None: a single device.

    Raises:
        InputError: too small an image, or widths that cannot be split over the devices.
    """
    return _FAMILIES[type(architecture)](architecture, num_classes, links or Links())


def architecture(name: str, **switches: object) -> NetworkArchitecture:
    """Return the numbers of the network `name` with some of them changed (None: not).

    Raises:
        InputError: an unknown name, or a switch that nothing in this network would read.
    """
    check_choice("network.name", name, NETWORKS)
    given = {switch: value for switch, value in switches.items() if value is not None}
    own = {field.name for field in fields(NETWORKS[name])}
    for switch, value in given.items():
        if switch not in own:
            raise InputError(f"network.{switch} is {value!r}, but {name} has no such switch; leave it out")
    changed = replace(NETWORKS[name], **given)
    if isinstance(changed, Architecture):
        _refuse_unread(name, changed, given)
    return changed


def _refuse_unread(name: str, network: Architecture, given: dict[str, object]) -> None:
    unread = [switch for switch in given if switch.startswith("lrn_")] if network.lrn == "off" else []
    why = "network.lrn is off"
    if not unread and not network.hidden:
        unread, why = [switch for switch in ("dropout", "dropout_form") if given.get(switch)], "it has no fc6 and fc7"
    if unread:
        raise InputError(
            f"network.{unread[0]} is {given[unread[0]]!r}, but {name} would not read it: {why}; leave it out"
        )
