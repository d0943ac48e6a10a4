"""The page of a run in MLflow's UI."""

import dataclasses
import shlex
import shutil
from pathlib import Path

import pytest
from commands import PROJECT
from mlflow import MlflowClient

from errors import InputError
from training.config import Config, flatten
from training.launch.resume import check_changes
from training.recipes import RECIPES, finetune
from training.run import parse
from training.tracking import finish, mark_running, open_client, resume_run, settle, start_run, viewing_lines
from training.tracking.claim import HEARTBEAT, OWNER
from training.tracking.run_text import run_name, update_description
from training.tracking.source import COMMAND

NOTE = "mlflow.note.content"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    shutil.copytree(PROJECT / "tests" / "data" / "shards-0.1", tmp_path / "shards")
    return dataclasses.replace(RECIPES["sample"](), data=str(tmp_path / "shards"), storage=str(tmp_path / "runs"))


def started(client: MlflowClient, config: Config, **params: object) -> str:
    return start_run(client, config, {"recipe": "sample", "manifest_sha256": "1", "data": "d", **params}, PROJECT)


def test_a_name_says_recipe_data_set_and_what_differs_from_the_recipe(config: Config) -> None:
    assert run_name(config, "sample") == "sample"
    assert run_name(config, "pets") == "sample pets"
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.05, milestones={}, freeze={"conv1": 2})
    other = dataclasses.replace(config, seed=1, optimizer=optimizer, init="/weights/it's.pt", log_every=3, device="cpu")
    assert run_name(other, "pets") == "sample pets init=its.pt seed=1 lr=0.05 freeze.conv1=2"
    tuned = dataclasses.replace(finetune(RECIPES["cifar10"]()), init="0123:best", epochs=3)
    assert run_name(tuned, "pets") == "finetune pets epochs=3 init=0123:best"
    long = dataclasses.replace(
        config, optimizer=dataclasses.replace(optimizer, freeze=dict.fromkeys(map(str, range(99)), 1))
    )
    assert len(run_name(long, "pets")) == 100


def test_equal_trainings_are_numbered_and_names_are_the_user_s_if_given(store: str, config: Config) -> None:
    client = open_client(store)
    named = dataclasses.replace(config, run_name="mine")
    ids = [started(client, one) for one in (config, config, named, named, config)]
    names = [client.get_run(run_id).info.run_name for run_id in ids]
    assert names == ["sample drawn", "sample drawn #2", "mine", "mine", "sample drawn #3"]


def test_the_lines_on_the_terminal_open_the_run_among_trainings(
    store: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = open_client(store)
    run_id = started(client, config)
    assert viewing_lines(client, run_id) == [
        f"look with: mlflow ui --backend-store-uri {store}",
        f"look at: http://127.0.0.1:5000/#/experiments/1/runs/{run_id}?workflowType=machine_learning",
    ]
    away = MlflowClient("http://me:secret@127.0.0.1:1/path/")
    assert viewing_lines(away, run_id) == ["look at: http://127.0.0.1:1/path/"]


def test_a_run_has_its_source_its_data_and_the_user_s_tags(store: str, config: Config) -> None:
    client = open_client(store)
    run_id = started(client, dataclasses.replace(config, tag=("owner=me", "why=a=b")))
    run = client.get_run(run_id)
    tags = run.data.tags
    assert (tags["owner"], tags["why"]) == ("me", "a=b")
    assert tags["mlflow.user"]
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"].startswith("python ")
    assert tags["twotower.command"].startswith(tags["mlflow.source.name"])
    assert len(tags["mlflow.source.git.commit"]) == 40
    found = {one.dataset.name: (one.dataset.digest, one.tags[0].value) for one in run.inputs.dataset_inputs}
    digest = next(iter(found.values()))[0]
    assert found == {"drawn/train": (digest, "training"), "drawn/val": (digest, "validation")}
    assert len(digest) == 8


def test_name_and_tags_are_options_and_may_change_when_a_run_is_resumed(store: str, config: Config) -> None:
    given = parse(["sample", "--run-name", "x", "--tag", "a=1", "--tag", "b=2"])
    assert (given.run_name, given.tags) == ("x", {"a": "1", "b": "2"})
    assert not {"run_name", "tag"} & set(flatten(given))
    check_changes(config, dataclasses.replace(config, run_name="y", tag=("a=3",)))
    client = open_client(store)
    run_id = started(client, config)
    resume_run(client, run_id, config)
    assert client.get_run(run_id).info.run_name == "sample drawn"
    resume_run(client, run_id, dataclasses.replace(config, run_name="y", tag=("a=3",)))
    run = client.get_run(run_id)
    assert (run.info.run_name, run.data.tags["a"]) == ("y", "3")


@pytest.mark.parametrize("tag", ["a", "=1", "mlflow.user=x", "twotower.owner=x", "a\n=1"])
def test_tags_that_are_none_are_refused(config: Config, tag: str) -> None:
    with pytest.raises(InputError, match=r"^tag is "):
        dataclasses.replace(config, tag=(tag,))


def test_the_description_has_result_place_and_commands(store: str, config: Config) -> None:
    client = open_client(store)
    ids = []
    for number, curve in enumerate(([0.2, 0.5], [0.6, 0.4], [0.1])):
        run_id = started(client, config)
        mark_running(client, run_id, config)
        assert client.get_run(run_id).data.tags[NOTE].splitlines()[2].startswith("**In training** before the first of")
        for epoch, top1 in enumerate(curve):
            client.log_metric(run_id, "val/top1", top1, step=10 * epoch)
        client.set_tag(run_id, NOTE, f"Mine {number}.\n\n{client.get_run(run_id).data.tags[NOTE]}")
        ids.append(run_id)
    client.set_tag(ids[0], COMMAND, "python -m training.run sample" + 9 * " --data '/my data'")
    for run_id in ids[:2]:
        finish(client, run_id, config.storage, "FINISHED")
    notes = [client.get_run(run_id).data.tags[NOTE] for run_id in ids]
    epochs = config.epochs
    assert notes[0].startswith("Mine 0.\n\n<!-- ")
    assert f"**Finished, top-1 0.5000** after 2 of {epochs} epochs.\n" in notes[0]
    assert "The first finished run of `sample` on this data set." in notes[0]
    assert f"**Finished, top-1 0.4000** after 2 of {epochs} epochs; best top-1 0.6000 after epoch 1." in notes[1]
    best = f"[sample drawn](#/experiments/1/runs/{ids[0]}?workflowType=machine_learning) with 0.5000"
    assert f"Place 2 of 2 finished runs of `sample` on this data set; the best other one is {best}." in notes[1]
    assert f"python -m training.evaluate --run {ids[0]} --which best --data d\n" in notes[0]
    assert f"python -m training.run --resume {ids[0]} --epochs N\n" in notes[0]
    lines = notes[0].partition("# started by\n")[2].splitlines()
    assert max(map(len, lines)) <= 95
    assert shlex.split("\n".join(lines[:-1]).replace("\\\n", "")) == shlex.split(
        client.get_run(ids[0]).data.tags[COMMAND]
    )
    # The third one's process is gone.
    client.set_tag(ids[2], OWNER, "another-machine 1 abc")
    client.set_tag(ids[2], HEARTBEAT, "1")
    settle(client, client.get_run(ids[2]))
    note = client.get_run(ids[2]).data.tags[NOTE]
    assert f"**Interrupted, top-1 0.1000** after 1 of {epochs} epochs." in note
    assert f"python -m training.run --resume {ids[2]}\n" in note
    client.log_metric(ids[2], "eval/top1", 0.125)
    update_description(client, ids[2])
    assert "; evaluated: top-1 0.1250." in client.get_run(ids[2]).data.tags[NOTE]
