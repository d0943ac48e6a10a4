import pytest
import torch
from torch import nn

from training.config import Optimizer
from training.optimizer import Schedule, load_momentum, make_optimizer, momentum_by_name


def rates(config: Optimizer, steps_per_epoch: int, errors: list[float]) -> list[float]:
    """Return the learning rate of every step of a training whose epochs end with these validation errors."""
    optimizer = make_optimizer(nn.Linear(1, 1), config)
    schedule = Schedule(optimizer, config, steps_per_epoch, len(errors))
    seen = []
    for error in errors:
        for _ in range(steps_per_epoch):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(error)
    return seen


def test_linear_falls_to_the_last_step() -> None:
    assert rates(Optimizer(0.1, schedule="linear"), 2, [0.5, 0.5]) == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_warm_up_rises_before_it_falls() -> None:
    seen = rates(Optimizer(0.1, schedule="linear", warmup_epochs=1.0), 3, [0.5] * 4)
    assert seen[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert seen[3:] == pytest.approx([0.1 * (9 - step) / 9 for step in range(9)])


def test_plateau_divides_by_ten_when_the_error_stops_improving_and_three_times_only() -> None:
    errors = [0.9, 0.8, 0.8, 0.8] + [0.8] * 12
    seen = rates(Optimizer(0.01, schedule="plateau", patience=1), 1, errors)
    assert seen[:4] == pytest.approx([0.01] * 4)
    assert seen[4] == pytest.approx(0.001), "two epochs without a better error: one more than the patience"
    assert seen[-1] == pytest.approx(1e-5)
    assert len({round(rate, 9) for rate in seen}) == 4


@pytest.mark.parametrize("kind", ["constant", "linear", "plateau"])
def test_a_schedule_continues_from_its_state(kind: str) -> None:
    config = Optimizer(0.1, schedule=kind, patience=0)  # type: ignore[arg-type]
    errors = [0.9, 0.9, 0.9, 0.7, 0.8, 0.8]
    whole = rates(config, 2, errors)
    first = make_optimizer(nn.Linear(1, 1), config)
    schedule = Schedule(first, config, 2, len(errors))
    for error in errors[:3]:
        for _ in range(2):
            first.step()
            schedule.after_step()
        schedule.after_epoch(error)
    second = make_optimizer(nn.Linear(1, 1), config)
    resumed = Schedule(second, config, 2, len(errors))
    second.param_groups[0]["lr"] = first.param_groups[0]["lr"]
    resumed.load_state_dict(schedule.state_dict())
    seen = []
    for error in errors[3:]:
        for _ in range(2):
            seen.append(second.param_groups[0]["lr"])
            second.step()
            resumed.after_step()
        resumed.after_epoch(error)
    assert seen == pytest.approx(whole[6:])


def test_the_update_is_the_paper_s() -> None:
    # Section 5: v <- 0.9 v - 0.0005 lr w - lr gradient; w <- w + v, at a constant learning rate.
    layer = nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer(layer, Optimizer(0.1))
    weight, velocity = layer.weight.item(), 0.0
    for gradient in (0.3, -0.2, 0.5):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        velocity = 0.9 * velocity - 0.0005 * 0.1 * weight - 0.1 * gradient
        weight += velocity
        assert layer.weight.item() == pytest.approx(weight, rel=1e-6)


def test_momentum_travels_by_name() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    first, second = make_optimizer(one, Optimizer()), make_optimizer(other, Optimizer())
    assert momentum_by_name(one, first) == {}
    for _ in range(2):
        one(torch.ones(1, 2)).sum().backward()
        first.step()
    other.load_state_dict(one.state_dict())
    load_momentum(other, second, momentum_by_name(one, first))
    for layer, optimizer in ((one, first), (other, second)):
        optimizer.zero_grad()
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert torch.equal(one.weight, other.weight)
