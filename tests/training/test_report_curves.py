import math

import pytest

from training.report.curves import BOTTOM, LEFT, POINTS, RIGHT, TOP, make_charts
from training.tracking import create_run, open_client, read_history


def places(line):
    return [tuple(map(float, place.split(","))) for place in line.points.split(" ")]


def test_a_point_lies_where_its_step_and_value_are_between_the_ticks():
    history = {"train/loss": {0: 4.0, 50: 2.0, 100: 0.0}, "val/loss": {50: 1.0}}
    (chart,) = make_charts(history)
    assert chart.title == "Loss"
    ticks = {float(tick.text): tick.at for tick in chart.y_ticks}
    assert (ticks[0.0], ticks[4.0]) == (BOTTOM, TOP)
    train, val = chart.lines
    assert places(train) == [(LEFT, TOP), ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2), (RIGHT, BOTTOM)]
    assert places(val)[0] == pytest.approx(((LEFT + RIGHT) / 2, ticks[1.0]))
    assert len(places(val)) == 2, "one point alone would not be drawn"
    assert [tick.text for tick in chart.x_ticks][::4] == ["0", "100"]
    assert "train from 4 to 0, lowest 0, highest 4; val from 1 to 1" in chart.summary


def test_the_drops_of_a_learning_rate_are_equal_steps():
    """As in 2012: divided by 10 three times."""
    (chart,) = make_charts({"train/lr": {step: 10.0 ** (-2 - step // 10) for step in range(40)}})
    heights = sorted({y for _, y in places(chart.lines[0])})
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert {"0.01", "0.001", "0.0001", "1e-05"} <= {tick.text for tick in chart.y_ticks}
    (linear,) = make_charts({"train/lr": {0: 0.02, 10: 0.01, 20: 0.0}})
    assert places(linear.lines[0])[-1][1] == BOTTOM, "a rate of zero has a place"


def test_a_constant_lies_between_different_ticks():
    for value in (0.25, 0.0):
        (chart,) = make_charts({"val/top1": {1: value}})
        ticks = [tick.text for tick in chart.y_ticks]
        assert len({*ticks}) == len(ticks) >= 3
        assert TOP < places(chart.lines[0])[0][1] < BOTTOM


def test_two_trainings_share_a_chart():
    """Lines of one training have one hue and its letter, and those of one metric one dash."""
    first, second = ({"train/loss": {0: 4.0, 30: start}, "val/loss": {30: 3.0}} for start in (2.0, 1.0))
    (chart,) = make_charts(first, second)
    assert [line.name for line in chart.lines] == ["A: train", "A: val", "B: train", "B: val"]
    assert [line.second_hue for line in chart.lines] == [False, False, True, True]
    assert [line.is_dashed for line in chart.lines] == [False, True, False, True]
    assert [line.mark.text for line in chart.lines] == ["A", "A", "B", "B"]
    assert len({(line.mark.x, line.mark.y) for line in chart.lines}) == 4, "letters on each other cannot be read"
    assert "B: train from 4 to 1, " in chart.summary
    (single,) = make_charts(first)
    assert [(line.name, line.second_hue, line.is_dashed, line.mark) for line in single.lines] == [
        ("train", False, False, None),
        ("val", True, True, None),
    ]
    (only,) = make_charts({}, first)
    assert {line.mark.text for line in only.lines} == {"B"}


def test_a_long_history_is_averaged_and_what_is_not_finite_left_out():
    loss = {step: float(step % 2) for step in range(100 * POINTS)} | {100 * POINTS: math.nan}
    (chart,) = make_charts({"train/loss": loss, "val/top1": {3: math.inf}})
    assert {y for _, y in places(chart.lines[0])} == {(TOP + BOTTOM) / 2}
    assert len(places(chart.lines[0])) == POINTS
    assert make_charts({}) == []


def test_a_step_that_was_repeated_has_its_last_value(store: str):
    client = open_client(store, create=True)
    run_id = create_run(client, "twotower", "r", {})
    for timestamp, (step, value) in enumerate([(2, 0.5), (1, 0.9), (2, 0.4)]):
        client.log_metric(run_id, "train/loss", value, timestamp=timestamp, step=step)
    history = read_history(client, run_id, ["train/loss", "val/loss"])
    assert {metric: list(points.items()) for metric, points in history.items()} == {"train/loss": [(1, 0.9), (2, 0.4)]}
