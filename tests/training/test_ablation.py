"""Ablation studies: the switches, the table, one training; and with real Ray Tune, studies that are killed."""

import contextlib
import csv
import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import PROJECT
from mlflow import MlflowClient
from mlflow.entities import Run
from scipy.stats import ttest_rel

from errors import InputError
from training import ablate
from training.ablation.launcher import StudyError, launch_study
from training.ablation.picture import differences_png
from training.ablation.plan import BASE, Study, plan_trainings
from training.ablation.study import (
    SECONDS,
    SEED,
    TOP1_FINAL,
    VARIANT,
    create_children,
    create_study,
    find_children,
    find_study,
    finished_results,
)
from training.ablation.table import Result, make_rows, paired_difference, to_csv, to_markdown
from training.ablation.toggles import TOGGLES, make_variant
from training.ablation.trial import Trial, run_trial
from training.ablation.tuning import trial_resources
from training.config import Network, Optimizer, Parallel, flatten
from training.recipes import RECIPES
from training.runs import main as list_runs
from training.tracking import LAST_CHECKPOINT, open_client
from training.tracking.claim import claimed

OWN_FIELDS = {
    "lrn": {"network.lrn", "network.spatial_norm"} | {f"network.lrn_{name}" for name in ("alpha", "k", "size", "beta")},
    "overlap": {"network.pooling"},
    "dropout": {"network.dropout"},
    "lighting": {"augmentation.lighting", "augmentation.lighting_off_epoch"},
    "flip": {"augmentation.flip"},
    "crop": {f"augmentation.{name}" for name in ("crop_position", "crop_size", "smallest_area")},
    "activation": {"network.activation"},
    "towers": {"network.name"},
    "ten-crop": set[str](),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("toggle", TOGGLES)
def test_a_toggle_changes_its_own_fields_only_or_is_refused_by_name(recipe: str, toggle: str) -> None:
    base = RECIPES[recipe]()
    if toggle == "towers" and base.network.name not in ("alexnet", "alexnet-half"):
        with pytest.raises(InputError, match=f"--toggle is towers: network.name is {base.network.name}, of which"):
            make_variant(toggle, base)
        return
    variant = make_variant(toggle, base)
    before, after = flatten(base), flatten(variant.config)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= OWN_FIELDS[toggle]
    assert bool(changed) == (toggle != "ten-crop")
    assert variant.crops == (10 if toggle == "ten-crop" else 1)


@pytest.mark.parametrize(
    ("recipe", "toggle", "words", "fields"),
    [
        ("sample", "lrn", "with LRN", {"network.lrn": "paper"}),
        ("alexnet-2012", "lrn", "without LRN", {"network.lrn": "off", "network.spatial_norm": False}),
        ("alexnet-paper", "overlap", "disjoint pooling", {"network.pooling": "disjoint"}),
        ("alexnet-paper", "dropout", "without dropout", {"network.dropout": 0.0}),
        ("alexnet-2012", "lighting", "without lighting", {"augmentation.lighting_off_epoch": None}),
        ("imagenette", "lighting", "with lighting", {"augmentation.lighting": "paper"}),
        ("imagenette", "crop", "centre crops", {"augmentation.crop_size": "fixed", "augmentation.smallest_area": 0.08}),
        ("alexnet-paper", "crop", "centre crops", {"augmentation.crop_position": "centre"}),
        ("alexnet-paper", "towers", "one tower", {"network.name": "alexnet-half"}),
        ("alexnet-paper", "activation", "tanh", {"network.activation": "tanh"}),
    ],
)
def test_the_direction_of_a_toggle(recipe: str, toggle: str, words: str, fields: dict[str, Any]) -> None:
    variant = make_variant(toggle, RECIPES[recipe]())
    assert variant.words == words
    assert fields.items() <= flatten(variant.config).items()


def test_own_numbers_of_lrn_go_with_it() -> None:
    base = dataclasses.replace(RECIPES["alexnet-paper"](), network=Network(lrn_k=1.0, lrn_size=3))
    assert make_variant("lrn", base).config.network == Network(lrn="off")


def test_a_network_without_the_switch_is_named() -> None:
    base = dataclasses.replace(RECIPES["cifar10"](), network=Network("lenet5"), crop=28)
    with pytest.raises(InputError, match=r"--toggle is lrn: network\.name is lenet5, which has no switch network\.lrn"):
        make_variant("lrn", base)
    tf = dataclasses.replace(RECIPES["tiny-imagenet"](), network=Network("alexnet-tf"), crop=64)
    with pytest.raises(InputError, match=r"--toggle is dropout: network\.dropout is 0\.5, but alexnet-tf would not"):
        make_variant("dropout", tf)


@pytest.fixture
def study(tiny_shards: Path, tmp_path: Path) -> Study:
    recipe = RECIPES["tiny-imagenet"]()
    base = dataclasses.replace(
        recipe,
        data=str(tiny_shards),
        storage=str(tmp_path / "runs"),
        epochs=1,
        batch_size=8,
        device="cpu",
        precision="float32",
        parallel=Parallel(1, 1),
        optimizer=Optimizer(learning_rate=0.002, schedule="linear", ema_decay=0.5),
    )
    return Study("shapes", base, ("lrn", "ten-crop"), (0, 1))


def test_a_plan_trains_what_unfinished_runs_need(study: Study) -> None:
    everything = plan_trainings(study, set())
    assert [training.key for training in everything] == [(BASE, 0), ("lrn", 0), (BASE, 1), ("lrn", 1)]
    assert everything[0].views == {(BASE, 0): 1, ("ten-crop", 0): 10}
    assert [training.config.seed for training in everything] == [0, 0, 1, 1]
    (left,) = plan_trainings(study, {(BASE, 0), ("lrn", 0), (BASE, 1), ("lrn", 1), ("ten-crop", 1)})
    assert (left.key, left.views) == ((BASE, 0), {("ten-crop", 0): 10})
    assert plan_trainings(study, set(study.keys)) == []


def test_other_fields_are_another_study(study: Study) -> None:
    digest = study.digest("a")
    moved = dataclasses.replace(study.base, data="/elsewhere", device="auto")
    assert dataclasses.replace(study, base=moved).digest("a") == digest, "what does not change results may differ"
    others = [
        dataclasses.replace(study, base=dataclasses.replace(study.base, epochs=2)),
        dataclasses.replace(study, seeds=(0, 1, 2)),
        dataclasses.replace(study, toggles=("lrn",)),
        dataclasses.replace(study, name="again"),
    ]
    assert digest not in {other.digest("a") for other in others} | {study.digest("b")}


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    base, values = {0: 0.50, 1: 0.55, 2: 0.52, 3: 0.9}, {0: 0.53, 1: 0.56, 2: 0.57}
    difference = paired_difference(values, base)
    assert difference is not None
    assert difference.half_width is not None
    interval = ttest_rel([*values.values()], [base[seed] for seed in values]).confidence_interval(0.95)
    ends = (difference.mean - difference.half_width, difference.mean + difference.half_width)
    assert ends == pytest.approx((interval.low, interval.high))
    single = paired_difference({1: 0.5}, base)
    assert single is not None
    assert (single.mean, single.half_width) == (pytest.approx(-0.05), None)
    assert paired_difference({7: 0.5}, base) is None


def test_the_table_counts_what_is_finished(study: Study) -> None:
    results = {
        **{(BASE, 0): Result(0.5, None, 10.0), (BASE, 1): Result(0.6, None, 20.0)},
        **{("lrn", 1): Result(0.7, None, 30.0), ("ten-crop", 0): Result(0.52, None, 10.0)},
        ("ten-crop", 1): Result(0.61, None, 20.0),
    }
    rows = {row.variant: row for row in make_rows(study, results)}
    assert [row.n for row in rows.values()] == [2, 1, 2]
    assert (rows[BASE].top1, rows[BASE].lowest, rows[BASE].highest) == (pytest.approx(0.55), 0.5, 0.6)
    assert (rows[BASE].seconds, rows["lrn"].seconds, rows["ten-crop"].seconds) == (15.0, 30.0, None)
    text = to_markdown(list(rows.values()))
    assert "| with LRN (`lrn`) | 1 | 0.7000 |  | 0.7000 to 0.7000 | +0.1000 | 30 | 3.3: top-1 and top-5 error" in text
    lines = list(csv.DictReader(io.StringIO(to_csv(list(rows.values())))))
    assert (lines[1]["difference_low"], lines[1]["pairs"]) == ("", "1")
    assert float(lines[2]["difference"]) == pytest.approx(0.015)
    assert float(lines[2]["difference_low"]) < float(lines[2]["difference"]) < float(lines[2]["difference_high"])
    assert differences_png(list(rows.values()), "study").startswith(b"\x89PNG")
    nothing = make_rows(study, {})
    assert [row.n for row in nothing] == [0, 0, 0]
    assert differences_png(nothing, "study").startswith(b"\x89PNG")


def make_trial(client: MlflowClient, study: Study, project: Path) -> tuple[str, Trial]:
    parent = create_study(client, study, project)
    ids = create_children(client, parent, study, study.keys, project)
    first = plan_trainings(study, set())[0]
    views = {ids[key]: crops for key, crops in first.views.items()}
    return parent, Trial("base, seed 0", first.config, "cpu", 1, client.tracking_uri, ids[first.key], views)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.ablation.study.CLAIM_SECONDS", 0)


def test_a_training_is_evaluated_as_by_the_command(study: Study, store: str, tmp_path: Path, no_pause: None) -> None:
    client = open_client(store)
    parent, trial = make_trial(client, study, tmp_path)
    assert find_study(client, study) == parent
    assert {run.info.status for run in find_children(client, parent).values()} == {"SCHEDULED"}
    epochs: list[dict[str, float]] = []
    assert run_trial(trial, epochs.append) is None
    children = find_children(client, parent)
    assert finished_results(children).keys() == {(BASE, 0), ("ten-crop", 0)}
    run = children[BASE, 0]
    assert len(epochs) == 1
    assert run.data.metrics[TOP1_FINAL] == pytest.approx(run.data.metrics["val/top1"])
    assert {"train/loss", "val/loss", SECONDS} <= run.data.metrics.keys()
    assert (run.data.params["seed"], run.data.params["network.lrn"]) == ("0", "off")
    assert children["ten-crop", 0].data.params["crops"] == "10"
    assert Path(run.data.tags[LAST_CHECKPOINT], "checkpoint.json").is_file()
    # Without the record that it has finished, its weights are evaluated again, and it is not trained again.
    client.set_terminated(trial.run_id, "KILLED")
    assert run_trial(dataclasses.replace(trial, views={trial.run_id: 1}), epochs.append) is None
    assert len(epochs) == 1
    assert finished_results(find_children(client, parent)).keys() == {(BASE, 0), ("ten-crop", 0)}


def test_a_training_that_fails_says_why(study: Study, store: str, tmp_path: Path, no_pause: None) -> None:
    optimizer = dataclasses.replace(study.base.optimizer, learning_rate=1e10)
    absurd = dataclasses.replace(study, base=dataclasses.replace(study.base, optimizer=optimizer))
    parent, trial = make_trial(open_client(store), absurd, tmp_path)
    problem = run_trial(trial, lambda _metrics: None)
    assert problem is not None
    assert problem.startswith("the training loss is ")
    assert finished_results(find_children(open_client(store), parent)) == {}


def test_a_study_that_another_process_runs_is_left_alone(
    study: Study, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pause: None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr("training.ablation.launcher.joined_ray", lambda: pytest.fail("Ray is started"))
    client = open_client(store)
    parent = create_study(client, study, tmp_path)
    with claimed(client, parent), pytest.raises(InputError, match=f"run {parent} is being trained by process"):
        launch_study(study, tmp_path)
    with pytest.raises(InputError, match=f"study {parent} is being started by another process; leave it"):
        create_study(client, study, tmp_path)


def test_a_study_from_its_runs_to_its_table(
    study: Study,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_pause: None,
) -> None:
    """Without Ray: a training that fails, then the same study again, then once more with nothing left."""
    ran, broken = list[str](), {"lrn, seed 1"}

    def run_here(trials: list[Trial], *_: object) -> tuple[dict[str, str], list[Trial]]:
        ran.extend(trial.label for trial in trials)
        done = {trial.label: run_trial(trial, lambda _: None) for trial in trials if trial.label not in broken}
        assert set(done.values()) <= {None}
        return {trial.label: "no luck" for trial in trials if trial.label in broken}, []

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setattr("training.tracking.claim.CLAIM_SECONDS", 0)
    monkeypatch.setattr("training.ablation.launcher.joined_ray", contextlib.nullcontext)
    monkeypatch.setattr("training.ablation.launcher._find_resources", lambda *_: ("cpu", {"CPU": 1.0}))
    monkeypatch.setattr("training.ablation.launcher.run_trials", run_here)
    with pytest.raises(StudyError, match=r"failed: lrn, seed 1 \(no luck\); python -m training\.ablate --resume "):
        launch_study(study, tmp_path, output=tmp_path / "table")
    parent, children = runs_of(tmp_path)
    assert (parent.info.status, children["lrn", 1].info.status) == ("FAILED", "FAILED")
    assert [line["n"] for line in csv.DictReader((tmp_path / "table" / "ablation.csv").open())] == ["2", "1", "2"]
    ran.clear()
    broken.clear()
    run_id = launch_study(study, tmp_path, output=tmp_path / "table")
    assert (run_id, ran) == (parent.info.run_id, ["lrn, seed 1"])
    parent, children = runs_of(tmp_path)
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert [line["n"] for line in csv.DictReader((tmp_path / "table" / "ablation.csv").open())] == ["2", "2", "2"]
    files = {artifact.path for artifact in open_client(store).list_artifacts(run_id)}
    assert files == {"ablation.json", "ablation.md", "ablation.csv", "ablation.png"}
    capsys.readouterr()
    assert launch_study(study, tmp_path, output=tmp_path / "table", resumed=run_id) == run_id
    assert f"study {run_id} is complete: nothing is trained" in capsys.readouterr().out
    assert ran == ["lrn, seed 1"]
    other = dataclasses.replace(study, seeds=(0,))
    with pytest.raises(InputError, match=r"--output is .*table: it has the table of another study; use another folder"):
        launch_study(other, tmp_path, output=tmp_path / "table")


def test_the_list_of_trainings_ends_a_study_that_was_killed(
    study: Study, store: str, tmp_path: Path, command: Callable[..., tuple[Any, str, str]], no_pause: None
) -> None:
    client = open_client(store)
    parent, _ = make_trial(client, study, tmp_path)
    with claimed(client, parent):
        pass
    code, output, _ = command(list_runs)
    assert (code, output.splitlines()[1:]) == (0, [f"python -m training.ablate --resume {parent}"])
    runs = [client.get_run(parent), *find_children(client, parent).values()]
    assert {run.info.status for run in runs} == {"KILLED"}


@pytest.mark.parametrize(
    ("device", "nodes", "concurrent", "expected"),
    [
        ("auto", [{"CPU": 2.0}], 1, ("cpu", {"CPU": 2})),
        ("auto", [{"CPU": 8.0}, {"CPU": 2.0}], 3, ("cpu", {"CPU": 3})),
        ("auto", [{"CPU": 8.0}, {"CPU": 8.0}], 1, ("cpu", {"CPU": 8})),
        ("auto", [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}], 2, ("cuda", {"CPU": 4, "GPU": 1})),
        ("cpu", [{"CPU": 16.0, "GPU": 4.0}], 4, ("cpu", {"CPU": 4})),
        ("auto", [{"CPU": 2.0}], 3, "--concurrent is 3: the cluster has 2 cpu devices"),
        ("cuda", [{"CPU": 2.0}], 1, "device is cuda: the cluster has 2 CPU cores and 0 GPUs"),
    ],
)
def test_a_training_gets_a_gpu_or_a_share_of_the_cores(
    device: Any, nodes: list[dict[str, float]], concurrent: int, expected: Any
) -> None:
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            trial_resources(device, nodes, concurrent)
    else:
        assert trial_resources(device, nodes, concurrent) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RECIPE is missing; use python -m training.ablate RECIPE --toggle"),
        (["tiny-imagenet"], "--toggle is missing; use python -m training.ablate RECIPE --toggle"),
        (["finetune", "--toggle", "lrn"], "recipe is 'finetune'; use sample, cifar10"),
        (["tiny-imagenet", "--toggle", "lrm"], "--toggle is 'lrm'; use lrn, overlap"),
        (["tiny-imagenet", "--toggle", "lrn", "--seeds", "1", "1"], "--seeds has 1 twice; use it once"),
        (["tiny-imagenet", "--toggle", "lrn", "--seeds", "-1"], "--seeds is -1; use a whole number from 0"),
        (["tiny-imagenet", "--toggle", "lrn", "--concurrent", "0"], "--concurrent is 0; use a whole number from 1"),
        (["tiny-imagenet", "--toggle", "lrn", "--seed", "3"], "seed is 3: use --seeds; leave it out"),
        (["tiny-imagenet", "--toggle", "lrn", "--parallel.data", "2"], "parallel.data is 2: each training of a study"),
        (["tiny-imagenet", "--toggle", "lrn", "--checkpoint.every-steps", "2"], "checkpoint.every_steps is 2: a study"),
        (["tiny-imagenet", "--toggle", "lrn", "--run-name", "x"], "run_name is 'x': .* use --name"),
        (["tiny-imagenet", "--toggle", "lrn", "--epoch", "3"], "--epoch is unknown; did you mean --epochs"),
        (["--resume", "ab", "--seeds", "1"], "--resume goes on with the study's own recipe and fields, not seeds"),
        (["tiny-imagenet", "--toggle", "towers", "--data"], "--toggle is towers: network.name is alexnet-small"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    tiny_shards: Path, command: Callable[..., tuple[Any, str, str]], arguments: list[str], message: str
) -> None:
    more = [] if not arguments or arguments[0] == "--resume" else ["--data", tiny_shards]
    given = [word for word in arguments if word != "--data"]
    code, _, errors = command(ablate.main, *given, *more)
    assert code == 2
    (line,) = errors.splitlines()
    assert re.search(message, line), line


@pytest.fixture
def start(tiny_shards: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a study on an own Ray, in a session of its own."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    environment.pop("RAY_ADDRESS", None)

    def start(*fields: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "training.ablate", "tiny-imagenet", "--toggle", "lrn", "ten-crop"]
        command += ["--seeds", "0", "1", "--data", tiny_shards, "--storage", tmp_path / "runs"]
        command += ["--output", tmp_path / "table", "--batch-size", "32", "--device", "cpu"]
        command += ["--optimizer.learning-rate", "0.001", *fields]
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=PROJECT,
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run that was itself started with `&` would hand down that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return what a process prints, up to and with the line that has `text`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"no {text!r} in {''.join(lines)}{process.communicate()[1]}")


def runs_of(tmp_path: Path) -> tuple[Run, dict[tuple[str, int], Run]]:
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("twotower")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if VARIANT not in run.data.tags]
    children = {(run.data.tags[VARIANT], int(run.data.tags[SEED])): run for run in runs if VARIANT in run.data.tags}
    assert len(children) == len(runs) - 1
    return parent, children


@pytest.mark.slow
def test_a_killed_study_goes_on(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """SIGKILL after the first training; then one that cannot be trained does not stop the others."""
    killed = start("--epochs", 1)
    read_until(killed, "base, seed 0: finished, 1 of 4 trainings")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    _, before = runs_of(tmp_path)
    assert before[BASE, 0].info.status == before["ten-crop", 0].info.status == "FINISHED"
    obstacle = tmp_path / "runs" / before["lrn", 1].info.run_id
    obstacle.write_text("a file where a folder belongs")
    again = start("--epochs", 1)
    output, errors = again.communicate(timeout=600)
    assert again.returncode == 1, errors
    assert "base, seed 0" not in output
    assert errors.splitlines()[-1].startswith("error: failed: lrn, seed 1 (")
    parent, children = runs_of(tmp_path)
    assert (parent.info.status, children["lrn", 1].info.status) == ("FAILED", "FAILED")
    assert [line["n"] for line in csv.DictReader((tmp_path / "table" / "ablation.csv").open())] == ["2", "1", "2"]
    obstacle.unlink()
    last = start("--epochs", 1)
    output, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors
    assert output.count(": finished, ") == 1
    parent, after = runs_of(tmp_path)
    assert {run.info.status for run in [parent, *after.values()]} == {"FINISHED"}
    assert after[BASE, 0].info.end_time == before[BASE, 0].info.end_time
    assert (parent.data.params["toggles"], parent.data.params["seeds"]) == ("lrn ten-crop", "0 1")
    assert [line["n"] for line in csv.DictReader((tmp_path / "table" / "ablation.csv").open())] == ["2", "2", "2"]
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert files == {"ablation.json", "ablation.md", "ablation.csv", "ablation.png"}
    assert len(client.get_metric_history(after["lrn", 0].info.run_id, "val/top1")) == 1


@pytest.mark.slow
def test_an_interrupted_study_says_so(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start("--epochs", 1000)
    read_until(process, "base, seed 0: epoch 1/1000")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    parent, children = runs_of(tmp_path)
    assert {run.info.status for run in [parent, *children.values()]} == {"KILLED"}
    assert f"go on with: python -m training.ablate --resume {parent.info.run_id}" in errors
    assert "Traceback" not in errors
