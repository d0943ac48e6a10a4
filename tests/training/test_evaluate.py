"""Evaluation and prediction as commands, against Pillow, torchvision and webdataset on the same files."""

import dataclasses
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import other_checkpoint, reference, val_samples
from commands import run_command
from PIL import Image
from raw_data import TINY_SHORT_SIDE
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from preprocess.manifest import read_manifest
from training import evaluate, predict
from training.checkpoint import MODEL, read_checkpoint, read_model
from training.load_model import load_checkpoint
from training.models import build, make_network
from training.serving.image_classifier import Preprocessing
from training.tracking import create_run, open_client


@pytest.mark.parametrize("crops", [1, 10])
def test_the_report_s_numbers_are_pillow_s_and_torchvision_s(
    command, checkpoint: Path, tiny_shards: Path, tmp_path: Path, crops: int
) -> None:
    arguments = ["--checkpoint", checkpoint, "--data", tiny_shards, "--output", tmp_path / "r", "--batch-size", 5]
    code, out, err = command(evaluate.main, *arguments, "--crops", crops)
    assert code == 0, err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    labels, probabilities = reference(checkpoint, tiny_shards, crops)
    hits = probabilities.argmax(1) == labels
    assert 0.4 < hits.mean() < 1, "a network that is always right or always wrong would show nothing"
    assert (report["samples"], report["crops"], report["split"]) == (len(labels), crops, "val")
    # 2 samples in 1,000 may differ by the decoder: none of these few.
    assert report["top1"] == pytest.approx(hits.mean())
    assert report["top5"] is None
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert report["loss"] == pytest.approx(loss, rel=2e-2)
    assert [entry["top1"] for entry in report["per_class"]] == pytest.approx(
        [hits[labels == label].mean() for label in range(3)]
    )
    assert f"top-1 {report['top1']:.4f} on 42 samples" in out
    assert "<html" in (tmp_path / "r" / "report.html").read_text()


def test_dense_evaluation_sees_the_whole_square(command, checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", checkpoint, "--data", tiny_shards, "--output", tmp_path / "r", "--dense"]
    code, _, err = command(evaluate.main, *arguments)
    assert code == 0, err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    done, manifest = read_checkpoint(checkpoint), read_manifest(tiny_shards)
    network = make_network(done.config.architecture(), 3).eval()
    network.load_state_dict(read_model(checkpoint / MODEL))
    mean = torch.tensor(manifest.color_stats.mean)[:, None, None]
    std = torch.tensor(np.diag(manifest.color_stats.covariance)).float().sqrt()[:, None, None]
    losses = []
    for sample in val_samples(tiny_shards).decode("pil"):
        square = center_crop((pil_to_tensor(sample["jpg"]).float() - mean) / std, [64, 64])
        with torch.inference_mode():
            # conv5's maps of 64 pixels have 4x4 places and fc6 takes 3x3 of them: four windows.
            maps = network.maps(square[None])
            windows = [maps[:, :, y : y + 3, x : x + 3] for y in range(2) for x in range(2)]
            logits = torch.stack([network.classify(window) for window in windows]).mean(0)
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([sample["cls"]])))
    assert report["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=2e-2)
    assert (report["crops"], report["checkpoint"]) == (1, f"{checkpoint}, dense")


def test_a_run_gets_its_evaluation(command, checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    run_id = create_run(client, "twotower", "r", {})
    client.log_artifacts(run_id, str(checkpoint), "checkpoints/best")
    for step, rate in ((1, 0.01), (2, 0.001)):
        client.log_metric(run_id, "train/lr", rate, step=step)
    code, out, err = command(evaluate.main, "--run", run_id, "--which", "best", "--data", tiny_shards)
    assert code == 0, err
    report = Path(re.search(r"report (\S+)", out)[1])
    step = f"step-{read_checkpoint(checkpoint).step:08d}"
    assert report == tmp_path / "reports" / f"{run_id}-{step}-val-1crop" / "report.html"
    assert 'alt="conv5: ' in report.read_text()
    assert "Learning rate by step: learning rate from 0.01 to 0.001," in report.read_text()
    metrics = client.get_run(run_id).data.metrics
    assert set(metrics) - {"train/lr"} == {"eval/top1", "eval/balanced_accuracy", "eval/loss"}
    assert metrics["eval/top1"] == json.loads(report.with_name("report.json").read_text())["top1"]
    names = [artifact.path for artifact in client.list_artifacts(run_id, f"evaluation/{step}-val-1crop")]
    assert {Path(name).name for name in names} == {"report.html", "report.json", "pictures"}
    code, _, err = command(evaluate.main, "--run", run_id, "--data", tiny_shards)
    assert (code, err) == (2, f"error: run '{run_id}' has no artifact checkpoints/last\n")
    artifacts = next((tmp_path / "mlartifacts").glob("*/artifacts/evaluation"))
    shutil.rmtree(artifacts)
    artifacts.touch()  # no folder can be made in its place
    code, out, _ = command(evaluate.main, "--run", run_id, "--which", "best", "--data", tiny_shards)
    assert code.startswith(f"error: run {run_id} has not taken the report: ")
    assert code.endswith(f"; it is in {report.parent}")
    assert out.startswith("top-1 ")


def test_the_last_and_the_best_network_of_a_run_get_reports_of_their_own(
    command, checkpoint: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    run_id = create_run(client, "twotower", "r", {})
    client.log_artifacts(run_id, str(checkpoint), "checkpoints/best")
    client.log_artifacts(run_id, str(other_checkpoint(checkpoint, tmp_path / "last")), "checkpoints/last")
    for which in ("best", "last"):
        code, _, err = command(evaluate.main, "--run", run_id, "--which", which, "--data", tiny_shards)
        assert code == 0, err
    step = read_checkpoint(checkpoint).step
    names = [f"step-{step:08d}-val-1crop", f"step-{step + 1:08d}-val-1crop"]
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [f"{run_id}-{name}" for name in names]
    assert [artifact.path for artifact in client.list_artifacts(run_id, "evaluation")] == [
        f"evaluation/{name}" for name in names
    ]


def test_checkpoints_of_the_same_folder_name_get_reports_of_their_own(
    command, checkpoint: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    for run in ("a", "b"):
        folder = other_checkpoint(checkpoint, tmp_path / run / "epoch-0002", run_id=f"run-{run}")
        code, out, err = command(evaluate.main, "--checkpoint", folder, "--data", tiny_shards)
        assert code == 0, err
        assert re.search(rf"reports/run-{run}-step-\d{{8}}-val-1crop/report.html$", out.strip())


def test_a_report_of_something_else_is_not_overwritten(
    command, checkpoint: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mine"
    data = ("--data", tiny_shards, "--output", output)
    again = ("--checkpoint", checkpoint, *data)
    assert command(evaluate.main, *again)[0] == 0
    assert command(evaluate.main, *again)[0] == 0, "the same evaluation may be repeated"
    before = (output / "report.json").read_bytes()
    renamed = shutil.copytree(tiny_shards, tmp_path / "renamed")
    page = json.loads((renamed / "manifest.json").read_text())
    (renamed / "manifest.json").write_text(json.dumps(page | {"name": "renamed"}))
    other = other_checkpoint(checkpoint, tmp_path / "other")
    held = f"--output is {output}: it holds the report of {checkpoint} on val; use another folder, or add --overwrite"
    for arguments in (
        ("--checkpoint", other, *data),
        (*again, "--crops", 10),
        (*again, "--dense"),
        (*again, "--split", "train"),
        ("--checkpoint", checkpoint, "--data", renamed, "--output", output),
    ):
        assert command(evaluate.main, *arguments)[::2] == (2, f"error: {held}\n")
    assert (output / "report.json").read_bytes() == before
    assert command(evaluate.main, "--checkpoint", other, *data, "--overwrite")[0] == 0
    assert json.loads((output / "report.json").read_text())["checkpoint"] == str(other)
    (output / "report.json").write_text('["somebody else\'s"]')
    code, _, err = command(evaluate.main, *again)
    assert (code, "a report.json that is not of this command" in err) == (2, True)
    code, out, _ = command(evaluate.main, "--checkpoint", checkpoint, "--data", renamed)
    digest = hashlib.sha256((renamed / "manifest.json").read_bytes()).hexdigest()
    assert (code, f"-val-1crop-{digest[:8]}/report.html" in out) == (0, True), "other data has a name of its own"


def test_the_test_split_is_evaluated_on_its_own(command, checkpoint: Path, raw_folder: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_folder, raw)
    for name in (path.name for path in (raw / "val").iterdir()):
        shutil.copytree(raw_folder / "val" / name, raw / "test" / name)
        (raw / "val" / name / f"{name}_000.JPEG").unlink()
    options = ("--short-side", TINY_SHORT_SIDE, "--max-rejected", 0.05, "--name", "tiny")
    assert run_command("preprocess.build_shards", "--input", raw, "--output", tmp_path / "d", *options).returncode == 0
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db", create=True)
    run_id = create_run(client, "twotower", "r", {})
    client.log_artifacts(run_id, str(checkpoint), "checkpoints/last")
    tops = {}
    for split, samples in (("val", 39), ("test", 42)):
        code, out, err = command(evaluate.main, "--run", run_id, "--data", tmp_path / "d", "--split", split)
        assert code == 0, err
        assert f" on {samples} samples of {split}" in out
        page = Path(re.search(r"report (\S+)", out)[1])
        assert f"-{split}-1crop" in page.parent.name
        report = json.loads(page.with_name("report.json").read_text())
        assert (report["split"], report["samples"]) == (split, samples)
        tops[split] = report["top1"]
    metrics = client.get_run(run_id).data.metrics
    assert (metrics["eval/top1"], metrics["eval/test/top1"]) == (tops["val"], tops["test"])
    code, _, err = command(evaluate.main, "--run", run_id, "--data", tmp_path / "d", "--split", "dev")
    assert (code, err.count("\n")) == (2, 1)
    assert "split is 'dev'" in err
    assert "use train, val, test" in err


def test_a_val_split_of_its_own_is_evaluated(command, checkpoint: Path, raw_folder: Path, tmp_path: Path) -> None:
    """People who have only the val images evaluate published weights, or a network that was trained elsewhere."""
    options = ("--short-side", TINY_SHORT_SIDE, "--max-rejected", 0.05, "--splits", "val")
    source = ("--input", raw_folder / "val", "--output", tmp_path / "d")
    assert run_command("preprocess.build_shards", *source, *options).returncode == 0
    for choice in (["--checkpoint", checkpoint], ["--weights", checkpoint / MODEL, "--recipe", "tiny-imagenet"]):
        code, out, err = command(evaluate.main, *choice, "--data", tmp_path / "d", "--output", tmp_path / choice[0])
        assert code == 0, err
        assert " on 42 samples of val" in out


def test_weights_with_a_recipe_are_the_same_network(
    command, checkpoint: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    choices = (["--checkpoint", checkpoint], ["--weights", checkpoint / MODEL, "--recipe", "tiny-imagenet"])
    for number, choice in enumerate(choices):
        code, _, err = command(evaluate.main, *choice, "--data", tiny_shards, "--output", tmp_path / str(number))
        assert code == 0, err
    one, other = (json.loads((tmp_path / str(n) / "report.json").read_text()) for n in (0, 1))
    assert one["weights_sha256"] == hashlib.sha256((checkpoint / MODEL).read_bytes()).hexdigest()
    for varying in ("checkpoint", "images_per_second"):
        del one[varying], other[varying]
    assert one == other


def test_prediction_of_a_raw_image_is_the_evaluation_of_its_sample(
    command, checkpoint: Path, raw_folder: Path, tiny_shards: Path
) -> None:
    _, probabilities = reference(checkpoint, tiny_shards, crops=1)
    keys = [sample["__key__"] for sample in val_samples(tiny_shards)]
    raw = raw_folder / "val" / "red-square" / "red-square_003.JPEG"
    expected = probabilities[next(i for i, key in enumerate(keys) if "red-square_003" in key)]
    code, out, err = command(predict.main, "--checkpoint", checkpoint, raw)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == str(raw)
    names = [entry.name for entry in read_manifest(tiny_shards).classes]
    said = {line.split()[1]: float(line.split()[0].rstrip("%")) / 100 for line in lines[1:]}
    assert said == pytest.approx(dict(zip(names, expected, strict=True)), abs=5e-3)
    assert list(said.values()) == sorted(said.values(), reverse=True)


def test_prediction_brings_deep_images_to_8_bits_as_the_build_did(checkpoint: Path, tmp_path: Path) -> None:
    trained = load_checkpoint(checkpoint, torch.device("cpu"), "it")
    trained = dataclasses.replace(trained, data=dataclasses.replace(trained.data, value_range=(0.0, 2.0)))
    values = np.linspace(0, 2, 70 * 70, dtype=np.float32).reshape(70, 70)
    Image.fromarray(values).save(tmp_path / "cell.tif")
    sample = predict.read_sample(tmp_path / "cell.tif", trained)
    assert np.asarray(Image.open(io.BytesIO(sample))).mean() == pytest.approx(127.5, abs=3)
    assert trained.preprocessing((tmp_path / "cell.tif").read_bytes()).std() > 0.1
    description = json.loads(json.dumps(dataclasses.asdict(trained.preprocessing)))
    assert Preprocessing(**description)((tmp_path / "cell.tif").read_bytes()).std() > 0.1


def test_prediction_names_good_images_and_says_what_is_wrong_with_others(
    command, checkpoint: Path, raw_folder: Path, tmp_path: Path
) -> None:
    good = tmp_path / "photo.jfif"
    shutil.copy(raw_folder / "val" / "red-square" / "red-square_003.JPEG", good)
    text = tmp_path / "text.JPEG"
    text.write_text("not an image")
    code, out, err = command(predict.main, "--checkpoint", checkpoint, text, good, tmp_path / "no.jpg", good)
    assert code == 1
    assert [line for line in out.splitlines() if not line.startswith("  ")] == [str(good)] * 2
    assert err.splitlines() == [
        f"error: image {text} cannot be used: not an image in a known format",
        f"error: image {tmp_path / 'no.jpg'} cannot be read: No such file or directory",
    ]
    code, out, err = command(predict.main, "--checkpoint", checkpoint, text)
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_bad_input_gets_code_2_and_one_line(command, checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other.pt"
    torch.save(build("alexnet-small", 3, first_kernel=7).state_dict(), other)
    text = tmp_path / "text.JPEG"
    data = ["--data", tiny_shards]
    code, _, err = command(evaluate.main, "--run", "nope", *data)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    hint = "set MLFLOW_TRACKING_URI to the one that has the run"
    assert (code, err) == (2, f"error: MLflow store {store} does not exist; {hint}\n")
    create_run(open_client(store, create=True), "twotower", "r", {})
    cases = [
        (evaluate.main, ["--run", "nope", *data], "run 'nope' is not in the MLflow store"),
        (evaluate.main, ["--checkpoint", empty, *data], f"{empty} is not a checkpoint"),
        (evaluate.main, ["--checkpoint", checkpoint, "--data", empty], f"{empty} has no manifest.json"),
        (evaluate.main, ["--checkpoint", checkpoint, *data, "--split", "test"], "split is 'test': data set"),
        (evaluate.main, ["--checkpoint", checkpoint, *data, "--device", "tpu"], "'tpu'"),
        (evaluate.main, ["--checkpoint", checkpoint, *data, "--batch-size", 0], "batch_size is 0"),
        (evaluate.main, ["--checkpoint", checkpoint, *data, "--which", "best"], "--which is best: it needs --run"),
        (
            evaluate.main,
            ["--checkpoint", checkpoint, *data, "--dense", "--crops", 10],
            "--crops is 10: --dense sees",
        ),
        (evaluate.main, ["--weights", other, *data], "--weights FILE and --recipe NAME go together"),
        (evaluate.main, ["--weights", other, "--recipe", "alexnet", *data], "--recipe is 'alexnet'; use sample, "),
        (evaluate.main, ["--weights", other, "--recipe", "tiny-imagenet", *data], "is of another network"),
        (evaluate.main, ["--weights", other, "--recipe", "cifar10", *data], "it is for a short side of 32 pixels, and"),
        (predict.main, ["--weights", other, "--recipe", "tiny-imagenet", text], "--weights needs --data"),
    ]
    for main, arguments, message in cases:
        code, out, err = command(main, *arguments)
        assert code == 2, (arguments, out, err)
        assert err.count("\n") == 1, (arguments, err)
        assert message in err


def test_a_data_set_of_other_classes_is_refused(command, checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other-classes"
    shutil.copytree(tiny_shards, folder)
    page = json.loads((folder / "manifest.json").read_text())
    page["classes"][0]["id"] = "another"
    (folder / "manifest.json").write_text(json.dumps(page))
    code, _, err = command(evaluate.main, "--checkpoint", checkpoint, "--data", folder)
    assert code == 2
    assert "has other classes" in err
    assert "class 0 is " in err
    assert err.endswith("; build it with --classes and the shards of the training\n")


def test_the_commands_work_from_a_shell(checkpoint: Path, tiny_shards: Path, tmp_path: Path) -> None:
    done = run_command(
        *("training.evaluate", "--checkpoint", checkpoint, "--data", tiny_shards),
        *("--output", tmp_path / "r", "--split", "nope"),
    )
    assert done.returncode == 2
    assert done.stderr == "error: split is 'nope': data set 'tiny' has no such split; use train, val\n"
