"""Whole trainings in real gloo processes: loaders, validation, frozen layers, checkpoints and dropout."""

import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from mesh import Shape, in_group
from torch import Tensor

from training.checkpoint import write_checkpoint
from training.config import Checkpointing, Config, Network, Optimizer, Parallel
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import train
from training.models import NETWORKS, AlexNet, architecture
from training.recipes import RECIPES

WIDTHS: dict[str, Any] = {"channels": (8, 12, 16, 16, 16), "hidden": (48, 48), "init": "he"}
SMALL = {
    "alexnet-small": architecture("alexnet-small", **WIDTHS, lrn="off"),
    "alexnet-owt": architecture("alexnet-owt", **WIDTHS, first_kernel=5, first_stride=1, map_side=2),
}
"""Networks of these trainings by name: of many maxima some would be ties, broken by rounding."""
FREEZE = {
    "alexnet-small": {"conv1": 1},
    # In the end all that the devices of the hybrid have in common.
    "alexnet-owt": {"features.0": 1, **{f"features.{index}": 2 for index in (3, 6, 8, 10)}},
}
"""Epochs that are done when a layer stops, of three."""


def make_config(data: Path, name: str, **network: Any) -> Config:
    """Layers stop one after another, steps are computed in two parts, and weights are averaged."""
    optimizer = Optimizer(
        0.002, schedule="piecewise", milestones={2: 2e-4}, momentum_form="2012", bias_lr_scale=2.0, ema_decay=0.8
    )
    return dataclasses.replace(
        RECIPES["tiny-imagenet"](),
        data=str(data),
        epochs=3,
        crop=28,
        # 55 val samples over four devices are 13, 14, 14, 14: the first has a batch less than the others.
        batch_size=52,
        micro_batches=2,
        checkpoint=Checkpointing(
            every_steps=3
        ),  # of two steps an epoch: within the second epoch, and at the end of all
        precision="float32",
        network=Network(name, **{"dropout": 0.0, **network}),
        optimizer=dataclasses.replace(optimizer, freeze=FREEZE[name]),
    )


@dataclasses.dataclass(frozen=True)
class Job:
    """A training in one layout, which goes on from a checkpoint of an earlier one if that is named."""

    shape: Shape
    name: str
    checkpoint: str | None = None
    dropout: bool = False

    def config(self, data: Path) -> Config:
        if not self.dropout:
            return dataclasses.replace(make_config(data, self.name), parallel=Parallel(*self.shape))
        # Softplus is nowhere 0: what is, was dropped.
        config = make_config(data, self.name, dropout=0.5, activation="softplus")
        config = dataclasses.replace(config, epochs=1, micro_batches=1, optimizer=Optimizer())
        return dataclasses.replace(config, parallel=Parallel(*self.shape))


JOBS = {
    "small-1x1": Job((1, 1), "alexnet-small"),
    "small-2x2": Job((2, 2), "alexnet-small"),
    "owt-1x1": Job((1, 1), "alexnet-owt"),
    "owt-2x2": Job((2, 2), "alexnet-owt"),
    "owt-1x4": Job((1, 4), "alexnet-owt", "owt-2x2/epoch-1"),
    "owt-1x1-after": Job((1, 1), "alexnet-owt", "owt-1x4/epoch-2"),
    "small-2x2-within": Job((2, 2), "alexnet-small", "small-2x2/step-3"),
    "small-4x1-within": Job((4, 1), "alexnet-small", "small-2x2/step-3"),
    "owt-2x2-within": Job((2, 2), "alexnet-owt", "owt-2x2/step-3"),
    "owt-2x2-unvalidated": Job((2, 2), "alexnet-owt", "owt-2x2/step-6"),
    "owt-1x1-within": Job((1, 1), "alexnet-owt", "owt-2x2/step-3"),
    "small-dropout": Job((2, 2), "alexnet-small", dropout=True),
    "owt-dropout": Job((2, 2), "alexnet-owt", dropout=True),
}


def process(rank: int, data: Path, folder: Path) -> None:
    """Be process `rank` of every job that has one; what each job's processes have seen is left in its folder."""
    NETWORKS.update(SMALL)
    for name, job in JOBS.items():
        if rank >= job.shape[0] * job.shape[1]:
            continue
        own = folder / name
        own.mkdir(exist_ok=True)
        with in_group(rank, job.shape, own / "meeting", hybrid=job.name == "alexnet-owt") as layout:
            checkpoint = folder / job.checkpoint if job.checkpoint else None
            state = build_state(job.config(data), layout, 1, checkpoint)
            seen = first_masks(state) if job.dropout else train_through(state, own)
        (own / f"rank-{rank}").write_bytes(pickle.dumps(seen))


def train_through(state: TrainState, folder: Path) -> list[dict[str, Any]]:
    """Train; return what this process would give away after each epoch, and write the checkpoints."""
    after: list[dict[str, Any]] = []

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        snapshot = capture_checkpoint(state, "run", metrics)
        if state.layout.is_first:
            checkpoint = folder / (f"step-{state.step}" if state.batch else f"epoch-{state.epoch}")
            checkpoint.mkdir()
            write_checkpoint(checkpoint, snapshot)
        if state.batch:
            return
        weights, momentum = snapshot.training["weights"], snapshot.training["optimizer.momentum_buffer"]
        after.append({"average": snapshot.model, "weights": weights, "momentum": momentum, "metrics": metrics})

    train(state, lambda _metrics, _step: None, save)
    return after


def first_masks(state: TrainState) -> dict[str, list[Tensor]]:
    """Train; return which units the dropout of the first step has kept, layer by layer, and what fc7 saw."""
    assert isinstance(state.network, AlexNet)
    seen: dict[str, list[Tensor]] = {"kept": [], "inputs": []}
    state.network.dropout.register_forward_hook(lambda _module, _inputs, output: seen["kept"].append(output != 0))
    state.network.layer("fc7").register_forward_pre_hook(lambda _module, inputs: seen["inputs"].append(*inputs))
    train(state, lambda _metrics, _step: None, lambda _state, _metrics: None)
    return {name: [tensor.detach().clone() for tensor in tensors[:2]] for name, tensors in seen.items()}


@pytest.fixture(scope="module")
def trained(four_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of every job, in a folder of its name: `rank-N`, and the checkpoints `epoch-N`."""
    folder = tmp_path_factory.mktemp("trained")
    mp.spawn(process, (four_classes, folder), nprocs=4)
    return folder


def seen_by_all(trained: Path, job: str) -> list[Any]:
    devices = JOBS[job].shape[0] * JOBS[job].shape[1]
    return [pickle.loads((trained / job / f"rank-{rank}").read_bytes()) for rank in range(devices)]


def assert_same(after: dict[str, Any], single: dict[str, Any]) -> None:
    assert after["metrics"] == pytest.approx(single["metrics"], rel=1e-4)
    for part in ("average", "weights", "momentum"):
        assert after[part].keys() == single[part].keys()
        for name, tensor in single[part].items():
            # The form of 2012 keeps v / lr, which the last drop has made ten times as large.
            bound = 1e-3 if part == "momentum" else 1e-5
            torch.testing.assert_close(after[part][name], tensor, rtol=0, atol=bound, msg=f"{part} {name}")


@pytest.mark.parametrize("kind", ["small", "owt"])
def test_frozen_layers_stay_and_the_others_learn_on_in_every_process(trained: Path, kind: str) -> None:
    freeze = FREEZE[JOBS[f"{kind}-2x2"].name]
    (single,) = seen_by_all(trained, f"{kind}-1x1")
    for rank, after in enumerate(seen_by_all(trained, f"{kind}-2x2")):
        for epoch in (1, 2):
            for parameter, tensor in after[epoch]["weights"].items():
                same = torch.equal(tensor, after[epoch - 1]["weights"][parameter])
                frozen = freeze.get(parameter.rpartition(".")[0], 3) <= epoch
                assert same == frozen, f"rank {rank}: {parameter} after epoch {epoch + 1}"
        assert_same(after[-1], single[-1])


def test_a_checkpoint_of_the_hybrid_continues_in_another_layout(trained: Path) -> None:
    (single,) = seen_by_all(trained, "owt-1x1")
    for job, epochs in (("owt-1x4", 2), ("owt-1x1-after", 1)):
        after = seen_by_all(trained, job)[0]
        assert len(after) == epochs
        assert_same(after[-1], single[-1])


@pytest.mark.parametrize("job", ["small-2x2-within", "owt-2x2-within", "owt-2x2-unvalidated"])
def test_a_checkpoint_within_an_epoch_continues_bit_for_bit(trained: Path, job: str) -> None:
    for straight, continued in zip(
        seen_by_all(trained, job.rpartition("-")[0]), seen_by_all(trained, job), strict=True
    ):
        for part in ("average", "weights", "momentum"):
            for name, tensor in straight[-1][part].items():
                assert torch.equal(continued[-1][part][name], tensor), f"{part} {name}"
        assert continued[-1]["metrics"] == straight[-1]["metrics"]


@pytest.mark.parametrize(("job", "straight"), [("small-4x1-within", "small-1x1"), ("owt-1x1-within", "owt-1x1")])
def test_a_checkpoint_within_an_epoch_continues_on_another_number_of_devices(
    trained: Path, job: str, straight: str
) -> None:
    assert_same(seen_by_all(trained, job)[0][-1], seen_by_all(trained, straight)[0][-1])


@pytest.mark.parametrize("kind", ["small", "owt"])
def test_every_device_drops_units_of_its_own_and_peers_see_the_same(trained: Path, kind: str) -> None:
    seen = seen_by_all(trained, f"{kind}-dropout")
    for one, other in itertools.combinations(range(4), 2):
        for mine, theirs in zip(seen[one]["kept"], seen[other]["kept"], strict=True):
            assert 0.4 < (mine == theirs).float().mean() < 0.6, f"masks of ranks {one} and {other}"
        same = [torch.equal(*pair) for pair in zip(seen[one]["inputs"], seen[other]["inputs"], strict=True)]
        assert same == [one // 2 == other // 2] * 2, f"inputs of fc7 at ranks {one} and {other}"
