"""Whole trainings in real gloo processes: loaders, validation, frozen layers, checkpoints and dropout."""

import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from gloo import Shape, in_group
from torch import Tensor, nn

from training.checkpoint import read_model, write_checkpoint
from training.config import Config, Network, Optimizer, Parallel
from training.models import NETWORKS, AlexNet, architecture
from training.parallel import Layout
from training.recipes import RECIPES
from training.worker import Session, open_session, snapshot, train

WIDTHS: dict[str, Any] = {"channels": (8, 12, 16, 16, 16), "hidden": (48, 48), "init": "he"}
SMALL = {
    "alexnet-small": architecture("alexnet-small", **WIDTHS, lrn="off"),
    "alexnet-owt": architecture("alexnet-owt", **WIDTHS, first_kernel=5, first_stride=1, map_side=2),
}
"""What these trainings call by the names of the networks: of many maxima some would be ties, broken by rounding."""
FREEZE = {
    "alexnet-small": {"conv1": 1},
    # In the end all that the devices of the hybrid have in common.
    "alexnet-owt": {"features.0": 1, **{f"features.{index}": 2 for index in (3, 6, 8, 10)}},
}
"""Epochs that are done when a layer stops, of three."""


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, network in SMALL.items():
        monkeypatch.setitem(NETWORKS, name, network)


def make_config(data: Path, name: str, **network: Any) -> Config:
    """Layers stop one after another, steps are computed in two parts, and weights are averaged."""
    optimizer = Optimizer(0.002, schedule="script", drops={2: 2e-4}, form="2012", bias_rate=2.0, ema=0.8)
    return dataclasses.replace(
        RECIPES["tiny-imagenet"](),
        data=str(data),
        epochs=3,
        crop=28,
        # 55 val samples over four devices are 13, 14, 14, 14: the first has a batch less than the others.
        batch_size=52,
        micro_batches=2,
        precision="float32",
        network=Network(name, **{"dropout": 0.0, **network}),
        optimizer=dataclasses.replace(optimizer, freeze=FREEZE[name]),
    )


def train_in(config: Config, layout: Layout, folder: Path, checkpoint: Path | None = None) -> None:
    """Train; keep what each process would give away, and the first one's checkpoints."""
    after: list[dict[str, Any]] = []

    def save(session: Session, metrics: dict[str, float]) -> None:
        parts = snapshot(session, "run", metrics)
        _, model, optimizer = parts
        state = {"average": model, "weights": optimizer["weights"], "momentum": optimizer["momentum"]}
        after.append(pickle.loads(pickle.dumps({**state, "metrics": metrics})))  # the tensors go on changing
        if layout.is_first:
            (folder / f"epoch-{session.epoch}").mkdir()
            write_checkpoint(folder / f"epoch-{session.epoch}", *parts)

    train(open_session(config, layout, 1, checkpoint), lambda _metrics, _step: None, save)
    (folder / f"rank-{layout.global_rank}").write_bytes(pickle.dumps(after))


def process(rank: int, config: Config, shape: Shape, folder: Path, checkpoint: Path | None) -> None:
    NETWORKS.update(SMALL)
    with in_group(rank, shape, folder / "meeting", hybrid=config.network.name == "alexnet-owt") as layout:
        train_in(config, layout, folder, checkpoint)


def run(config: Config, shape: Shape, folder: Path, checkpoint: Path | None = None) -> list[list[dict[str, Any]]]:
    """Train in one layout; return for each process what it had after each epoch."""
    folder.mkdir()
    config = dataclasses.replace(config, parallel=Parallel(*shape))
    if shape == (1, 1):
        train_in(config, Layout(torch.device("cpu")), folder, checkpoint)
    else:
        mp.spawn(process, (config, shape, folder, checkpoint), nprocs=shape[0] * shape[1])
    return [pickle.loads((folder / f"rank-{rank}").read_bytes()) for rank in range(shape[0] * shape[1])]


def assert_same(after: list[dict[str, Any]], single: list[dict[str, Any]]) -> None:
    assert after[-1]["metrics"] == pytest.approx(single[-1]["metrics"], rel=1e-4)
    for part in ("average", "weights", "momentum"):
        assert after[-1][part].keys() == single[-1][part].keys()
        for name, tensor in single[-1][part].items():
            # The form of 2012 keeps v / lr, which the last drop has made ten times as large.
            bound = 1e-4 if part == "momentum" else 1e-5
            torch.testing.assert_close(after[-1][part][name], tensor, rtol=0, atol=bound, msg=f"{part} {name}")


@pytest.mark.parametrize("name", SMALL)
def test_frozen_layers_stay_and_the_others_learn_on_in_every_process(
    four_classes: Path, tmp_path: Path, name: str
) -> None:
    config = make_config(four_classes, name)
    (single,) = run(config, (1, 1), tmp_path / "single")
    for rank, after in enumerate(run(config, (2, 2), tmp_path / "parallel")):
        for epoch in (1, 2):
            for parameter, tensor in after[epoch]["weights"].items():
                same = torch.equal(tensor, after[epoch - 1]["weights"][parameter])
                frozen = FREEZE[name].get(parameter.rpartition(".")[0], 3) <= epoch
                assert same == frozen, f"rank {rank}: {parameter} after epoch {epoch + 1}"
        assert_same(after, single)


def test_a_checkpoint_of_the_hybrid_continues_in_any_layout(four_classes: Path, tmp_path: Path) -> None:
    config = make_config(four_classes, "alexnet-owt")
    after, _ = run(config, (1, 2), tmp_path / "hybrid")
    single = run(config, (1, 1), tmp_path / "single", tmp_path / "hybrid" / "epoch-1")
    wider = run(config, (1, 4), tmp_path / "wider", tmp_path / "single" / "epoch-2")
    for states, epochs in ((single[0], 2), (wider[0], 1)):
        assert len(states) == epochs
        assert_same(states, after)
    shapes = {name: tuple(tensor.shape) for name, tensor in read_model(tmp_path / "hybrid/epoch-3/model.pt").items()}
    assert shapes["classifier.1.weight"] == (48, 64), "a single device's"


def first_masks(config: Config, layout: Layout) -> dict[str, list[Tensor]]:
    """Return which units the dropout of the first step has kept, layer by layer, and what fc7 saw."""
    session = open_session(config, layout, 1)
    assert isinstance(session.network, AlexNet)
    seen: dict[str, list[Tensor]] = {"kept": [], "inputs": []}

    def keep_mask(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen["kept"].append(output.detach() != 0)

    session.network.dropout.register_forward_hook(keep_mask)
    session.network.layer("fc7").register_forward_pre_hook(lambda _module, inputs: seen["inputs"].append(*inputs))
    train(session, lambda _metrics, _step: None, lambda _session, _metrics: None)
    calls = {name: len(tensors) for name, tensors in seen.items()}
    assert min(calls.values()) >= 2
    return {name: [tensor.detach().clone() for tensor in tensors[:2]] for name, tensors in seen.items()}


def dropout_process(rank: int, config: Config, shape: Shape, folder: Path) -> None:
    NETWORKS.update(SMALL)
    with in_group(rank, shape, folder / "meeting", hybrid=config.network.name == "alexnet-owt") as layout:
        (folder / f"rank-{rank}").write_bytes(pickle.dumps(first_masks(config, layout)))


@pytest.mark.parametrize("name", SMALL)
def test_every_device_drops_units_of_its_own_and_peers_see_the_same(
    four_classes: Path, tmp_path: Path, name: str
) -> None:
    # Softplus is nowhere 0: what is, was dropped.
    config = make_config(four_classes, name, dropout=0.5, activation="softplus")
    config = dataclasses.replace(config, epochs=1, optimizer=Optimizer(), micro_batches=1)
    mp.spawn(dropout_process, (config, (2, 2), tmp_path), nprocs=4)
    seen = [pickle.loads((tmp_path / f"rank-{rank}").read_bytes()) for rank in range(4)]
    for one, other in itertools.combinations(range(4), 2):
        for mine, theirs in zip(seen[one]["kept"], seen[other]["kept"], strict=True):
            assert 0.4 < (mine == theirs).float().mean() < 0.6, f"masks of ranks {one} and {other}"
        same = [torch.equal(*pair) for pair in zip(seen[one]["inputs"], seen[other]["inputs"], strict=True)]
        assert same == [one // 2 == other // 2] * 2, f"inputs of fc7 at ranks {one} and {other}"
