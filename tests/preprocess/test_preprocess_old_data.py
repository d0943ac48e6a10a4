"""A data set of version 0.1, drawn images of 2 classes at a short side of 32: it stays readable."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from commands import run_command

from pipeline.loader import make_loader
from preprocess.manifest import read_manifest, write_manifest

FOLDER = Path(__file__).parents[1] / "data" / "shards-0.1"


def test_its_manifest_is_read_and_written_with_the_same_bytes(tmp_path: Path) -> None:
    manifest = read_manifest(FOLDER)
    assert [entry.id for entry in manifest.classes] == ["cross", "star"]
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 6, "val": 2}
    assert (manifest.short_side, manifest.name, manifest.rejected) == (32, "drawn", ())
    digest = hashlib.sha256((FOLDER / "mean.npy").read_bytes()).hexdigest()
    assert manifest.color_stats.mean_image_sha256 == digest
    write_manifest(tmp_path, manifest)
    assert (tmp_path / "manifest.json").read_bytes() == (FOLDER / "manifest.json").read_bytes()


def test_it_is_verified() -> None:
    done = run_command("preprocess.build_shards", "--verify", "--deep", "--output", FOLDER)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"drawn: 8 samples in 2 shards, intact: ", done.stdout)


def test_a_batch_of_it_is_loaded() -> None:
    images, labels = next(iter(make_loader(FOLDER, "train", 6)))
    assert images.shape == (6, 3, 28, 28)
    assert bool(torch.isfinite(images).all())
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
