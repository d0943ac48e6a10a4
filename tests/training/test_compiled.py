"""The compiled step: eager's numbers, the same ones each time, in every layout; and what cannot be compiled."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mesh import Shape, in_group
from test_parallel import SWITCHES as WITH_PRELU
from test_parallel import batch
from torch import Tensor
from torch._dynamo.utils import counters

from errors import InputError
from training.config import Config, Optimizer, Parallel
from training.loop.compile import Compile, check_compiler, make_mean_loss, resolve_compile
from training.loop.precision import autocast
from training.loop.state import TrainState, build_state
from training.loop.step import mean_loss, train_step
from training.loop.train import train
from training.models import architecture, build, make_network
from training.optim.optimizer import make_optimizer
from training.parallel.layout import Layout, gather_full, take_shard
from training.recipes import RECIPES

CPU = torch.device("cpu")
SWITCHES = {name: {**switches, "activation": "relu"} for name, switches in WITH_PRELU.items()}
LAYOUTS: list[tuple[str, Shape]] = [
    ("alexnet-small", (1, 2)),
    ("alexnet-small", (2, 1)),
    ("alexnet-owt", (1, 2)),
    ("alexnet-owt", (2, 1)),
]


def freezing(data: Path) -> Config:
    """conv1 stops after one of three epochs of six steps, each in three parts; weights are averaged."""
    base = RECIPES["tiny-imagenet"]()
    return dataclasses.replace(
        base,
        data=str(data),
        epochs=3,
        batch_size=16,
        micro_batches=3,
        label_smoothing=0.1,
        precision="float32",
        network=dataclasses.replace(base.network, dropout=0.0),
        optimizer=Optimizer(
            0.002,
            schedule="piecewise",
            milestones={2: 2e-4},
            momentum_form="2012",
            bias_lr_scale=2.0,
            freeze={"conv1": 1},
            ema_decay=0.8,
        ),
    )


@pytest.mark.parametrize("class_weights", [None, torch.linspace(0.2, 3.0, 12)], ids=["plain", "class weights"])
def test_compiled_it_has_eager_s_loss_and_gradients(class_weights: Tensor | None) -> None:
    torch.manual_seed(0)
    network = build("alexnet-small", 12, **SWITCHES["alexnet-small"]).to(memory_format=torch.channels_last)
    images, labels = batch(0)

    def loss_and_gradients(function: object) -> tuple[Tensor, list[Tensor]]:
        loss = function(network, images, labels, 0.1, class_weights)  # type: ignore[operator]
        return loss, list(torch.autograd.grad(loss, list(network.parameters())))

    loss, gradients = loss_and_gradients(mean_loss)
    compiled_loss, compiled = loss_and_gradients(make_mean_loss("on", CPU, fullgraph=True))
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    for (name, _), one, other in zip(network.named_parameters(), compiled, gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), name
        # The fused optimizer reads parameter and gradient in the order of their memory.
        assert one.stride() == other.stride(), name


class Run:
    """Trains; keeps how many graphs had been compiled after each epoch."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        self.graphs: list[int] = []
        counters.clear()
        self.state = build_state(config, Layout(CPU), 1)
        train(self.state, lambda _metrics, _step: None, self.save)

    def save(self, _state: TrainState, _metrics: dict[str, float]) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])

    @property
    def weights(self) -> dict[str, Tensor]:
        return {**self.state.network.state_dict(), **self.state.eval_model.state_dict(prefix="average.")}


@pytest.mark.slow
def test_compiled_trainings_repeat_themselves_and_are_eager_s_but_for_rounding(tiny_shards: Path) -> None:
    config = freezing(tiny_shards)
    noisy = dataclasses.replace(config, compile="on", network=dataclasses.replace(config.network, dropout=0.2))
    run, again = Run(noisy), Run(noisy)
    for name, tensor in run.weights.items():
        assert torch.equal(again.weights[name], tensor), name
    # Parts of 6 and 4 images, twice as conv1 is frozen after the first epoch; validation's last batch is of 10 images.
    assert run.graphs == [2, 4, 4]
    compiled, eager = Run(dataclasses.replace(config, compile="on")), Run(config)
    assert eager.graphs == [0, 0, 0]
    for name, tensor in eager.weights.items():
        # Rounding grows from step to step, here over 18 of them; most of all in biases, which begin at 0.
        difference = (compiled.weights[name] - tensor).norm() / tensor.norm()
        assert difference <= 3e-3, f"{name} {difference}"


def train_steps(name: str, layout: Layout, compile: Compile) -> dict[str, Tensor]:
    """Take steps on this process's share of each batch, the first layer frozen before the last; return all weights."""
    torch.manual_seed(0)
    initial = build(name, 12, **SWITCHES[name]).state_dict()
    network = make_network(architecture(name, **SWITCHES[name]), 12, layout.links()).to(
        memory_format=torch.channels_last
    )
    network.load_state_dict(take_shard(initial, network, layout))
    optimizer = make_optimizer(network, Optimizer(learning_rate=0.004))
    for steps in (range(3), range(3, 4)):
        replica, function = layout.wrap_for_training(network, 28), make_mean_loss(compile, CPU, fullgraph=False)
        for step in steps:
            images, labels = (part.chunk(layout.num_batch_ranks)[layout.batch_rank] for part in batch(step))
            train_step(replica, optimizer, images, labels, autocast("float32", CPU), loss_function=function)
        network.layer("conv1").requires_grad_(False)
    return gather_full(network.state_dict(), network, layout)


def process(rank: int, folder: Path) -> None:
    for name, shape in LAYOUTS:
        meeting = folder / f"meeting-{name}-{shape}"
        with in_group(rank, shape, meeting, hybrid=architecture(name).hybrid) as layout:
            found = [train_steps(name, layout, compile) for compile in ("off", "on")]
        (folder / f"{name}-{shape}-{rank}").write_bytes(pickle.dumps(found))


@pytest.mark.slow
def test_every_layout_trains_the_same_weights_when_compiled(tmp_path: Path) -> None:
    mp.spawn(process, (tmp_path,), nprocs=2)
    for name, shape in LAYOUTS:
        for rank in (0, 1):
            eager, compiled = pickle.loads((tmp_path / f"{name}-{shape}-{rank}").read_bytes())
            for key, tensor in eager.items():
                message = f"{name} {shape} rank {rank}: {key}"
                torch.testing.assert_close(compiled[key], tensor, rtol=0, atol=2e-5, msg=message)


def test_auto_compiles_on_gpus_alone_and_is_what_the_fast_recipe_has() -> None:
    assert RECIPES["alexnet-owt"]().compile == "auto"
    assert resolve_compile("auto", CPU) == "off"
    assert resolve_compile("auto", torch.device("cuda", 0)) == "on"
    assert make_mean_loss("auto", CPU, fullgraph=True) is mean_loss


def test_cuda_graphs_are_for_one_worker_on_a_gpu_and_undivided_batches() -> None:
    with pytest.raises(InputError, match="compile is 'graphs': it needs a GPU; use off, auto or on"):
        check_compiler("graphs", CPU)
    config = dataclasses.replace(RECIPES["alexnet-owt"](), compile="graphs")
    with pytest.raises(InputError, match="it needs micro_batches 1, not 2; use on"):
        dataclasses.replace(config, micro_batches=2)
    with pytest.raises(InputError, match=r"needs parallel\.data x parallel\.model 1, not 4"):
        dataclasses.replace(config, parallel=Parallel(2, 2))


def test_no_compiler_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config  # what reads CXX, once

    check_compiler("auto", CPU)  # has nothing to compile
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    torch.compiler.reset()
    with pytest.raises(InputError, match=r"compile is 'on', but torch cannot compile here \(.*no-such-compiler.*g\+\+"):
        check_compiler("on", CPU)
