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
    (folder,) = (tmp_path / "reports").iterdir()
    report = json.loads((folder / "report.json").read_text())
    for run in runs:
        metrics = client.get_run(run).data.metrics
        assert metrics[f"eval/{folder.name}/top1"] == report["top1"]
        assert all(name.startswith("eval/ensemble-2-") for name in metrics), "these are not the run's own numbers"
        assert [one.path for one in client.list_artifacts(run, "evaluation")] == [f"evaluation/{folder.name}"]


def test_two_runs_are_compared_and_both_get_the_page(
    command, pair: tuple[Path, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    runs = []
    for number, folder in enumerate(pair):
        runs.append(create_run(client, "twotower", f"run {number}", {}))
        client.log_artifacts(runs[-1], str(folder), "checkpoints/best")
        client.log_metric(runs[-1], "val/top1", 0.5 + number / 4, step=1)
    options = ("--which", "best", "--data", tiny_shards, "--batch-size", 5)
    code, out, err = command(evaluate.main, "--compare", *runs, *options)
    assert code == 0, err
    (folder,) = (tmp_path / "reports").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.html", "comparison.json"]
    report = json.loads((folder / "comparison.json").read_text())
    labels, first = reference(pair[0], tiny_shards, 1)
    _, second = reference(pair[1], tiny_shards, 1, divisor=255.0)
    right = [one.argmax(1) == labels for one in (first, second)]
    assert [one["top1"] for one in report["networks"]] == pytest.approx([hits.mean() for hits in right])
    assert [one["run_id"] for one in report["networks"]] == runs
    assert [report["first_only"], report["second_only"]] == [(a & ~b).sum() for a, b in (right, right[::-1])]
    assert {"field": "units", "first": "unit-std", "second": "unit"} in report["fields"]
    only = f", {report['first_only']} only by A, {report['second_only']} only by B, "
    assert only in out
    assert out.endswith(f"comparison {folder / 'comparison.html'}\n")
    page = (folder / "comparison.html").read_text()
    assert {f'alt="{mark}, Tower 1: ' in page for mark in "AB"} == {True}
    assert "A: top-1, val from 0.5 to 0.5, lowest 0.5, highest 0.5; B: top-1, val from 0.75 to 0.75," in page
    for run in runs:
        metrics = client.get_run(run).data.metrics
        assert metrics[f"eval/{folder.name}/p_value"] == report["p_value"]
        assert metrics[f"eval/{folder.name}/top1_difference"] == report["difference"]
        files = {Path(one.path).name for one in client.list_artifacts(run, f"evaluation/{folder.name}")}
        assert files == {"comparison.html", "comparison.json"}
    assert command(evaluate.main, "--compare", *runs, *options)[0] == 0, "the same comparison may be repeated"
    code, _, err = command(evaluate.main, "--compare", *runs[::-1], *options, "--output", folder)
    assert (code, "it holds the comparison of run" in err) == (2, True)
    code, _, err = command(evaluate.main, "--compare", runs[0], runs[0], *options)
    assert (code, "use each network once" in err) == (2, True)


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
