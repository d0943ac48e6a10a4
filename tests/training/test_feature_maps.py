import numpy as np
import torch
from torch import nn

from pipeline.reading.samples import Samples
from preprocess.manifest import read_manifest
from training.features import convolution_maps
from training.predict import make_input
from training.report.feature_maps import GAP, MAPS, LayerMaps, maps_grid


def test_the_maps_are_what_the_layers_give(untrained, tiny_shards) -> None:
    trained = untrained()
    jpeg = Samples(tiny_shards, read_manifest(tiny_shards), "val").example(3).jpeg
    layers = convolution_maps(trained, jpeg)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    with torch.inference_mode():
        first = trained.network.layer("act1")(trained.network.layer("conv1")(make_input(trained, [jpeg])))
    np.testing.assert_allclose(layers[0].maps, first[0].numpy(), atol=1e-5)
    assert not any(module._forward_hooks for module in trained.network.modules() if isinstance(module, nn.Conv2d))


def test_the_strongest_maps_come_first_each_on_its_own_scale() -> None:
    maps = np.zeros((20, 11, 11), np.float32)
    maps[7, 0, 0], maps[3] = 0.5, 4.0
    layer = LayerMaps("conv1", maps)
    assert layer.title == "conv1: 20 maps of 11 × 11, 2 with a response"
    grid = np.asarray(maps_grid(layer))
    assert grid.shape == (66, MAPS * (66 + GAP) - GAP, 4)
    assert (grid[:, :66, :3] == 255).all()
    second = grid[:, 66 + GAP : 2 * 66 + GAP, 0]
    assert (second[:6, :6] == 255).all()
    assert second.sum() == 36 * 255
    assert (grid[:, 66 : 66 + GAP, 3] == 0).all()
