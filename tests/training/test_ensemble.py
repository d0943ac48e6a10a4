"""The evaluation of several networks at once, against the average of their probabilities in plain torch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import other_checkpoint, reference

from training import evaluate
from training.tracking import create_run, open_client


@pytest.fixture
def pair(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints with different weights, whose inputs have different units."""
    return checkpoint, other_checkpoint(checkpoint, tmp_path / "second", noise=0.5, units="unit")


def checkpoints(*folders: Path) -> list[object]:
    return [argument for folder in folders for argument in ("--checkpoint", folder)]


@pytest.mark.parametrize("crops", [1, 10])
def test_the_probabilities_of_the_networks_are_averaged(
    command, pair: tuple[Path, Path], tiny_shards: Path, tmp_path: Path, crops: int
) -> None:
    output = ("--data", tiny_shards, "--output", tmp_path / "r", "--batch-size", 5, "--crops", crops)
    code, out, err = command(evaluate.main, *checkpoints(*pair), *output)
    assert code == 0, err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    labels, first = reference(pair[0], tiny_shards, crops)
    _, second = reference(pair[1], tiny_shards, crops, divisor=255.0)
    accuracies = [(one.argmax(1) == labels).mean() for one in (first, second)]
    assert len({*accuracies}) == 2, "networks that are right equally often would show nothing"
    right = [one.argmax(1) == labels for one in (first, second)]
    counts = [int((right[a] & ~right[1 - a]).sum()) for a in (0, 1)]
    assert [report["comparison"][key] for key in ("first_only", "second_only")] == counts
    mean = (first + second) / 2
    assert report["top1"] == pytest.approx((mean.argmax(1) == labels).mean())
    assert report["loss"] == pytest.approx(-np.log(mean[np.arange(len(labels)), labels]).mean(), rel=2e-2)
    assert [member["checkpoint"] for member in report["members"]] == [str(folder) for folder in pair]
    assert [member["top1"] for member in report["members"]] == pytest.approx(accuracies)
    assert [member["top5"] for member in report["members"]] == [None, None]
    for accuracy, folder in zip(accuracies, pair, strict=True):
        assert f"top-1 {accuracy:.4f}: {folder}\n" in out
    assert report["checkpoint"] == f"average of {pair[0]}; {pair[1]}"
    page = (tmp_path / "r" / "report.html").read_text()
    assert "2 × alexnet-small" in page
    assert f"only by the first for {counts[0]}, and only by the second for {counts[1]}." in page
    assert f">{pair[1]}</td>" in page
    assert "First layer" not in page


def test_the_order_of_the_networks_does_not_matter(
    command, pair: tuple[Path, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    data = ("--data", tiny_shards)
    for order in (pair, pair[::-1]):
        code, _, err = command(evaluate.main, *checkpoints(*order), *data)
        assert code == 0, err
    (folder,) = (tmp_path / "reports").iterdir()
    assert folder.name.startswith("ensemble-2-")
    assert folder.name.endswith("-val-1crop")
    code, _, err = command(evaluate.main, *checkpoints(pair[0]), *data, "--output", folder)
    assert (code, "it holds the report of average of" in err) == (2, True)


def test_each_run_of_an_ensemble_gets_the_report_and_keeps_its_own_numbers(
    command, pair: tuple[Path, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    runs = []
    for folder in pair:
        runs.append(create_run(client, "twotower", "r", {}))
        client.log_artifacts(runs[-1], str(folder), "checkpoints/best")
    arguments = [argument for run in runs for argument in ("--run", run)]
    options = ("--which", "best", "--data", tiny_shards, "--crops", 10)
    code, _, err = command(evaluate.main, *arguments, *options)
    assert code == 0, err
    code, out, err = command(evaluate.main, "--compare", *runs, *options)
    assert code == 0, "it is the same evaluation under another name"
    assert "only by the second: McNemar's test p = " in out
    (folder,) = (tmp_path / "reports").iterdir()
    report = json.loads((folder / "report.json").read_text())
    for run in runs:
        metrics = client.get_run(run).data.metrics
        assert metrics[f"eval/{folder.name}/top1"] == report["top1"]
        assert all(name.startswith("eval/ensemble-2-") for name in metrics), "these are not the run's own numbers"
        assert [one.path for one in client.list_artifacts(run, "evaluation")] == [f"evaluation/{folder.name}"]


def test_a_network_counts_once(command, checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    code, _, err = command(evaluate.main, *checkpoints(checkpoint, copy), "--data", tiny_shards)
    assert (code, err) == (2, f"error: {copy} has the weights of {checkpoint}; use each network once\n")
    assert not (tmp_path / "reports").exists()


def test_networks_of_other_classes_are_refused(command, checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    other = other_checkpoint(checkpoint, tmp_path / "other")
    page = json.loads((other / "checkpoint.json").read_text())
    page["data"]["classes"][0]["id"] = "another"
    (other / "checkpoint.json").write_text(json.dumps(page))
    code, _, err = command(evaluate.main, *checkpoints(checkpoint, other), "--data", tiny_shards)
    assert (code, err.count("\n")) == (2, 1)
    assert f"error: {other} has other classes (3) than {checkpoint} (3); use networks of the same classes" in err


def test_features_of_several_networks_are_not_compared(
    command, pair: tuple[Path, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    arguments = (*checkpoints(*pair), "--data", tiny_shards, "--retrieve-from", "train")
    code, _, err = command(evaluate.main, *arguments)
    assert (code, err) == (2, "error: --retrieve-from cannot be combined with 2 networks; use it with each of them\n")
    assert not (tmp_path / "reports").exists()
