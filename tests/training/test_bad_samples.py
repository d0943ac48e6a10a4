"""Trainings over a sample that does not decode: named, or left out and counted, the same in every layout."""

import dataclasses
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from mesh import Shape, in_group

from pipeline.loader import make_loader
from pipeline.reading.samples import SampleError
from training.checkpoint import write_checkpoint
from training.config import Checkpointing, Config, Network, Optimizer, Parallel
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import train
from training.models import NETWORKS, architecture, make_network
from training.parallel.layout import Layout
from training.recipes import RECIPES

CPU = Layout(torch.device("cpu"))
# From `torch`'s small weights, the order of sums over devices changes less than from `he`'s.
WIDTHS: dict[str, Any] = {"channels": (8, 12, 16, 16, 16), "hidden": (48, 48), "init": "torch", "dropout": 0.0}
SMALL = {
    "alexnet-small": architecture("alexnet-small", **WIDTHS, lrn="off"),
    "alexnet-owt": architecture("alexnet-owt", **WIDTHS, first_kernel=5, first_stride=1, map_side=2),
}
LAYOUTS: dict[str, tuple[str, Shape]] = {
    "data": ("alexnet-small", (2, 1)),
    "hybrid": ("alexnet-owt", (1, 2)),
}
BAD = {"train": (3, 4, 50, 90), "val": (7, 40)}
"""Samples that do not decode, by split."""


@pytest.fixture(scope="module")
def damaged(four_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shards in which the JPEG headers of some samples are overwritten."""
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(four_classes, folder)
    for split, indices in BAD.items():
        (tar,) = folder.glob(f"{split}-*.tar")
        lines = tar.with_suffix(".idx").read_text().splitlines()[1:]
        with tar.open("r+b") as file:
            for index in indices:
                file.seek(int(lines[index].split()[1]))
                file.write(b"damaged")
    return folder


def make_config(data: Path, network: str = "alexnet-small", **changes: Any) -> Config:
    base = RECIPES["tiny-imagenet"]()
    return dataclasses.replace(
        base,
        data=str(data),
        epochs=2,
        crop=28,
        batch_size=26,
        micro_batches=2,
        log_every=2,
        checkpoint=Checkpointing(every_steps=3),
        precision="float32",
        label_smoothing=0.1,
        network=Network(network, dropout=0.0),
        optimizer=Optimizer(0.002, schedule="constant"),
        on_bad_sample="skip",
        **changes,
    )


class Run:
    """A training with its checkpoints, and what it logged but for the clock."""

    def __init__(self, config: Config, folder: Path, layout: Layout = CPU, checkpoint: Path | None = None) -> None:
        self.curves: list[tuple[int, dict[str, float]]] = []
        self.folder = folder
        torch.set_num_threads(1)
        state = build_state(config, layout, 1, checkpoint)
        train(state, self.log, self.save)

    def log(self, metrics: dict[str, float], step: int) -> None:
        timed = ("train/images_per_second", "train/data_wait")
        self.curves.append((step, {key: value for key, value in metrics.items() if key not in timed}))

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        snapshot = capture_checkpoint(state, "run", metrics)
        self.weights = snapshot.model
        if state.layout.is_first:
            folder = self.folder / f"step-{state.step}-{state.batch}"
            folder.mkdir(parents=True)
            write_checkpoint(folder, snapshot)


def process(rank: int, data: Path, folder: Path) -> None:
    NETWORKS.update(SMALL)
    for name, (network, shape) in LAYOUTS.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        with in_group(rank, shape, own / "meeting", hybrid=name == "hybrid") as layout:
            run = Run(make_config(data, network, parallel=Parallel(*shape)), own / "checkpoints", layout)
        (own / f"rank-{rank}").write_bytes(pickle.dumps((run.weights, run.curves)))


@pytest.fixture(scope="module")
def trained(damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    mp.spawn(process, (damaged, folder), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_samples_left_out_are_the_same_in_every_layout(
    trained: Path, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for network, small in SMALL.items():
        monkeypatch.setitem(NETWORKS, network, small)
    single = Run(make_config(damaged, LAYOUTS[name][0]), tmp_path)
    for rank in range(2):
        weights, curves = pickle.loads((trained / name / f"rank-{rank}").read_bytes())
        for parameter, tensor in single.weights.items():
            torch.testing.assert_close(weights[parameter], tensor, rtol=0, atol=1e-6, msg=parameter)
        for (step, metrics), (expected_step, expected) in zip(curves, single.curves, strict=True):
            assert (step, metrics) == (expected_step, pytest.approx(expected, rel=1e-4))


def test_they_are_counted_once_after_a_restart_within_an_epoch(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "alexnet-small", SMALL["alexnet-small"])
    straight = Run(make_config(damaged), tmp_path / "straight")
    resumed = Run(make_config(damaged), tmp_path / "resumed", checkpoint=straight.folder / "step-3-3")
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in straight.weights.items())
    assert resumed.curves == [point for point in straight.curves if point[0] > 3]


def test_a_sample_left_out_has_no_gradient_and_all_others_count(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(
        make_config(damaged), augmentation=dataclasses.replace(RECIPES["tiny-imagenet"]().augmentation, lighting="off")
    )
    run = Run(config, tmp_path)
    torch.manual_seed(config.seed)
    plain = make_network(config.architecture(), 4)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    loader = make_loader(
        damaged, "train", 26, crop=28, units=config.units, augmentation=config.augmentation, on_error="skip"
    )
    for _ in range(config.epochs):
        for images, labels in loader:
            sgd.zero_grad()
            losses = torch.nn.functional.cross_entropy(plain(images), labels, label_smoothing=0.1, reduction="sum")
            (losses / 26).backward()
            sgd.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(run.weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    epochs = [metrics for _, metrics in run.curves if "val/top1" in metrics]
    assert [metrics["val/skipped"] for metrics in epochs] == [len(BAD["val"])] * 2
    assert sum(metrics["train/skipped"] for metrics in epochs) == loader.skipped > 0
    val = make_loader(damaged, "val", 26, crop=28, units=config.units, on_error="skip")
    with torch.no_grad():
        hits = sum(int((plain(images).argmax(dim=1) == labels).sum()) for images, labels in val)
    assert epochs[-1]["val/top1"] == pytest.approx(hits / (55 - len(BAD["val"])))
    named = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([line for line in named if "val-000000.tar" in line]) == 2 * len(BAD["val"]), "once by each loader"


@pytest.mark.parametrize("split", ["train", "val"])
def test_without_skipping_the_sample_ends_the_training_and_is_named(
    damaged: Path, four_classes: Path, tmp_path: Path, split: str
) -> None:
    data = tmp_path / "shards"
    shutil.copytree(four_classes, data)
    for path in damaged.glob(f"{split}-*"):
        shutil.copy(path, data / path.name)
    config = dataclasses.replace(make_config(data), on_bad_sample="raise")
    with pytest.raises(SampleError, match=rf"{data}/{split}-000000.tar: sample {split}/\S+ does not decode: "):
        Run(config, tmp_path / "run")
