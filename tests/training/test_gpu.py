"""The same code on a GPU: what the CPU tests hold, within the GPU's arithmetic. Needs neither Ray nor MLflow."""

import dataclasses
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mesh import in_group
from test_parallel import STEPS, State, train_steps
from torch import Tensor

from training.config import Optimizer
from training.load_model import LoadedModel
from training.loop.compile import Compile, make_mean_loss
from training.loop.precision import autocast, choose_format
from training.loop.state import build_state
from training.loop.step import log_probabilities, train_step
from training.loop.train import train
from training.models import architecture, build
from training.optim.optimizer import freeze_layers, make_optimizer
from training.parallel.layout import Layout
from training.recipes import RECIPES
from training.serving import image_classifier
from training.serving.graph import export_program

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


def test_the_network_gives_the_cpu_s_answers() -> None:
    torch.manual_seed(0)
    network, images = build("alexnet", 10, init="he").eval(), torch.randn(4, 3, 224, 224) * 50
    expected = log_probabilities(network, images, autocast("float32", torch.device("cpu")))
    network.to(GPU, memory_format=torch.channels_last)
    answers = log_probabilities(network, images.to(GPU), autocast("float32", GPU)).cpu()
    # cuDNN may use tf32 in convolutions: 10 bits of mantissa.
    torch.testing.assert_close(answers, expected, rtol=2e-2, atol=2e-2)


def test_auto_is_bfloat16_and_ten_crops_are_averaged_there() -> None:
    assert choose_format("auto", GPU)[0] == "bfloat16"
    network = build("alexnet-small", 10, init="he").to(GPU, memory_format=torch.channels_last).eval()
    crops = torch.randn(3, 10, 3, 28, 28, device=GPU)
    logs = log_probabilities(network, crops, autocast("bfloat16", GPU))
    one_by_one = torch.stack([log_probabilities(network, crops[:, i], autocast("bfloat16", GPU)) for i in range(10)])
    torch.testing.assert_close(logs, torch.logsumexp(one_by_one, 0) - math.log(10))


def test_a_step_learns_in_bfloat16() -> None:
    torch.manual_seed(0)
    network = build("alexnet-small", 10, init="he").to(GPU, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(32, 3, 28, 28, device=GPU), torch.arange(32, device=GPU) % 10
    losses = [train_step(network, optimizer, images, labels, autocast("bfloat16", GPU)).item() for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def weights_after_steps(compile: Compile) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights before and after steps without dropout, conv1 frozen halfway."""
    torch.manual_seed(0)
    network = build("alexnet-small", 10, init="he", dropout=0.0).to(GPU, memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = Optimizer(learning_rate=0.004, momentum_form="2012", freeze={"conv1": 1})
    optimizer = make_optimizer(network, config)
    for epoch in range(2):
        freeze_layers(network, config, epoch)
        mean_loss = make_mean_loss(compile, GPU, fullgraph=True)
        for step in range(6):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(16, 3, 28, 28, generator=generator).to(GPU)
            labels = torch.randint(0, 10, (16,), generator=generator).to(GPU)
            train_step(network, optimizer, images, labels, autocast("float32", GPU), loss_function=mean_loss)
    return before, network.state_dict()


@pytest.mark.parametrize("compile", ["on", "graphs"])
def test_compiled_steps_train_the_same_weights(compile: Compile) -> None:
    before, eager = weights_after_steps("off")
    _, compiled = weights_after_steps(compile)
    for name, tensor in eager.items():
        # tf32 in cuDNN's convolutions: ten bits, over a dozen steps.
        assert (compiled[name] - tensor).norm() <= 0.1 * (tensor - before[name]).norm(), name


@pytest.mark.parametrize("compile", ["off", "on", "graphs"])
def test_training_on_the_loader_learns_the_tiny_classes(tiny_shards: Path, compile: Compile) -> None:
    base = RECIPES["tiny-imagenet"]()
    config = dataclasses.replace(
        base,
        data=str(tiny_shards),
        epochs=8,
        batch_size=8,
        compile=compile,
        optimizer=dataclasses.replace(base.optimizer, learning_rate=0.005),
    )
    seen: list[float] = []
    state = build_state(config, Layout(GPU), num_threads=4)
    train(state, lambda _metrics, _step: None, lambda _state, metrics: seen.append(metrics["val/top1"]))
    assert max(seen) > 0.6


def process(rank: int, name: str, folder: Path) -> None:
    torch.backends.cudnn.allow_tf32 = False
    with in_group(rank, (1, 2), folder / "meeting", hybrid=architecture(name).hybrid, gpus=True) as layout:
        state = train_steps(name, layout, range(STEPS), None)
    if rank == 0:
        (folder / "state").write_bytes(pickle.dumps(state))


@pytest.mark.parametrize("name", ["alexnet-small", "alexnet-owt"])
def test_a_network_on_two_gpus_trains_the_cpu_s_weights(tmp_path: Path, name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL takes one process on each")
    mp.spawn(process, (name, tmp_path), nprocs=2)
    shared: State = pickle.loads((tmp_path / "state").read_bytes())
    single = train_steps(name, Layout(torch.device("cpu")), range(STEPS), None)
    for parameter, tensor in single["model"].items():
        torch.testing.assert_close(shared["model"][parameter], tensor, rtol=0, atol=1e-4, msg=parameter)


def test_a_served_network_runs_on_the_gpu(
    untrained: Callable[..., LoadedModel], raw_folder: Path, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")  # it comes with MLflow
    trained = untrained()
    torch.export.save(export_program(trained), tmp_path / image_classifier.MODEL_FILE)
    image_classifier.write_description(tmp_path, trained.preprocessing, trained.classes)
    photos = pandas.DataFrame([path.read_bytes() for path in raw_folder.glob("val/*/*.JPEG")])
    # MLflow calls it by this name.
    on_gpu, on_cpu = (image_classifier._load_pyfunc(str(tmp_path), {"device": name}) for name in (None, "cpu"))
    for found, expected in zip(on_gpu.predict(photos), on_cpu.predict(photos), strict=True):
        probabilities = [{entry["id"]: entry["probability"] for entry in best} for best in (found, expected)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=2e-2)
