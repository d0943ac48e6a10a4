"""Checkpoints for the tests of evaluation, and what plain torch makes of one."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import webdataset
from torchvision.transforms.v2.functional import center_crop, five_crop, hflip, pil_to_tensor

from preprocess.manifest import read_manifest
from training.checkpoint import MODEL, read_checkpoint, read_model
from training.models import make_network


def reference(
    checkpoint: Path, shards: Path, crops: int, divisor: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and float64 class probabilities of the val split by Pillow, torchvision and plain torch.

    `divisor` is the standard deviation of each channel, or this number of grey levels.
    """
    done, manifest = read_checkpoint(checkpoint), read_manifest(shards)
    network = make_network(done.config.architecture(), len(manifest.classes))
    network.load_state_dict(read_model(checkpoint / MODEL))
    network.eval()
    mean = torch.tensor(manifest.color_stats.mean)[:, None, None]
    std = torch.tensor(np.diag(manifest.color_stats.covariance)).float().sqrt()[:, None, None]
    std = std if divisor is None else torch.tensor(divisor)
    labels, probabilities = [], []
    for image, label in val_samples(shards).decode("pil").to_tuple("jpg", "cls"):
        pixels = pil_to_tensor(image).float()
        if crops == 1:
            views = [center_crop(pixels, [56, 56])]
        else:
            five = five_crop(center_crop(pixels, [64, 64]), [56, 56])
            views = [*five, *map(hflip, five)]
        with torch.inference_mode():
            logits = network(torch.stack([(view - mean) / std for view in views]))
        labels.append(label)
        probabilities.append(logits.double().softmax(1).mean(0).numpy())
    return np.array(labels), np.array(probabilities)


def val_samples(shards: Path):
    urls = [str(shards / shard.tar) for shard in read_manifest(shards).split("val").shards]
    return webdataset.WebDataset(urls, shardshuffle=False)


def other_checkpoint(checkpoint: Path, folder: Path, run_id: str = "run", noise: float = 0.0, **config: object) -> Path:
    """Copy a checkpoint with weights that differ a little, or by noise, of the next step and of this run.

    `noise` is a part of the standard deviation of each parameter; `config` replaces fields of the configuration.
    """
    shutil.copytree(checkpoint, folder)
    weights = read_model(checkpoint / MODEL)
    weights["fc8.bias"] += 1e-3
    generator = torch.Generator().manual_seed(0)
    for value in weights.values():
        value += noise * value.std() * torch.randn(value.shape, generator=generator)
    safetensors.torch.save_file(weights, folder / MODEL)
    page = json.loads((folder / "checkpoint.json").read_text())
    page["sha256"][MODEL] = hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(
        json.dumps(page | {"config": page["config"] | config, "step": page["step"] + 1, "run_id": run_id})
    )
    return folder
