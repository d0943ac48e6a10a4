"""Real gloo processes: every layout trains the same weights, and takes up the others' checkpoints."""

import dataclasses
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from training.average import make_average
from training.config import Config, Optimizer, Parallel
from training.models import build
from training.optimizer import load_momentum, make_optimizer, momentum_by_name
from training.parallel import Layout, gather_full, make_layout, take_shard
from training.precision import autocast
from training.recipes import RECIPES
from training.step import train_step
from training.worker import Session, open_session, snapshot, train

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]
STEPS = 5
# Every switch that adds a layer or a parameter to a tower.
SWITCHES = {"init": "he", "dropout": 0.0, "order1": "lrn-pool-act", "spatial_norm": True, "activation": "prelu"}
State = dict[str, dict[str, Tensor]]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 28, 28, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def train_steps(layout: Layout, steps: range, start: State | None = None) -> State:
    """Take optimiser steps on this layout's share of each batch; return the single-device state."""
    torch.manual_seed(0)
    initial = build("alexnet-small", 10, **SWITCHES).state_dict()
    network = build("alexnet-small", 10, links=layout.links(), **SWITCHES)
    network.load_state_dict(take_shard(start["model"] if start else initial, layout))
    optimizer = make_optimizer(network, Optimizer(learning_rate=0.004))
    if start:
        load_momentum(network, optimizer, take_shard(start["momentum"], layout))
    replica, average = layout.replicate(network), make_average(network, 0.5)
    for step in steps:
        images, labels = (part.chunk(layout.data_size)[layout.data_rank] for part in batch(step))
        train_step(replica, optimizer, images, labels, autocast("float32", layout.device))
        average.update_parameters(network)
    return {
        "model": gather_full(network.state_dict(), layout),
        "momentum": gather_full(momentum_by_name(network, optimizer), layout),
        "average": gather_full(average.module.state_dict(), layout),
    }


def in_group(rank: int, world_size: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)


def process(rank: int, ports: dict[tuple[int, int], int], folder: Path) -> None:
    """Be rank `rank` of every layout that has one: first all train, then each goes on from each."""
    torch.set_num_threads(1)
    for data, model in LAYOUTS:
        if rank >= data * model:
            continue
        in_group(rank, data * model, ports[data, model])
        layout = make_layout(torch.device("cpu"), data, model)
        state = train_steps(layout, range(STEPS))
        if rank == 0:
            (folder / f"{data}x{model}").write_bytes(pickle.dumps(state))
        dist.barrier()
        for other in LAYOUTS[: LAYOUTS.index((data, model)) + 1]:
            start = pickle.loads((folder / f"{other[0]}x{other[1]}").read_bytes())
            state = train_steps(layout, range(STEPS, STEPS + 2), start)
            if rank == 0:
                (folder / f"{other[0]}x{other[1]}-on-{data}x{model}").write_bytes(pickle.dumps(state))
        dist.barrier()
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    folder = tmp_path_factory.mktemp("states")
    # Layouts go one after another, each in a group of its own: rank 0 takes part in all of them.
    mp.spawn(process, ({layout: free_port() for layout in LAYOUTS}, folder), nprocs=4)
    return {path.name: pickle.loads(path.read_bytes()) for path in folder.iterdir()}


def assert_same(one: State, other: State) -> None:
    for part in ("model", "momentum", "average"):
        assert one[part].keys() == other[part].keys()
        for name in one[part]:
            torch.testing.assert_close(one[part][name], other[part][name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("layout", ["2x1", "1x2", "2x2"])
def test_each_layout_trains_the_weights_of_one_process(states: dict[str, State], layout: str) -> None:
    moved = max((states["1x1"]["model"][name] - tensor).abs().max() for name, tensor in initial_state().items())
    assert moved > 1e-3, "the steps must change the weights for the comparison to mean anything"
    assert_same(states[layout], states["1x1"])


@pytest.mark.parametrize("layout", ["1x1-on-2x2", "1x2-on-2x2", "2x1-on-1x2", "1x1-on-1x2", "2x2-on-2x2"])
def test_each_layout_goes_on_from_another_s_state(states: dict[str, State], layout: str) -> None:
    assert_same(states[layout], states["1x1-on-1x1"])


def test_single_process_goes_on_from_the_towers(states: dict[str, State]) -> None:
    single = train_steps(Layout(torch.device("cpu")), range(STEPS, STEPS + 2), states["1x2"])
    assert_same(single, states["1x1-on-1x1"])


def initial_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build("alexnet-small", 10, **SWITCHES).state_dict()


def test_the_loss_is_that_of_the_step(states: dict[str, State]) -> None:
    network = build("alexnet-small", 10, **SWITCHES)
    losses = []
    for state in (initial_state(), states["1x1"]["model"]):
        network.load_state_dict(state)
        losses.append(
            sum(F.cross_entropy(network(images), labels).item() for images, labels in map(batch, range(STEPS)))
        )
    assert losses[1] < losses[0], "the steps must have learned from the batches"


def freezing(data: str, replicas: int) -> Config:
    """conv1 stops after one of three epochs of three steps, each in two parts; weights are averaged."""
    base = RECIPES["tiny-imagenet"]()
    return dataclasses.replace(
        base,
        data=data,
        epochs=3,
        batch_size=32,
        micro_batches=2,
        precision="float32",
        parallel=Parallel(replicas),
        network=dataclasses.replace(base.network, dropout=0.0),
        optimizer=Optimizer(
            0.002, schedule="script", drops={2: 2e-4}, form="2012", bias_rate=2.0, freeze={"conv1": 1}, ema=0.8
        ),
    )


def train_freezing(config: Config, layout: Layout) -> list[State]:
    """Return the checkpoints' tensors after each epoch."""
    after: list[State] = []

    def save(session: Session, metrics: dict[str, float]) -> None:
        _, model, optimizer = snapshot(session, "run", metrics)
        state = {"average": model, "weights": optimizer["weights"], "momentum": optimizer["momentum"]}
        after.append(pickle.loads(pickle.dumps(state)))  # as a file would hold it: the tensors go on changing

    train(open_session(config, layout, 1), lambda _metrics, _step: None, save)
    return after


def freezing_process(rank: int, port: int, data: str, folder: Path) -> None:
    torch.set_num_threads(1)
    in_group(rank, 2, port)
    after = train_freezing(freezing(data, 2), make_layout(torch.device("cpu"), 2, 1))
    (folder / str(rank)).write_bytes(pickle.dumps(after))
    dist.barrier()
    dist.destroy_process_group()


def test_a_frozen_layer_stays_and_the_others_learn_on_in_both_replicas(tiny_shards: Path, tmp_path: Path) -> None:
    mp.spawn(freezing_process, (free_port(), str(tiny_shards), tmp_path), nprocs=2)
    single = train_freezing(freezing(str(tiny_shards), 1), Layout(torch.device("cpu")))
    for rank in (0, 1):
        after = pickle.loads((tmp_path / str(rank)).read_bytes())
        for epoch in (1, 2):
            for name, tensor in after[epoch]["weights"].items():
                same = torch.equal(tensor, after[epoch - 1]["weights"][name])
                assert same == name.startswith("conv1."), f"rank {rank}: {name} after epoch {epoch + 1}"
        for part in ("average", "weights", "momentum"):
            for name, tensor in single[-1][part].items():
                # The form of 2012 keeps v / lr, which the last drop has made ten times as large.
                bound = 1e-4 if part == "momentum" else 1e-5
                torch.testing.assert_close(after[-1][part][name], tensor, rtol=0, atol=bound, msg=f"{part} {name}")
