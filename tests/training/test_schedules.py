"""The schedules against their formulas, and against the epochs of the log books."""

import re
from typing import Any

import pytest
from torch import nn

from errors import InputError
from training.config import Optimizer
from training.optim.optimizer import load_lr, lr_by_parameter, make_optimizer
from training.optim.schedules import Schedule
from training.recipes import RECIPES


class Layers(nn.Module):
    """Parameters with the names of two layers of the networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Linear(1, 1), nn.Linear(1, 1)


def all_rates(config: Optimizer, steps_per_epoch: int, errors: list[float]) -> list[dict[str, float]]:
    """Return each parameter's learning rate at every step of a training whose epochs end with these errors."""
    model = Layers()
    optimizer = make_optimizer(model, config)
    schedule = Schedule(optimizer, config, steps_per_epoch, len(errors))
    seen = []
    for error in errors:
        for _ in range(steps_per_epoch):
            seen.append(lr_by_parameter(model, optimizer))
            assert schedule.learning_rate == seen[-1]["conv2.weight"]
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(error)
    return seen


def rates(config: Optimizer, steps_per_epoch: int, errors: list[float]) -> list[float]:
    return [step["conv2.weight"] for step in all_rates(config, steps_per_epoch, errors)]


def test_linear_falls_to_the_last_step() -> None:
    assert rates(Optimizer(0.1, schedule="linear"), 2, [0.5, 0.5]) == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_warm_up_rises_before_it_falls() -> None:
    seen = rates(Optimizer(0.1, schedule="linear", warmup_epochs=1.0), 3, [0.5] * 4)
    assert seen[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert seen[3:] == pytest.approx([0.1 * (9 - step) / 9 for step in range(9)])


def test_a_constant_rate_rises_to_its_height_and_stays() -> None:
    seen = rates(Optimizer(0.1, schedule="constant", warmup_epochs=1.0), 3, [0.5] * 3)
    assert seen == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 6])


def test_a_warm_up_of_no_whole_number_of_steps_ends_below_its_height() -> None:
    assert rates(Optimizer(0.1, schedule="constant", warmup_epochs=0.5), 3, [0.5])[:2] == pytest.approx([0.04, 0.08])


def test_cosine_falls_by_half_a_wave_after_its_warm_up() -> None:
    seen = rates(Optimizer(0.2, schedule="cosine", warmup_epochs=1.0), 2, [0.5] * 5)
    assert seen[:2] == pytest.approx([0.2 / 3, 0.4 / 3])
    # cos(0), cos(pi/4), cos(pi/2), cos(3 pi/4) at steps 2, 4, 6, 8.
    assert seen[2::2] == pytest.approx([0.2, 0.1 * (1 + 2**-0.5), 0.1, 0.1 * (1 - 2**-0.5)])


def test_plateau_divides_by_ten_when_the_error_stops_improving_and_three_times_only() -> None:
    errors = [0.9, 0.8, 0.8, 0.8] + [0.8] * 12
    seen = all_rates(Optimizer(0.01, schedule="plateau", patience=1, bias_lr_scale=2.0), 1, errors)
    weights = [step["conv2.weight"] for step in seen]
    assert weights[:4] == pytest.approx([0.01] * 4)
    assert weights[4] == pytest.approx(0.001), "two epochs without a better error: one more than the patience"
    assert weights[-1] == pytest.approx(1e-5)
    assert len({round(rate, 9) for rate in weights}) == 4
    assert [step["conv1.bias"] for step in seen] == pytest.approx([2 * rate for rate in weights])


def test_alexnet_2012_changes_its_rates_in_the_epochs_of_run_145() -> None:
    # Log book: 25 and 51 all weights, 67 conv1 and the noise, 72 conv1 frozen, 79 the rest, end 91. Biases begin with
    # twice the rate, and drop once, with the first drop of the weights.
    config = RECIPES["alexnet-2012"]()
    assert (config.epochs, config.augmentation.lighting_off_epoch) == (91, 67)
    assert config.optimizer.freeze == {"conv1": 72}
    seen = all_rates(config.optimizer, 2, [0.5] * config.epochs)
    changes: list[tuple[int, dict[str, float]]] = []
    for number, step in enumerate(seen):
        now = {name: float(f"{rate:.6g}") for name, rate in step.items()}
        if not changes or changes[-1][1] != now:
            assert number % 2 == 0, "changes are at the beginning of an epoch"
            changes.append((number // 2, now))

    def all_four(conv1: float, conv2: float, biases: float) -> dict[str, float]:
        return {"conv1.weight": conv1, "conv2.weight": conv2, "conv1.bias": biases, "conv2.bias": biases}

    assert changes == [
        (0, all_four(1e-2, 1e-2, 2e-2)),
        (25, all_four(1e-3, 1e-3, 2e-3)),
        (51, all_four(1e-4, 1e-4, 2e-3)),
        (67, all_four(1e-5, 1e-4, 2e-3)),
        (79, all_four(1e-5, 1e-5, 2e-3)),
    ]


def test_a_layer_s_own_script_is_absolute_and_for_its_weights_alone() -> None:
    config = Optimizer(
        0.01,
        schedule="piecewise",
        bias_lr_scale=2.0,
        layer_lr_scale={"conv1": 0.5},
        milestones={1: 1e-3, 4: 1e-4},
        layer_milestones={"conv1": {2: 1e-5}},
    )
    seen = all_rates(config, 1, [0.5] * 5)
    assert [step["conv1.weight"] for step in seen] == pytest.approx([5e-3, 5e-4, 1e-5, 1e-5, 1e-5])
    assert [step["conv1.bias"] for step in seen] == pytest.approx([1e-2, 1e-3, 1e-3, 1e-3, 1e-4])
    assert [step["conv2.weight"] for step in seen] == pytest.approx([1e-2, 1e-3, 1e-3, 1e-3, 1e-4])


def test_geometric_are_run_170_s() -> None:
    # dexp[250,0,4] from 0.01, biases dexp[10,0,2] from 0.02; 95 epochs of 4 steps.
    config = Optimizer(0.01, schedule="geometric", lr_ratio=250, plateaus=4, bias_lr_scale=2, bias_lr_ratio=10)
    seen = all_rates(config, 4, [0.5] * 95)
    quarter = [0.01, 0.0015874, 0.00025198, 0.00004]
    for name, lasting in (("conv1.weight", quarter), ("conv2.bias", [0.02, 0.002])):
        values = [step[name] for step in seen]
        length = len(values) // len(lasting)
        assert values == pytest.approx([rate for rate in lasting for _ in range(length)], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "piecewise"}, "schedule is 'piecewise': optimizer.milestones is empty; use at least one"),
        (
            {"schedule": "linear", "milestones": {3: 0.1}},
            "milestones is {3: 0.1}, which optimizer.schedule 'linear' would not",
        ),
        ({"bias_milestones": {3: 0.1}}, "leave it empty, or choose piecewise"),
        ({"warmup_epochs": 5.0}, "leave it at 0.0, or choose constant or linear or cosine"),
        ({"schedule": "cosine", "patience": 7}, "leave it at 3, or choose plateau"),
        ({"schedule": "linear", "plateaus": 9}, "leave it at 4, or choose geometric"),
        ({"schedule": "piecewise", "milestones": {3: 0}}, "milestones 3 is 0; use a finite number above 0"),
        (
            {"schedule": "piecewise", "milestones": {-3: 0.1}},
            "the epoch of optimizer.milestones is -3; use a whole number from 0",
        ),
        ({"weight_decay": float("nan")}, "weight_decay is nan; use a finite number from 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; use a finite number above 0"),
        ({"layer_weight_decay": {"fc8": -1.0}}, "layer_weight_decay fc8 is -1.0; use a finite number from 0"),
    ],
)
def test_what_a_schedule_would_not_read_and_rates_out_of_range_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Optimizer(**fields)


@pytest.mark.parametrize(
    "config",
    [
        Optimizer(0.1, schedule="constant"),
        Optimizer(0.1, schedule="linear"),
        Optimizer(0.1, schedule="cosine", warmup_epochs=1.5),
        Optimizer(0.1, schedule="plateau", patience=2, bias_lr_scale=2.0),
        Optimizer(0.1, schedule="piecewise", milestones={2: 0.01, 4: 0.001}, layer_milestones={"conv1": {3: 1e-5}}),
        Optimizer(0.1, schedule="geometric"),
    ],
    ids=lambda config: config.schedule,
)
def test_a_schedule_continues_from_its_state(config: Optimizer) -> None:
    errors = [0.9, 0.5, 0.6, 0.6, 0.6, 0.6]
    whole = all_rates(config, 2, errors)
    model = Layers()
    first = make_optimizer(model, config)
    schedule = Schedule(first, config, 2, len(errors))
    for error in errors[:3]:
        for _ in range(2):
            first.step()
            schedule.after_step()
        schedule.after_epoch(error)
    second = make_optimizer(model, config)
    resumed = Schedule(second, config, 2, len(errors))
    load_lr(model, second, lr_by_parameter(model, first))
    resumed.load_state_dict(schedule.state_dict())
    seen = []
    for error in errors[3:]:
        for _ in range(2):
            seen.append(lr_by_parameter(model, second))
            second.step()
            resumed.after_step()
        resumed.after_epoch(error)
    assert seen == whole[6:]
