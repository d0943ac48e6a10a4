"""The ideas of 2012 that a study can switch: the change of the configuration, in words, and the paper's own difference.

The paper is Krizhevsky, Sutskever and Hinton 2012. Where it has numbers, they are of the idea against its absence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from errors import InputError, check_choice
from pipeline.augment import Augmentation
from training.config import Config

NO_NUMBER = "no number in the paper"
_LRN_NUMBERS = ("lrn_alpha", "lrn_k", "lrn_size", "lrn_beta")
_OTHER_TOWERS = {"alexnet": ("alexnet-half", "one tower"), "alexnet-half": ("alexnet", "two towers")}


@dataclass(frozen=True)
class Variant:
    """One row of a study: the base, or the base with one idea switched."""

    name: str
    """`base`, or the name of the toggle."""
    words: str
    """The direction of the switch, such as `without LRN`."""
    config: Config
    crops: int = 1
    """Views of an image in the evaluation: 1 or 10. A variant with 10 is not trained: it has the base's weights."""
    paper: str = ""
    """The paper's own difference, its section, metric and data set."""


Switch = Callable[[Config], tuple[str, Config]]
"""Returns the direction in words, and the switched configuration."""


@dataclass(frozen=True)
class Toggle:
    """An idea that can be switched to its opposite."""

    meaning: str
    paper: str
    switch: Switch
    crops: int = 1


def make_variant(name: str, base: Config) -> Variant:
    """Return the base with the idea `name` switched to its opposite.

    Raises:
        InputError: there is no such toggle, or the base's network cannot be switched so.
    """
    check_choice("--toggle", name, TOGGLES)
    toggle = TOGGLES[name]
    try:
        words, config = toggle.switch(base)
    except InputError as error:
        raise InputError(f"--toggle is {name}: {error}") from error
    return Variant(name, words, config, toggle.crops, toggle.paper)


def _lrn(base: Config) -> tuple[str, Config]:
    if _switch_of(base, "lrn") == "off":
        return "with LRN", _with_network(base, lrn="paper")
    changes: dict[str, Any] = {"lrn": "off", **dict.fromkeys(_LRN_NUMBERS)}
    if _switch_of(base, "spatial_norm"):  # run 148 of the released code, the paper's comparison, has neither
        changes["spatial_norm"] = False
    return "without LRN", _with_network(base, **changes)


def _overlap(base: Config) -> tuple[str, Config]:
    if _switch_of(base, "pooling") == "overlapping":
        return "disjoint pooling", _with_network(base, pooling="disjoint")
    return "overlapping pooling", _with_network(base, pooling="overlapping")


def _dropout(base: Config) -> tuple[str, Config]:
    if _switch_of(base, "dropout"):
        return "without dropout", _with_network(base, dropout=0.0)
    return "dropout 0.5", _with_network(base, dropout=0.5)


def _activation(base: Config) -> tuple[str, Config]:
    if _switch_of(base, "activation") == "relu":
        return "tanh", _with_network(base, activation="tanh")
    return "ReLU", _with_network(base, activation="relu")


def _towers(base: Config) -> tuple[str, Config]:
    name = base.network.name
    if name not in _OTHER_TOWERS:
        raise InputError(
            f"network.name is {name}, of which there is no form with another number of towers; "
            f"use a recipe with {' or '.join(_OTHER_TOWERS)}, or leave it out"
        )
    other, words = _OTHER_TOWERS[name]
    return words, _with_network(base, name=other)


def _lighting(base: Config) -> tuple[str, Config]:
    if base.augmentation.lighting == "off":
        return "with lighting", _with_augmentation(base, lighting="paper")
    return "without lighting", _with_augmentation(base, lighting="off", lighting_off_epoch=None)


def _flip(base: Config) -> tuple[str, Config]:
    words = "without flips" if base.augmentation.flip else "with flips"
    return words, _with_augmentation(base, flip=not base.augmentation.flip)


def _crop(base: Config) -> tuple[str, Config]:
    if base.augmentation.crop_position == "centre":
        return "random crops", _with_augmentation(base, crop_position="random")
    # Crops of random size have no centre: the size and its smallest area go back to those of 2012.
    fixed = {"crop_size": "fixed", "smallest_area": Augmentation.smallest_area}
    return "centre crops", _with_augmentation(base, crop_position="centre", **fixed)


def _same(base: Config) -> tuple[str, Config]:
    return "ten crops", base


def _switch_of(base: Config, switch: str) -> Any:
    architecture = base.architecture()
    if not hasattr(architecture, switch):
        raise InputError(f"network.name is {base.network.name}, which has no switch network.{switch}; leave it out")
    return getattr(architecture, switch)


def _with_network(base: Config, **changes: Any) -> Config:
    return replace(base, network=replace(base.network, **changes))


def _with_augmentation(base: Config, **changes: Any) -> Config:
    return replace(base, augmentation=replace(base.augmentation, **changes))


TOGGLES: dict[str, Toggle] = {
    "lrn": Toggle(
        "response normalisation after conv1 and conv2",
        "3.3: top-1 and top-5 error lower by 1.4 % and 1.2 % (ImageNet)",
        _lrn,
    ),
    "overlap": Toggle(
        "pooling windows of 3x3 every 2 pixels, or of 2x2",
        "3.4: top-1 and top-5 error lower by 0.4 % and 0.3 % (ImageNet)",
        _overlap,
    ),
    "dropout": Toggle(
        "dropout in fc6 and fc7",
        f"4.2: {NO_NUMBER}; without it, substantial overfitting",
        _dropout,
    ),
    "lighting": Toggle(
        "colour noise along the principal components",
        "4.1: top-1 error lower by over 1 % (ImageNet)",
        _lighting,
    ),
    "flip": Toggle(
        "half of the training images mirrored",
        f"4.1: {NO_NUMBER}; without crops and flips, substantial overfitting",
        _flip,
    ),
    "crop": Toggle(
        "random crops of the training images, or their centre",
        f"4.1: {NO_NUMBER}; without crops and flips, substantial overfitting",
        _crop,
    ),
    "activation": Toggle(
        "ReLU, or tanh",
        "3.1: 25 % training error six times sooner than with tanh (CIFAR-10, four layers)",
        _activation,
    ),
    "towers": Toggle(
        "two towers, or one with half of the kernels of conv1 to conv4",
        "3.2: top-1 and top-5 error lower by 1.7 % and 1.2 % than of one GPU with half the kernels (ImageNet)",
        _towers,
    ),
    "ten-crop": Toggle(
        "probabilities averaged over ten crops in the evaluation, or of the centre; not trained again",
        "4.1: top-1 and top-5 error 37.5 % and 17.0 %, not 39.0 % and 18.3 % (ILSVRC-2010 test)",
        _same,
        crops=10,
    ),
}
