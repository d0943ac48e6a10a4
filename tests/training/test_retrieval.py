"""Nearest images by features and by pixels, against scikit-learn."""

import json
import re
from pathlib import Path

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from training import evaluate
from training.inference import open_loader
from training.load_model import load_checkpoint
from training.retrieval import retrieve


def test_the_nearest_are_scikit_learn_s(checkpoint: Path, tiny_shards: Path) -> None:
    trained = load_checkpoint(checkpoint, torch.device("cpu"), "it")
    network = trained.network

    def read(split):
        features, pixels, labels = [], [], []
        for images, truth in open_loader(trained, str(tiny_shards), split, 8, 1):
            with torch.inference_mode():
                units = network.maps(images).flatten(1)
                for layer in ("fc6", "act6", "fc7", "act7"):
                    units = network.layer(layer)(units)
                features.append(units)
            pixels.append(torch.nn.functional.adaptive_avg_pool2d(images, 32).flatten(1))
            labels.append(truth)
        return (torch.cat(parts).numpy() for parts in (features, pixels, labels))

    features, pixels, labels = read("train")
    queries, query_pixels, query_labels = read("val")
    loaders = (open_loader(trained, str(tiny_shards), split, 8, 1) for split in ("val", "train"))
    found = retrieve(trained, *loaders, "train")
    for nearest, images, asked in ((found.by_features, features, queries), (found.by_pixels, pixels, query_pixels)):
        expected = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(images).kneighbors(asked)[1]
        assert (nearest == expected).mean() > 0.98, "equal distances may change places"
    result = found.result()
    expected = (labels[found.by_features] == query_labels[:, None]).mean()
    assert result["precision_at_6"] == pytest.approx(expected)
    assert result["precision_at_6"] > result["pixel_precision_at_6"]
    assert (result["queries"], result["images"]) == (42, 106)


def test_the_report_has_the_nearest_images(command, checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", checkpoint, "--data", tiny_shards, "--output", tmp_path / "r"]
    code, out, err = command(evaluate.main, *arguments, "--retrieve-from", "train")
    assert code == 0, err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["retrieval"]["split"] == "train"
    assert f"precision at 6 {report['retrieval']['precision_at_6']:.4f}, by pixels " in out
    page = (tmp_path / "r" / "report.html").read_text()
    shown = re.findall(r'class="(same|other)" [^>]*alt="(\d): ([^,]+), (the same|another) class"', page)
    assert [int(number) for _, number, *_ in shown] == [1, 2, 3, 4, 5, 6] * 10
    asked = re.findall(r'alt="query: ([^"]+)"', page)
    for number, (kind, _, name, words) in enumerate(shown):
        same = name == asked[number // 12]
        assert (kind, words) == (("same", "the same") if same else ("other", "another"))
    code, _, err = command(evaluate.main, *arguments)
    assert json.loads((tmp_path / "r" / "report.json").read_text())["retrieval"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--retrieve-from", "val"], "--retrieve-from is val: the images would find themselves; use another split, "),
        (["--retrieve-from", "train", "--dense"], "--retrieve-from is train: --dense has no single features; "),
        (["--retrieve-from", "test"], "split is 'test': data set 'tiny' has no such split; use train, val"),
    ],
)
def test_retrieval_that_makes_no_sense_is_refused(
    command, checkpoint: Path, tiny_shards: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, _, err = command(evaluate.main, "--checkpoint", checkpoint, "--data", tiny_shards, *options)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "reports").exists()
