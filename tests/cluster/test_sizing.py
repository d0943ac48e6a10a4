"""The estimates of trainings: layers against the real networks, steps against measured rows, and formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from commands import PROJECT
from torch import Tensor, nn

from cluster.sizing.check import compare
from cluster.sizing.constants import load_constants
from cluster.sizing.estimate import Estimate, Job, choose_layout, device_loads, estimate
from cluster.sizing.networks import NETWORKS, Layer
from errors import InputError
from training.models import Links
from training.models.architecture import Architecture
from training.models.networks import architecture, make_network
from training.recipes import RECIPES

CONSTANTS = load_constants()


def real_architecture(name: str) -> Architecture:
    """Return the architecture that `NETWORKS[name]` describes: of `training.models`, or of a recipe."""
    if name == "tiny-imagenet":
        config = RECIPES[name]().network
        switches = {"first_kernel": config.first_kernel, "first_stride": config.first_stride, "lrn": config.lrn}
        found = architecture(config.name, image_size=56, **switches)
    else:
        found = architecture(name)
    assert isinstance(found, Architecture)
    return found


def real_network(name: str, links: Links | None = None) -> nn.Module:
    """Return that network without memory for its weights; without LRN, which cannot do without."""
    classes = NETWORKS[name].layers[-1].outputs
    with torch.device("meta"):
        return make_network(replace(real_architecture(name), lrn="off"), classes, links)


def layers_of(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_are_those_of_the_real_network(name: str) -> None:
    described, network = NETWORKS[name], real_network(name)
    seen: list[tuple[int, int, int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        pixels = output[0, 0].numel()
        parameters = sum(parameter.numel() for parameter in module.parameters())
        seen.append((parameters, 2 * module.weight.numel() * pixels, inputs[0].numel(), output.numel()))

    for module in layers_of(network):
        module.register_forward_hook(note)
    network(torch.zeros(1, 3, described.image_size, described.image_size, device="meta"))
    real = real_architecture(name)
    assert (described.towers, described.hybrid) == (real.towers, real.hybrid)
    assert [one.normalised for one in described.layers[:2]] == [real.lrn != "off"] * 2
    own = [(one.parameters, one.operations, one.input_values, one.output_values) for one in described.layers]
    # The project pads images itself where the padding is uneven: conv1 gets a few more pixels.
    assert [(a, b, d) for a, b, _, d in own] == [(a, b, d) for a, b, _, d in seen]
    assert [a[2] for a in own[1:]] == [a[2] for a in seen[1:]]


@pytest.mark.parametrize(("name", "layout"), [("alexnet", "model"), ("alexnet-owt", "hybrid")])
def test_a_device_holds_what_a_device_of_the_real_layout_holds(name: str, layout: str) -> None:
    job = job_on("h200", name, gpus=2)
    width = choose_layout(job, layout)  # type: ignore[arg-type]
    links = Links()
    links.width, links.conv_width = 2, 2 if layout == "model" else 1
    real = [sum(p.numel() for p in module.parameters()) for module in layers_of(real_network(name, links))]
    assert [layer.parameters for layer, _ in device_loads(job, width)] == real


def job_on(gpu: str, network: str = "alexnet", **changes: object) -> Job:
    settings = {"gpus": 8, "batch": 1024, "precision": "bfloat16", "compiled": True, **changes}
    return Job(NETWORKS[network], CONSTANTS.devices[gpu], **settings)  # type: ignore[arg-type]


def estimate_on(gpu: str, layout: str = "data", **changes: object) -> Estimate:
    job = job_on(gpu, **changes)  # type: ignore[arg-type]
    return estimate(job, choose_layout(job, layout), CONSTANTS)  # type: ignore[arg-type]


def operations(loads: list[tuple[Layer, float]]) -> float:
    return sum(layer.operations * images for layer, images in loads)


@pytest.mark.parametrize(("name", "layout"), [("alexnet", "model"), ("alexnet-owt", "hybrid"), ("alexnet", "data")])
def test_all_devices_together_compute_the_entire_batch(name: str, layout: str) -> None:
    job = job_on("h200", name)
    loads = device_loads(job, choose_layout(job, layout))  # type: ignore[arg-type]
    assert operations(loads) * 8 == sum(layer.operations for layer in job.network.layers) * 1024


def test_no_estimate_is_off_by_more_than_a_quarter_without_a_reason() -> None:
    for one in compare(CONSTANTS):
        assert one.is_accepted or one.row.reason, f"{one.row.what}: {one.error:+.0%}"
        assert not (one.is_accepted and one.row.reason), f"{one.row.what} needs no reason any more"
        if one.row.calibration:
            assert abs(one.error) < 0.01, one.row.what


def test_every_step_in_the_results_is_estimated_to_a_quarter() -> None:
    results = (PROJECT / "benchmarks" / "RESULTS.md").read_text()
    covered = [one for one in compare(CONSTANTS) if one.row.source.startswith("benchmarks/RESULTS.md, ")]
    assert len(covered) >= 8
    for one in covered:
        assert f"{one.row.images_per_second:,.0f}" in results, one.row.what
        assert one.is_accepted, one.row.what


def test_gradients_wait_for_a_slow_network_only() -> None:
    near, slow = estimate_on("h100"), estimate_on("h100", nodes=2, network_gbps=10)
    assert near.gradients_exposed == 0
    # 2 x 7/8 of 4 bytes for each of 60,965,224 parameters, over 10 Gbit/s.
    assert slow.gradients_seconds == pytest.approx(2 * 7 / 8 * 4 * 60_965_224 / 1.25e9, rel=0.01)
    assert slow.step_seconds == pytest.approx(near.step_seconds + slow.gradients_exposed)
    assert slow.gradients_exposed > 0.3


def test_towers_exchange_the_maps_and_units_between_them() -> None:
    found = estimate_on("h200", "model", gpus=2)
    # Into conv3 43,264 values, into fc6 to fc8 9,216, 4,096 and 4,096, each also back; 1,000 logits: half of 2 bytes.
    values = 2 * (43_264 + 9_216 + 4_096 + 4_096) + 1_000
    assert found.exchanged_bytes == 1024 * values
    assert found.gradients_seconds == 0


def test_a_device_sends_the_gradients_of_its_own_share() -> None:
    conv, connected = 4 * 2_469_696, 4 * 58_631_144  # bytes of the gradients of alexnet-owt
    all_reduced = {"data": 2 * 15 / 16 * (conv + connected), "hybrid": 2 * 15 / 16 * conv + 2 * 1 / 2 * connected / 8}
    gathered = {"data": 0, "hybrid": 7 / 8 * 2 * 512 * 2 * (9_216 + 4_096 + 4_096 + 1_000)}
    for layout, size in all_reduced.items():
        found = estimate_on("h100", layout, network="alexnet-owt", gpus=16, nodes=2, network_gbps=3200)
        assert found.exchanged_bytes == pytest.approx(size + gathered[layout])
    towers = estimate_on("h100", "model", gpus=4, batch=4)
    assert towers.exchanged_bytes - 2 * 122_344 == pytest.approx(2 * 1 / 2 * 4 * 60_965_224 / 2)


def test_few_cores_limit_the_rate() -> None:
    plenty, few = estimate_on("h100", cores=192), estimate_on("h100", cores=4)
    assert plenty.limit == "step"
    assert few.limit == "decoding"
    assert few.images_per_second == 4 * CONSTANTS.decoded_per_core_engines.value
    assert few.decode_cores == pytest.approx(4)
    assert estimate_on("h100", cores=4, nodes=2, network_gbps=3200).decode_cores == pytest.approx(8)


def test_a_cpu_decodes_with_the_cores_that_train() -> None:
    job = job_on("epyc", "alexnet-owt", gpus=1, batch=64, cores=2)
    layout = choose_layout(job, "data")
    alone, fed = (estimate(job, layout, CONSTANTS, fed=fed).images_per_second for fed in (False, True))
    assert alone == pytest.approx(120, rel=0.01)
    assert 1 / fed - 1 / alone == pytest.approx(1 / (2 * CONSTANTS.decoded_per_core_cpu.value))


def test_memory_counts_parameters_and_values() -> None:
    small, large = (estimate_on("h200", batch=batch).memory_bytes for batch in (8, 16))
    parameters = 60_965_224 * 14  # float32 weight, gradient, momentum; bfloat16 copy
    assert 2 * small - large == pytest.approx(parameters)
    assert estimate_on("h200", "model", batch=16).memory_bytes < large


@pytest.mark.parametrize("layout", ["model", "hybrid"])
def test_a_network_shared_by_one_gpu_is_refused(layout: str) -> None:
    job = job_on("h100", {"model": "alexnet", "hybrid": "alexnet-owt"}[layout], gpus=8, nodes=8, network_gbps=100)
    with pytest.raises(InputError, match="GPUs on the same node; there are 1"):
        choose_layout(job, layout)  # type: ignore[arg-type]
