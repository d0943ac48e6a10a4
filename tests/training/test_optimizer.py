"""The update of 2012 against torch's, settings of layers and biases, frozen layers, micro-batches."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from errors import InputError
from training.config import Optimizer
from training.loop.precision import autocast
from training.loop.step import train_step
from training.models import build
from training.optim.optimizer import (
    check_layers,
    freeze_layers,
    load_lr,
    load_optimizer_state,
    lr_by_parameter,
    make_ema,
    make_optimizer,
    optimizer_state,
)

CPU = torch.device("cpu")


def set_rate(optimizer: torch.optim.SGD, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def network() -> nn.Module:
    """Two layers, named as those of the networks are."""
    torch.manual_seed(0)
    model = nn.Module()
    model.conv1, model.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)
    model.forward = lambda x: model.fc2(torch.tanh(model.conv1(x)))  # type: ignore[method-assign]
    return model


def step(model: nn.Module, optimizer: torch.optim.SGD, seed: int) -> None:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad(set_to_none=True)
    model(inputs).square().mean().backward()
    optimizer.step()


def test_the_form_of_2012_keeps_its_velocity_over_a_drop() -> None:
    # Section 5: v <- 0.9 v - 0.0005 lr w - lr gradient; w <- w + v, with whatever lr is at that step.
    torch.manual_seed(0)
    layer = nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer(layer, Optimizer(0.1, momentum_form="2012"))
    weight, velocity = layer.weight.item(), 0.0
    for rate, gradient in ((0.1, 0.3), (0.1, -0.2), (0.01, 0.5), (0.01, 0.1), (0.001, -0.4), (0.001, 0.2)):
        set_rate(optimizer, rate)
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        velocity = 0.9 * velocity - 0.0005 * rate * weight - rate * gradient
        weight += velocity
        assert layer.weight.item() == pytest.approx(weight, abs=1e-6)


def test_the_form_of_torch_shrinks_its_velocity_at_a_drop() -> None:
    steps = {}
    for form in ("torch", "2012"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(layer.weight)
        optimizer = make_optimizer(layer, Optimizer(0.1, weight_decay=0.0, momentum_form=form))  # type: ignore[arg-type]
        layer.weight.grad = torch.ones(1, 1)
        optimizer.step()
        before = layer.weight.item()
        set_rate(optimizer, 0.01)
        layer.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        steps[form] = layer.weight.item() - before
    assert steps == pytest.approx({"torch": -0.009, "2012": -0.09})


def test_both_forms_are_torch_s_sgd_while_the_rate_is_constant() -> None:
    results = []
    for form in (None, "torch", "2012"):
        model = network()
        if form is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        else:
            optimizer = make_optimizer(model, Optimizer(0.1, momentum_form=form))  # type: ignore[arg-type]
        for seed in range(20):
            step(model, optimizer, seed)
        results.append(model.state_dict())
    for other in results[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in results[0].items())


def test_biases_and_layers_have_rates_and_decay_of_their_own() -> None:
    model = network()
    config = Optimizer(
        0.1,
        momentum=0.0,
        weight_decay=0.5,
        bias_lr_scale=2.0,
        bias_decay=False,
        layer_lr_scale={"conv1": 0.1},
        layer_weight_decay={"conv1": 0.25},
    )
    optimizer = make_optimizer(model, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    expected = {
        "conv1.weight": before["conv1.weight"] - 0.01 * (1 + 0.25 * before["conv1.weight"]),
        "conv1.bias": before["conv1.bias"] - 0.02,
        "fc2.weight": before["fc2.weight"] - 0.1 * (1 + 0.5 * before["fc2.weight"]),
        "fc2.bias": before["fc2.bias"] - 0.2,
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)


def test_a_layer_that_the_network_has_not_is_named() -> None:
    script = {"schedule": "piecewise", "milestones": {1: 0.1}}
    for config in (
        Optimizer(freeze={"conv9": 3}),
        Optimizer(layer_lr_scale={"conv9": 0.5}),
        Optimizer(layer_weight_decay={"conv9": 0.5}),
        Optimizer(layer_milestones={"conv9": {1: 0.1}}, **script),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match="names the layer 'conv9', which is unknown; use conv1, fc2"):
            make_optimizer(network(), config)
        with pytest.raises(InputError, match="names the layer 'conv9', which is unknown; use conv1, fc2"):
            check_layers(network(), config, epochs=9)
    check_layers(network(), Optimizer(freeze={"conv1": 3, "fc2": 9}), epochs=9)
    with pytest.raises(InputError, match=r"optimizer.freeze is \{.*\}: no layer is left to train until epoch 9"):
        check_layers(network(), Optimizer(freeze={"conv1": 3, "fc2": 8}), epochs=9)


def test_a_frozen_layer_keeps_weights_and_velocity_and_others_go_on() -> None:
    model = network()
    optimizer = make_optimizer(model, Optimizer(0.1, momentum_form="2012", freeze={"conv1": 2}))
    step(model, optimizer, 0)
    assert not freeze_layers(model, Optimizer(freeze={"conv1": 2}), epoch=1)
    assert freeze_layers(model, Optimizer(freeze={"conv1": 2}), epoch=2)
    assert not freeze_layers(model, Optimizer(freeze={"conv1": 2}), epoch=3), "that is no news"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    velocity = optimizer_state(model, optimizer)["momentum_buffer"]["conv1.weight"].clone()
    step(model, optimizer, 1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("conv1."), name
    assert torch.equal(optimizer_state(model, optimizer)["momentum_buffer"]["conv1.weight"], velocity)


@pytest.mark.parametrize("form", ["torch", "2012"])
def test_velocities_and_rates_travel_by_name(form: str) -> None:
    config = Optimizer(0.1, momentum_form=form, layer_lr_scale={"conv1": 0.5})  # type: ignore[arg-type]
    one, other = network(), network()
    first, second = make_optimizer(one, config), make_optimizer(other, config)
    assert optimizer_state(one, first) == {}
    for seed in range(2):
        step(one, first, seed)
    set_rate(first, 0.01)  # a drop between the last step and the checkpoint
    other.load_state_dict(one.state_dict())
    load_optimizer_state(other, second, optimizer_state(one, first))
    load_lr(other, second, lr_by_parameter(one, first))
    step(one, first, 2)
    step(other, second, 2)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in one.state_dict().items())


def test_a_velocity_is_kept_at_a_rate_of_zero() -> None:
    model = network()
    optimizer = make_optimizer(model, Optimizer(0.1, momentum_form="2012"))
    step(model, optimizer, 0)
    before = {name: tensor.clone() for name, tensor in optimizer_state(model, optimizer)["momentum_buffer"].items()}
    set_rate(optimizer, 0.0)
    after = optimizer_state(model, optimizer)["momentum_buffer"]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_velocity_is_taken_up_in_the_memory_format_of_its_weights() -> None:
    def convolution() -> tuple[nn.Module, torch.optim.SGD]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, make_optimizer(model, Optimizer(0.1))

    def take_step(model: nn.Module, optimizer: torch.optim.SGD) -> None:
        optimizer.zero_grad()
        model(torch.arange(75.0).view(1, 3, 5, 5) / 75).square().mean().backward()
        optimizer.step()

    (one, first), (other, second) = convolution(), convolution()
    take_step(one, first)
    other.load_state_dict(one.state_dict())
    stored = {name: tensor.contiguous() for name, tensor in optimizer_state(one, first)["momentum_buffer"].items()}
    load_optimizer_state(other, second, {"momentum_buffer": stored})
    take_step(one, first)
    take_step(other, second)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in one.state_dict().items())


class CountingReplica(nn.Module):
    """A network that counts how often its gradients are kept back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.kept_back = model, 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def no_sync(self) -> AbstractContextManager[None]:
        self.kept_back += 1
        return nullcontext()


def test_gradients_are_shared_once_a_batch() -> None:
    replica = CountingReplica(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    optimizer = make_optimizer(replica.model, Optimizer(0.1))
    images, labels = torch.randn(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64)
    train_step(replica, optimizer, images, labels, autocast("float32", CPU), micro_batches=4)
    assert replica.kept_back == 3


def steps_in_parts(micro_batches: int) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = build("alexnet-small", 10, init="he", dropout=0.0)
    optimizer = make_optimizer(model, Optimizer(0.01))
    losses = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(13, 3, 28, 28, generator=generator)
        labels = torch.randint(0, 10, (13,), generator=generator)
        loss = train_step(model, optimizer, images, labels, autocast("float32", CPU), 0.1, micro_batches)
        losses.append(loss.item())
    return losses, model.state_dict()


def test_micro_batches_of_unequal_size_take_the_step_of_the_whole_batch() -> None:
    losses, whole = steps_in_parts(1)
    for count in (4, 13):
        some_losses, parts = steps_in_parts(count)
        assert some_losses == pytest.approx(losses, abs=1e-5)
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_the_average_is_exponential_and_continues() -> None:
    model = network()
    optimizer = make_optimizer(model, Optimizer(0.1))
    average, expected = make_ema(model, 0.9), None
    for seed in range(6):
        step(model, optimizer, seed)
        now = model.get_parameter("fc2.weight").detach().clone()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
        if seed == 3:
            resumed = make_ema(average.module, 0.9, steps=4)
            average = resumed
        average.update_parameters(model)
    assert expected is not None
    torch.testing.assert_close(average.module.get_parameter("fc2.weight").detach(), expected)
