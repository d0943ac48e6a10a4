"""The loop in one process: exact, repeatable, and continued from a checkpoint as if nothing had happened."""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from errors import InputError
from pipeline.augment import Augmentation
from pipeline.loader import make_loader
from training.checkpoint import MEAN, MODEL, PAGE, TRAINING, read_checkpoint, read_model, write_checkpoint
from training.config import Checkpointing, Config, Optimizer
from training.load_model import load_model
from training.loop.meter import DivergenceError
from training.loop.precision import autocast
from training.loop.request import Request, StoppedError
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.step import log_probabilities, score
from training.loop.train import train, train_epoch, validate
from training.models import build, make_network
from training.parallel.layout import Layout
from training.recipes import RECIPES

CPU = Layout(torch.device("cpu"))


@pytest.fixture
def config(tiny_shards: Path) -> Config:
    base = RECIPES["tiny-imagenet"]()
    optimizer = dataclasses.replace(base.optimizer, learning_rate=0.005)
    return dataclasses.replace(
        base, data=str(tiny_shards), epochs=2, batch_size=16, log_every=2, optimizer=optimizer, precision="float32"
    )


def ignore(*_arguments: object) -> None:
    """Take metrics and checkpoints, and do nothing with them."""


class Run:
    """Trains and keeps what a training gives away."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        checkpoint: Path | None = None,
        threads: int = 1,
        stop: "Stop | None" = None,
    ) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.folder = folder
        torch.set_num_threads(1)
        self.state = build_state(config, CPU, threads, checkpoint)
        if stop is not None:
            self.state.take_request, stop.state = stop, self.state
        with contextlib.suppress(StoppedError):
            train(self.state, lambda metrics, step: self.metrics.append((step, metrics)), self.save)

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        folder = self.folder / (f"step-{state.step}" if state.batch else str(state.epoch))
        folder.mkdir(parents=True)
        write_checkpoint(folder, capture_checkpoint(state, "run", metrics))

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.state.network.state_dict()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Run:
    return Run(config, tmp_path / "run")


def test_a_cache_changes_what_is_trained_on_but_not_validation_and_is_resumed_exactly(
    config: Config, tmp_path: Path
) -> None:
    cached = dataclasses.replace(config, cache="host")
    with torch.compiler.set_stance("force_eager"):
        plain, kept = (build_state(each, CPU, 1) for each in (config, cached))
        assert validate(kept, ignore) == pytest.approx(validate(plain, ignore), rel=1e-6)
        assert kept.train_loader.state_dict()["order"] == "permutation"
        straight = Run(cached, tmp_path / "straight")
        resumed = Run(cached, tmp_path / "resumed", checkpoint=tmp_path / "straight" / "1")
    assert_equal(straight.weights, resumed.weights)


def test_label_smoothing_spreads_a_part_of_the_target(config: Config) -> None:
    network = dataclasses.replace(config.network, dropout=0.0)
    config = dataclasses.replace(config, label_smoothing=0.3, network=network, log_every=1)
    state = build_state(config, CPU, 1)
    images, labels = next(iter(build_state(config, CPU, 1).train_loader))
    with torch.no_grad():
        logs = state.network(images).log_softmax(dim=1)
    classes = torch.arange(logs.shape[1])
    targets = 0.7 * (labels[:, None] == classes).float() + 0.3 / len(classes)
    losses: list[float] = []
    train_epoch(state, lambda metrics, _step: losses.append(metrics["train/loss"]), ignore)
    assert losses[0] == pytest.approx(-(targets * logs).sum(dim=1).mean().item(), rel=1e-5)


def test_a_training_is_the_plain_loop_of_its_parts(config: Config, tmp_path: Path) -> None:
    augmentation = Augmentation(crop_position="centre", lighting="off")
    network = dataclasses.replace(config.network, dropout=0.0)
    optimizer = Optimizer(0.002, momentum=0.8, weight_decay=1e-2, schedule="linear", ema_decay=0.5)
    changes = {"seed": 3, "augmentation": augmentation, "network": network, "optimizer": optimizer, "log_every": 1}
    config = dataclasses.replace(config, label_smoothing=0.0, **changes)
    run = Run(config, tmp_path / "run")

    torch.manual_seed(3)
    plain = make_network(config.architecture(), 3)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.002, momentum=0.8, weight_decay=1e-2)
    average: dict[str, Tensor] = {}  # begins with the weights after the first step
    options = {"seed": 3, "units": "unit-std", "augmentation": augmentation, "num_threads": 1}
    loader = make_loader(config.data, "train", 16, **options)
    rates = [0.002 * left / (2 * len(loader)) for left in range(2 * len(loader), 0, -1)]
    batches = itertools.chain.from_iterable(itertools.repeat(loader, 2))
    for rate, (images, labels) in zip(rates, batches, strict=True):
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(plain(images), labels).backward()
        sgd.step()
        now = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        average = {name: (average.get(name, tensor) + tensor) / 2 for name, tensor in now.items()}
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(run.weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(
            run.state.eval_model.state_dict()[name], average[name], rtol=1e-4, atol=1e-5, msg=name
        )
    assert [metrics["train/lr"] for _, metrics in run.metrics if "train/lr" in metrics] == pytest.approx(rates)


def test_every_epoch_of_every_seed_draws_its_own_dropout_masks(config: Config, tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 1):
        state = build_state(dataclasses.replace(config, seed=seed), CPU, 1)
        state.network.dropout.register_forward_pre_hook(lambda *_: drawn.append(torch.initial_seed()))
        train(state, ignore, ignore)
    assert len(set(drawn)) == 4


def test_micro_batches_are_what_the_network_is_given(config: Config) -> None:
    state = build_state(dataclasses.replace(config, micro_batches=4), CPU, 1)
    sizes: set[int] = set()
    state.network.register_forward_pre_hook(lambda _network, inputs: sizes.add(len(inputs[0])))
    train_epoch(state, ignore, ignore)
    assert sizes == {4}


def test_a_plateau_is_one_of_the_validation_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    state = build_state(config, CPU, 1)
    errors: list[float] = []
    monkeypatch.setattr(state.schedule, "after_epoch", errors.append)
    found: list[dict[str, float]] = []
    train(state, lambda _metrics, _step: None, lambda _state, metrics: found.append(metrics))
    assert errors == [1 - metrics["val/top1"] for metrics in found]


def test_hits_are_counted_among_the_best_and_the_best_five() -> None:
    logs = torch.log_softmax(torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 5, 4, 3, 2, 1], [0, 1, 2, 3, 4, 5]]), dim=1)
    _, top1, top5, samples = score(logs, torch.tensor([0, 3, 0])).tolist()
    assert (top1, top5, samples) == (1, 2, 3)


def test_probabilities_are_float32_whatever_the_precision_of_the_network() -> None:
    network = build("lenet5", 10).eval()
    assert (
        log_probabilities(network, torch.randn(2, 3, 32, 32), autocast("bfloat16", CPU.device)).dtype == torch.float32
    )


def test_a_precision_is_that_of_the_products() -> None:
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        with autocast(precision, CPU.device):  # type: ignore[arg-type]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_same_seed_same_weights_bit_for_bit(config: Config, run: Run, tmp_path: Path) -> None:
    assert_equal(Run(config, tmp_path / "again", threads=2).weights, run.weights)
    other = Run(dataclasses.replace(config, seed=1), tmp_path / "other")
    assert not torch.equal(other.weights["conv1.weight"], run.weights["conv1.weight"])


def test_a_checkpoint_continues_as_if_nothing_had_happened(config: Config, run: Run, tmp_path: Path) -> None:
    resumed = Run(config, tmp_path / "resumed", checkpoint=run.folder / "1")
    assert resumed.state.step == run.state.step
    assert_equal(resumed.weights, run.weights)


WITHIN: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "average and micro-batches": {"micro_batches": 2, "optimizer": {"ema_decay": 0.9}},
    "cache": {"cache": "host"},
    "balanced": {"sampling": "balanced"},
    "balanced cache": {"sampling": "balanced", "cache": "host"},
    "class weights": {"class_weights": "balanced", "precision": "bfloat16"},
    "one point an epoch": {"log_every": 100},
    "chunks": {"augmentation": Augmentation(granularity="chunk", lighting="code-2012")},
    "plateau": {"optimizer": {"schedule": "plateau", "patience": 0, "momentum_form": "2012", "warmup_epochs": 0.0}},
    "frozen": {"optimizer": {"freeze": {"conv1": 1}}},
}


@pytest.mark.parametrize("case", list(WITHIN))
def test_a_checkpoint_within_an_epoch_continues_bit_for_bit(config: Config, case: str, tmp_path: Path) -> None:
    changes = {"checkpoint": Checkpointing(every_steps=5), "log_every": 3, **WITHIN[case]}
    changes["optimizer"] = dataclasses.replace(config.optimizer, **changes.get("optimizer", {}))
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, dropout=0.3), **changes)
    with torch.compiler.set_stance("force_eager"):
        straight = Run(config, tmp_path / "straight")
        for step in (5, 10):  # of 6 an epoch
            continued = Run(config, tmp_path / f"from-{step}", checkpoint=straight.folder / f"step-{step}")
            assert_equal(continued.weights, straight.weights)
            assert_equal(continued.state.eval_model.state_dict(), straight.state.eval_model.state_dict())
            assert curves(continued) == [point for point in curves(straight) if point[0] > step]


class Stop:
    """Asks a training to stop when it has taken this many steps, and then validated so many batches."""

    def __init__(self, steps: int, batches: int) -> None:
        self.state: TrainState | None = None
        self.steps, self.batches, self.seen = steps, batches, 0

    def __call__(self) -> Request:
        assert self.state is not None
        self.seen += self.state.step == self.steps
        return Request.STOP if self.seen > self.batches else Request.NONE


def test_a_training_that_is_stopped_while_it_validates_saves_first_and_goes_on_bit_for_bit(
    config: Config, run: Run, tmp_path: Path
) -> None:
    stop = Stop(steps=6, batches=2)  # the last step of the first epoch, and two of its three batches of val
    stopped = Run(config, tmp_path / "stopped", stop=stop)
    assert stopped.state.epoch == 0
    assert stopped.state.batches_seen == 8, "validation counts as progress"
    continued = Run(config, tmp_path / "continued", checkpoint=stopped.folder / "step-6")
    assert_equal(continued.weights, run.weights)
    assert curves(continued)[0] == next(point for point in curves(run) if "val/loss" in point[1])


def curves(run: Run) -> list[tuple[int, dict[str, float]]]:
    """Return the points of the curves without those of the clock."""
    timed = {"train/images_per_second", "train/data_wait"}
    return [(step, {key: value for key, value in metrics.items() if key not in timed}) for step, metrics in run.metrics]


def test_checkpoints_within_an_epoch_come_by_the_minute(config: Config, tmp_path: Path) -> None:
    often = dataclasses.replace(config, epochs=1, checkpoint=Checkpointing(every_minutes=1e-9), log_every=2)
    assert saved_steps(Run(often, tmp_path / "often")) == {2, 4, 6}
    rarely = dataclasses.replace(often, checkpoint=Checkpointing(every_minutes=60))
    assert saved_steps(Run(rarely, tmp_path / "rarely")) == set()


def saved_steps(run: Run) -> set[int]:
    return {int(path.name.removeprefix("step-")) for path in run.folder.glob("step-*")}


@pytest.mark.parametrize(
    "changes",
    [
        {
            "schedule": "piecewise",
            "milestones": {2: 5e-4},
            "momentum_form": "2012",
            "freeze": {"conv1": 1},
            "ema_decay": 0.9,
        },
        {"schedule": "cosine", "warmup_epochs": 0.5, "ema_decay": 0.5},
        {"schedule": "geometric", "momentum_form": "2012", "plateaus": 3},
        {"schedule": "plateau", "patience": 0, "momentum_form": "2012"},
    ],
    ids=lambda changes: changes["schedule"],
)
def test_every_schedule_continues_from_a_checkpoint(config: Config, changes: dict[str, Any], tmp_path: Path) -> None:
    config = dataclasses.replace(
        config,
        epochs=3,
        micro_batches=2,
        optimizer=dataclasses.replace(config.optimizer, **{"warmup_epochs": 0.0, **changes}),
    )
    whole = Run(config, tmp_path / "whole")
    resumed = Run(config, tmp_path / "resumed", checkpoint=whole.folder / "2")
    assert_equal(resumed.weights, whole.weights)
    assert_equal(resumed.state.eval_model.state_dict(), whole.state.eval_model.state_dict())
    assert resumed.metrics[-1] == whole.metrics[-1]


def test_an_average_of_the_weights_is_what_is_validated_and_given_away(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, ema_decay=0.99))
    run = Run(config, tmp_path / "run")
    given = read_model(run.folder / "2" / MODEL)
    assert not torch.equal(given["fc8.weight"], run.weights["fc8.weight"])
    plain = build_state(
        dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, ema_decay=0.0)), CPU, 1
    )
    plain.network.load_state_dict(given)
    assert validate(plain, ignore) == run.metrics[-1][1]


def test_the_curves_have_the_contract_s_names(run: Run) -> None:
    train_names = {"train/loss", "train/lr", "train/images_per_second", "train/data_wait"}
    steps = {step for step, metrics in run.metrics if set(metrics) == train_names}
    assert steps == {2, 4, 6, 8, 10, 12}, "6 steps an epoch, a point every 2"
    # Three classes: top-5 means nothing.
    assert [step for step, metrics in run.metrics if set(metrics) == {"val/loss", "val/top1"}] == [6, 12]
    assert all(0 <= metrics.get("train/data_wait", 0) <= 1 for _, metrics in run.metrics)


@pytest.mark.parametrize(
    ("log_every", "points"),
    [(100, [(1, 6), (7, 12), (13, 18)]), (7, [(1, 6), (7, 7), (13, 14)]), (4, [(1, 4), (7, 8), (9, 12), (13, 16)])],
)
def test_every_epoch_has_a_point_of_the_curves(
    config: Config, tmp_path: Path, log_every: int, points: list[tuple[int, int]]
) -> None:
    """Of epochs of 6 steps; the points are means over these steps."""
    each, some = (
        Run(dataclasses.replace(config, epochs=3, log_every=steps), tmp_path / str(steps)) for steps in (1, log_every)
    )
    losses, found = (
        {step: metrics["train/loss"] for step, metrics in run.metrics if "train/loss" in metrics}
        for run in (each, some)
    )
    expected = {last: np.mean([losses[step] for step in range(first, last + 1)]) for first, last in points}
    assert found == pytest.approx(expected, rel=1e-5)


def test_validation_counts_every_sample_once(config: Config, run: Run) -> None:
    for batch_size in (5, 42, 64):
        state = build_state(dataclasses.replace(config, batch_size=batch_size), CPU, 1, None)
        state.network.load_state_dict(run.weights)
        assert validate(state, ignore)["val/loss"] == pytest.approx(run.metrics[-1][1]["val/loss"], rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_training(config: Config, tmp_path: Path) -> None:
    absurd = dataclasses.replace(config.optimizer, learning_rate=1e10, warmup_epochs=0.0)
    with pytest.raises(DivergenceError, match=r"the training loss is (nan|inf)"):
        Run(dataclasses.replace(config, optimizer=absurd), tmp_path / "run")


def test_a_damaged_or_incomplete_checkpoint_is_refused(run: Run) -> None:
    folder = run.folder / "2"
    whole = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors is missing or damaged"):
        read_checkpoint(folder)
    (folder / MODEL).write_bytes(whole)
    assert read_checkpoint(folder).epoch == 2
    (folder / TRAINING).unlink()
    with pytest.raises(InputError, match=r"training\.safetensors is missing or damaged"):
        read_checkpoint(folder)
    page = json.loads((folder / PAGE).read_text())
    del page["sha256"]
    (folder / PAGE).write_text(json.dumps(page))
    with pytest.raises(InputError, match="sha256 is missing"):
        read_checkpoint(folder)
    (folder / PAGE).unlink()
    with pytest.raises(InputError, match=r"is not a checkpoint: it has no checkpoint\.json"):
        read_checkpoint(folder)


def test_a_checkpoint_of_an_earlier_schema_is_refused_with_one_line(run: Run) -> None:
    page = run.folder / "1" / PAGE
    page.write_text(page.read_text().replace('"schema": 3', '"schema": 1'))
    with pytest.raises(InputError, match=r"checkpoint\.json has schema 1: this version reads schema 2 and 3$"):
        read_checkpoint(run.folder / "1")


def test_a_checkpoint_of_schema_2_is_evaluated_but_not_continued(config: Config, run: Run, tmp_path: Path) -> None:
    new, old = run.folder / "2", tmp_path / "old"
    old.mkdir()
    torch.save(read_model(new / MODEL), old / "model.pt")
    page = json.loads((new / PAGE).read_text())
    for name in ("batch", "continuation"):
        del page[name]
    del page["config"]["checkpoint"]  # a field that came later
    digest = hashlib.sha256((old / "model.pt").read_bytes()).hexdigest()
    (old / PAGE).write_text(json.dumps({**page, "schema": 2, "sha256": {"model.pt": digest}}))
    choice = argparse.Namespace(
        checkpoint=old, weights=None, run=None, which=None, recipe=None, device="cpu", class_names=None
    )
    assert_equal(load_model(choice, tmp_path, None).network.state_dict(), read_model(new / MODEL))
    with pytest.raises(InputError, match="is of an earlier version: it can be evaluated, but not continued"):
        build_state(config, CPU, 1, old)


def test_a_checkpoint_of_another_network_or_data_set_is_refused(
    config: Config, run: Run, sample_of_other_data: Path
) -> None:
    other = dataclasses.replace(config, network=dataclasses.replace(config.network, first_kernel=7))
    with pytest.raises(InputError, match=r"is of another network: conv1.weight is \(48, 3, 5, 5\)"):
        build_state(other, CPU, 1, run.folder / "1")
    with pytest.raises(InputError, match="was trained on another data set"):
        build_state(dataclasses.replace(config, data=str(sample_of_other_data)), CPU, 1, run.folder / "1")


@pytest.fixture
def sample_of_other_data(tiny_shards: Path, tmp_path: Path) -> Path:
    """The same shards under another name: another manifest."""
    folder = tmp_path / "other-data"
    folder.mkdir()
    for path in tiny_shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "tiny"', '"name": "other"', 1))
    return folder


def test_the_mean_image_travels_with_the_checkpoint_of_a_training_that_subtracts_it(
    config: Config, tiny_shards: Path, tmp_path: Path
) -> None:
    Run(dataclasses.replace(config, epochs=1, mean="image"), tmp_path)
    folder = tmp_path / "1"
    mean = np.load(tiny_shards / "mean.npy")
    choice = argparse.Namespace(
        checkpoint=folder, weights=None, run=None, which=None, recipe=None, device="cpu", class_names=None
    )
    trained = load_model(choice, tmp_path, None)
    assert trained.config.mean == "image"
    assert trained.mean_image is not None
    assert np.array_equal(trained.mean_image, mean)
    (folder / MEAN).write_bytes((folder / MEAN).read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{MEAN} is missing or damaged"):
        read_checkpoint(folder)
