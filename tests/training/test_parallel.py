"""Real gloo processes: every layout trains the same weights, and takes up the others' state."""

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from mesh import Shape, in_group
from torch import Tensor

from training.config import Optimizer
from training.loop.precision import autocast
from training.loop.step import train_step
from training.models import architecture, build, make_network
from training.optim.optimizer import load_optimizer_state, make_ema, make_optimizer, optimizer_state
from training.parallel.layout import Layout, gather_full, make_layout, take_shard

STEPS = 5
LAYOUTS: dict[str, list[Shape]] = {
    "alexnet-small": [(1, 1), (2, 1), (1, 2), (2, 2)],
    "alexnet-owt": [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (1, 4)],
}
CASES = [(name, shape) for name, shapes in LAYOUTS.items() for shape in shapes]
# Small: of many maxima some are ties, which rounding breaks otherwise in each layout. 2, 3 and 4 divide the widths.
SMALL: dict[str, Any] = {"channels": (8, 12, 16, 16, 16), "hidden": (48, 48), "init": "he", "dropout": 0.0}
SWITCHES: dict[str, dict[str, Any]] = {
    # Every switch that adds a layer or a parameter to a tower.
    "alexnet-small": {**SMALL, "order1": "lrn-pool-act", "spatial_norm": True, "activation": "prelu"},
    "alexnet-owt": {
        **{**SMALL, "activation": "prelu", "image_size": 28},
        **{"first_kernel": 5, "first_stride": 1, "map_side": 2},
    },
}
CLASS_WEIGHTS = {"alexnet-small": None, "alexnet-owt": torch.linspace(0.2, 3.0, 12)}
State = dict[str, dict[str, Tensor]]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 3, 28, 28, generator=generator), torch.randint(0, 12, (12,), generator=generator)


def initial_state(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build(name, 12, **SWITCHES[name]).state_dict()


def train_steps(name: str, layout: Layout, steps: range, start: State | None) -> State:
    """Take optimizer steps on this layout's share of each batch, in two parts; return the single-device state."""
    network = make_network(architecture(name, **SWITCHES[name]), 12, layout.links())
    network.load_state_dict(take_shard(start["model"] if start else initial_state(name), network, layout))
    network.to(layout.device)
    optimizer = make_optimizer(network, Optimizer(learning_rate=0.004))
    if start:
        load_optimizer_state(network, optimizer, {"momentum_buffer": take_shard(start["momentum"], network, layout)})
    replica, average = layout.wrap_for_training(network, 28), make_ema(network, 0.5)
    for step in steps:
        images, labels = (
            part.chunk(layout.num_batch_ranks)[layout.batch_rank].to(layout.device) for part in batch(step)
        )
        train_step(
            *(replica, optimizer, images, labels, autocast("float32", layout.device), 0.1),
            micro_batches=2,
            class_weights=CLASS_WEIGHTS[name],
        )
        average.update_parameters(network)
    return {
        "model": gather_full(network.state_dict(), network, layout),
        "momentum": gather_full(optimizer_state(network, optimizer)["momentum_buffer"], network, layout),
        "average": gather_full(average.module.state_dict(), network, layout),
    }


def state_file(name: str, shape: Shape, start: Shape | None = None) -> str:
    """Return what the state of `shape` is called, that of its first steps or of more after those of `start`."""
    return f"{name}-{shape[0]}x{shape[1]}" + (f"-after-{start[0]}x{start[1]}" if start else "")


def process(rank: int, folder: Path) -> None:
    """Be rank `rank` of every layout that has one: first all train, then each goes on from each."""
    for (name, shape), going_on in itertools.chain(itertools.product(CASES, [False]), itertools.product(CASES, [True])):
        if rank >= shape[0] * shape[1]:
            continue
        meeting = folder / f"meeting-{state_file(name, shape)}-{going_on}"
        with in_group(rank, shape, meeting, hybrid=architecture(name).hybrid) as layout:
            for start in LAYOUTS[name] if going_on else [None]:
                earlier = pickle.loads((folder / state_file(name, start)).read_bytes()) if start else None
                steps = range(STEPS, STEPS + 2) if start else range(STEPS)
                state = train_steps(name, layout, steps, earlier)
                if rank == 0:
                    (folder / state_file(name, shape, start)).write_bytes(pickle.dumps(state))
    with in_group(rank, (1, 4), folder / "meeting", hybrid=True) as layout:
        (folder / f"order-{rank}").write_bytes(pickle.dumps(order_of_a_step(layout)))
    four = {"init_method": f"file://{folder / 'meeting-of-four'}", "rank": rank, "world_size": 4}
    dist.init_process_group("gloo", **four)
    (folder / f"chosen-{rank}").write_bytes(pickle.dumps(chosen_among_four(rank, folder)))
    dist.barrier()


def chosen_among_four(rank: int, folder: Path) -> dict[str, Any]:
    """Return this process's place on meshes that need fewer than the four processes, or None; train on the first."""
    cpu = torch.device("cpu")
    layout = make_layout(cpu, (1, 3), 1, hybrid=False)
    if layout is not None:
        state = train_steps("alexnet-small", layout, range(STEPS), None)
        (folder / f"three-of-four-{rank}").write_bytes(pickle.dumps(state))
    placed: dict[str, Any] = {"largest that fits": layout and (layout.gather_objects(rank), layout.max_of(rank))}
    layout = make_layout(cpu, (1, 2), 2, hybrid=False, node="first" if rank == 0 else "second")
    return {**placed, "peers on a node": layout and layout.gather_objects(rank)}


def order_of_a_step(layout: Layout) -> list[str]:
    """Return when parts of the group's images are sent, arrive, and are computed, forward and back."""
    order: list[str] = []

    def spy(sent: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, async_op: bool = False, **rest: Any) -> Any:
            work = collective(*arguments, async_op=async_op, **rest)
            if not async_op:
                return work
            order.append(sent)
            return SimpleNamespace(wait=lambda: order.append("arrived") or work.wait())

        return call

    network = make_network(architecture("alexnet-owt", **SWITCHES["alexnet-owt"]), 12, layout.links())
    network.layer("fc6").register_forward_hook(lambda *_: order.append("fc6"))
    network.layer("fc6").register_full_backward_hook(lambda *_: order.append("fc6 backward"))
    images, labels = (part.chunk(layout.num_batch_ranks)[layout.batch_rank] for part in batch(0))
    with (
        mock.patch.object(dist, "all_gather_into_tensor", spy("send", dist.all_gather_into_tensor)),
        mock.patch.object(dist, "reduce_scatter_tensor", spy("send back", dist.reduce_scatter_tensor)),
    ):
        F.cross_entropy(network(images), labels).backward()
    return order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    # Layouts go one after another, each in a group of its own: rank 0 takes part in all of them.
    mp.spawn(process, (folder,), nprocs=4)
    return folder


@pytest.fixture(scope="module")
def states(folder: Path) -> dict[str, State]:
    return {path.name: pickle.loads(path.read_bytes()) for path in folder.glob("alexnet-*")}


def assert_same(one: State, other: State) -> None:
    for part in ("model", "momentum", "average"):
        assert one[part].keys() == other[part].keys()
        for name, tensor in other[part].items():
            # A gradient is a sum that each layout and each CPU rounds differently, in proportion to its size.
            tolerance = 1e-5 * max(1.0, tensor.abs().max().item())
            torch.testing.assert_close(one[part][name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_each_layout_trains_the_weights_of_one_process(states: dict[str, State], name: str, shape: Shape) -> None:
    single = states[state_file(name, (1, 1))]
    moved = max((single["model"][key] - tensor).abs().max() for key, tensor in initial_state(name).items())
    assert moved > 1e-3, "the steps must change the weights for the comparison to mean anything"
    assert_same(states[state_file(name, shape)], single)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_each_layout_goes_on_from_every_other_s_state(states: dict[str, State], name: str, shape: Shape) -> None:
    for start in LAYOUTS[name]:
        assert_same(states[state_file(name, shape, start)], states[state_file(name, (1, 1), (1, 1))])


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_is_that_of_the_step(states: dict[str, State], name: str) -> None:
    network = build(name, 12, **SWITCHES[name])
    losses = []
    for state in (initial_state(name), states[state_file(name, (1, 1))]["model"]):
        network.load_state_dict(state)
        losses.append(
            sum(F.cross_entropy(network(images), labels).item() for images, labels in map(batch, range(STEPS)))
        )
    assert losses[1] < losses[0], "the steps must have learned from the batches"


def test_a_part_of_the_images_travels_while_another_is_computed(folder: Path) -> None:
    forward = ["send", "send", "arrived", "fc6", "send", "arrived", "fc6", "arrived", "fc6"]
    backward = ["fc6 backward", "send back", "fc6 backward", "send back", "arrived"]
    backward += ["fc6 backward", "send back", "arrived", "arrived"]
    for rank in range(4):
        assert pickle.loads((folder / f"order-{rank}").read_bytes()) == forward + backward


def test_processes_beyond_the_largest_mesh_stand_aside(folder: Path) -> None:
    """Four replicas cannot share a batch of 12 in an elastic training of 1 or 3; three of the processes do."""
    chosen = [pickle.loads((folder / f"chosen-{rank}").read_bytes()) for rank in range(4)]
    assert [each["largest that fits"] for each in chosen] == [([0, 1, 2], 2)] * 3 + [None]
    single = pickle.loads((folder / state_file("alexnet-small", (1, 1))).read_bytes())
    for rank in range(3):
        state = pickle.loads((folder / f"three-of-four-{rank}").read_bytes())
        for name, tensor in single["model"].items():
            torch.testing.assert_close(state["model"][name], tensor, rtol=0, atol=1e-6, msg=name)


def test_towers_are_on_one_node(folder: Path) -> None:
    """With one process on the first node and three on the second, two of the second form the pair."""
    chosen = [pickle.loads((folder / f"chosen-{rank}").read_bytes()) for rank in range(4)]
    assert [each["peers on a node"] for each in chosen] == [None, [1, 2], [1, 2], None]
