"""`python -m benchmarks.finetune --input CIFAR10`: fine-tuning against training from scratch, on other classes.

A network is trained on the first half of the classes with the recipe `cifar10`, once. Then, for each seed, the recipe
`finetune` starts from it on the other half, and the recipe `cifar10` from random weights, for as many epochs. No Ray.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.options import positive_int
from command_line import CommandParser
from errors import InputError
from training.checkpoint import write_checkpoint
from training.cli import run_command
from training.config import Config
from training.launch.initial import read_initial, source_config
from training.loop.state import TrainState, build_state, capture_checkpoint
from training.loop.train import train
from training.parallel.layout import Layout
from training.recipes import cifar10, finetune


def main(arguments: Sequence[str]) -> None:
    """Build both data sets, train, and print a row for each training."""
    parser = CommandParser(prog="python -m benchmarks.finetune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--input", type=Path, required=True, metavar="DIR", help="train/CLASS and test/CLASS, 32 pixels"
    )
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="of each kind (default: 3)")
    parser.add_argument("--epochs", type=positive_int, default=3, metavar="N", help="on the new classes (default: 3)")
    parser.add_argument("--source-epochs", type=positive_int, default=12, metavar="N", help="before (default: 12)")
    parser.add_argument("--images", type=positive_int, metavar="N", help="train images of a new class (default: all)")
    parser.add_argument("--threads", type=positive_int, default=2, metavar="N", help="CPU threads (default: 2)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        source, target = build_halves(options.input, Path(folder), options.images)
        checkpoint = Path(folder, "checkpoint")
        checkpoint.mkdir()
        first = dataclasses.replace(cifar10(), data=str(source), epochs=options.source_epochs)
        print(f"{'source':14}  {show(run(first, options.threads, checkpoint))}", flush=True)
        results = [
            compare(str(target), checkpoint, options.epochs, seed, options.threads) for seed in range(options.seeds)
        ]
    gains = [tuned - scratch for tuned, scratch in results]
    for name, top1 in zip(("fine-tuned", "from scratch"), zip(*results, strict=True), strict=True):
        print(f"{name:14}  mean {statistics.mean(top1):.4f}  {min(top1):.4f} to {max(top1):.4f}  n={len(top1)}")
    print(f"{'difference':14}  mean {statistics.mean(gains):+.4f}  {min(gains):+.4f} to {max(gains):+.4f}")


def build_halves(raw: Path, folder: Path, images: int | None) -> tuple[Path, Path]:
    """Build shards of the first half of the classes, and of the second with so many train images each; return both."""
    classes = sorted(path.name for path in raw.glob("train/*") if (raw / "test" / path.name).is_dir())
    if len(classes) < 4:
        raise InputError(f"--input is {raw}: it has {len(classes)} classes in train/ and test/; use one with 4 or more")
    half = len(classes) // 2
    return build("source", classes[:half], raw, folder), build("target", classes[half:], raw, folder, images)


def build(name: str, classes: list[str], raw: Path, folder: Path, images: int | None = None) -> Path:
    """Build shards of these classes, by the command; None: with all of their train images."""
    for split, limit in (("train", images), ("test", None)):
        for class_name in classes:
            chosen = folder / f"{name}-images" / split / class_name
            chosen.mkdir(parents=True)
            for image in sorted((raw / split / class_name).iterdir())[:limit]:
                (chosen / image.name).symlink_to(image.resolve())
    shards = folder / name
    command = [sys.executable, "-m", "preprocess.build_shards", "--input", str(folder / f"{name}-images")]
    subprocess.run([*command, "--output", str(shards), "--short-side", "32"], check=True)
    return shards


def compare(data: str, checkpoint: Path, epochs: int, seed: int, threads: int) -> tuple[float, float]:
    """Fine-tune and train from scratch with the same seed; return the last top-1 of both."""
    changes = {"data": data, "epochs": epochs, "seed": seed}
    tuned = finetune(source_config(str(checkpoint), Path.cwd()))
    top1 = {
        "fine-tuned": run(dataclasses.replace(tuned, init=str(checkpoint), **changes), threads),  # type: ignore[arg-type]
        "from scratch": run(dataclasses.replace(cifar10(), **changes), threads),  # type: ignore[arg-type]
    }
    for name, epochs_top1 in top1.items():
        print(f"{name:14}  {show(epochs_top1)}  seed {seed}", flush=True)
    return top1["fine-tuned"][-1], top1["from scratch"][-1]


def run(config: Config, threads: int, checkpoint: Path | None = None) -> list[float]:
    """Train; return val/top1 after each epoch. Write the last checkpoint into the folder `checkpoint`."""
    initial, top1 = read_initial(config, Path.cwd()), list[float]()
    weights = None if initial is None else initial.state

    def save(state: TrainState, metrics: dict[str, float]) -> None:
        top1.append(metrics["val/top1"])
        if checkpoint is not None and state.epoch == config.epochs:
            write_checkpoint(checkpoint, capture_checkpoint(state, "", metrics))

    state = build_state(config, Layout(torch.device("cpu")), threads, weights=weights)
    train(state, lambda _metrics, _step: None, save)
    return top1


def show(top1: list[float]) -> str:
    """Return the accuracies of the epochs as text."""
    return " ".join(f"{value:.4f}" for value in top1)


if __name__ == "__main__":
    sys.exit(run_command(main))
