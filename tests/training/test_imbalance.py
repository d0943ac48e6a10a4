"""Classes of unequal size: the weighted loss, and trainings with balanced sampling or class weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from webdataset import WebDataset

from errors import InputError
from preprocess.manifest import read_manifest
from training.config import Config
from training.loop.precision import autocast
from training.loop.state import build_state
from training.loop.step import IGNORED, balanced_class_weights, mean_loss, train_step
from training.loop.train import train_epoch
from training.parallel.layout import Layout
from training.recipes import RECIPES
from training.run import parse

CPU = Layout(torch.device("cpu"))
WEIGHTS = torch.tensor([0.4, 1.0, 2.5])


@pytest.fixture
def config(tiny_shards: Path) -> Config:
    base = RECIPES["tiny-imagenet"]()
    return dataclasses.replace(base, data=str(tiny_shards), epochs=2, batch_size=16, precision="float32")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # The parts of a batch have different classes: the sums of their weights differ.
    return torch.randn(12, 3, 2, 2, generator=generator), torch.tensor([0] * 7 + [2, 2, 1, 2, IGNORED])


def test_the_loss_is_the_weighted_sum_over_the_number_of_images() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, labels = batch()
    losses = F.cross_entropy(network(images[:11]), labels[:11], reduction="none")
    expected = (WEIGHTS[labels[:11]] * losses).sum() / 12
    torch.testing.assert_close(mean_loss(network, images, labels, 0.0, WEIGHTS), expected)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_gradient_of_a_batch_is_the_mean_of_its_parts_gradients(ranks: int) -> None:
    """With torch's own mean, over the sum of the weights, it would not be."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, labels = batch()

    def gradient(images: torch.Tensor, labels: torch.Tensor, parts: int) -> torch.Tensor:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        precision = autocast("float32", torch.device("cpu"))
        train_step(network, optimizer, images, labels, precision, 0.1, parts, class_weights=WEIGHTS)
        return network[1].weight.grad.clone()

    whole = gradient(images, labels, 1)
    shares = [gradient(*share, 1) for share in zip(images.chunk(ranks), labels.chunk(ranks), strict=True)]
    torch.testing.assert_close(torch.stack(shares).mean(0), whole)
    torch.testing.assert_close(gradient(images, labels, ranks), whole)


def test_balanced_weights_are_scikit_learn_s() -> None:
    counts = np.array([70, 20, 0, 1, 9])
    present = np.flatnonzero(counts)
    expected = np.zeros(5)
    expected[present] = compute_class_weight("balanced", classes=present, y=np.repeat(np.arange(5), counts))
    weights = balanced_class_weights(counts)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert (weights.numpy() * counts).sum() / counts.sum() == pytest.approx(1)


def test_a_training_takes_the_sampling_and_the_weights_of_its_train_split(config: Config, tiny_shards: Path) -> None:
    urls = [str(tiny_shards / shard.tar) for shard in read_manifest(tiny_shards).split("train").shards]
    labels = [label for (label,) in WebDataset(urls, shardshuffle=False).decode().to_tuple("cls")]
    state = build_state(dataclasses.replace(config, class_weights="balanced", log_every=1), CPU, 1)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    assert state.class_weights is not None
    np.testing.assert_allclose(state.class_weights, expected, rtol=1e-6)
    plain = build_state(dataclasses.replace(config, sampling="balanced"), CPU, 1)
    assert (plain.class_weights, plain.train_loader.state_dict()["order"]) == (None, "balanced")
    state.class_weights = torch.zeros(3)
    losses = []
    train_epoch(state, lambda metrics, _step: losses.append(metrics["train/loss"]), lambda *_: None)
    assert set(losses) == {0.0}, "the loop hands the weights to the loss"


def test_one_of_the_two_corrects_the_imbalance(config: Config) -> None:
    assert parse(["--sampling", "balanced"]).sampling == "balanced"
    assert parse(["--class-weights", "balanced"]).class_weights == "balanced"
    with pytest.raises(InputError, match="class_weights is 'balanced': sampling is too, so rare classes would count"):
        dataclasses.replace(config, sampling="balanced", class_weights="balanced")
