import argparse
import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.reading.samples import Samples
from preprocess.manifest import read_manifest
from training.config import Config, Network
from training.describe import describe
from training.ensemble import Ensemble
from training.load_model import load_model
from training.models import make_network
from training.recipes import RECIPES


@pytest.mark.parametrize(
    ("name", "kernels", "channels"),
    # At 64 pixels the last three layers of alexnet-owt have maps of 3 x 3.
    [("alexnet-owt", (64, 3, 11, 11), [64, 192, 384, 256, 256]), ("lenet5", (6, 3, 5, 5), [6, 16])],
)
def test_a_file_of_weights_of_any_network_is_taken_up_and_described(
    name: str,
    kernels: tuple[int, ...],
    channels: list[int],
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config(recipe="own", short_side=64, crop=64, epochs=1, network=Network(name))
    monkeypatch.setitem(RECIPES, "own", lambda: dataclasses.replace(config))
    manifest = read_manifest(tiny_shards)
    network = make_network(config.architecture(), len(manifest.classes)).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    choice = argparse.Namespace(
        run=None,
        which=None,
        checkpoint=None,
        weights=tmp_path / "weights.pth",
        recipe="own",
        device="cpu",
        class_names=None,
    )
    trained = load_model(choice, tmp_path, str(tiny_shards))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(trained.network(images), network(images), rtol=1e-4, atol=1e-5)
    example = Samples(tiny_shards, manifest, "val").example(0)
    subject = describe(Ensemble((trained,)), manifest, tmp_path, example)
    assert [layer.maps.shape[0] for layer in subject.maps] == channels
    assert all(layer.maps.min() == 0 < layer.maps.max() for layer in subject.maps)
    assert subject.conv1 is not None
    assert (subject.conv1.shape, subject.towers) == (kernels, 1)
