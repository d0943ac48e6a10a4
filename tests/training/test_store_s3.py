"""The checkpoints of a run in a bucket of a real S3 server, behind a proxy that does what networks do."""

import dataclasses
from pathlib import Path

import pytest
import torch
from s3_server import BUCKET, FaultyStore, cut, refuse

import object_store
from errors import InputError
from training.checkpoint import MODEL, PAGE, TRAINING, Checkpoint, Snapshot, read_checkpoint, read_model
from training.launch.store import BackgroundWriter, CheckpointStore, check_storage

KEEP = 2


@pytest.fixture
def description(checkpoint: Path) -> Checkpoint:
    return read_checkpoint(checkpoint)


@pytest.fixture
def storage(s3: FaultyStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(object_store, "BACK_OFF_SECONDS", (0.01,))
    return f"s3://{BUCKET}/runs-of-{request.node.name.partition('[')[0]}"


def snapshot(description: Checkpoint, step: int, top1: float | None = None) -> Snapshot:
    metrics = {} if top1 is None else {"val/top1": top1}
    page = dataclasses.replace(description, step=step, metrics=metrics)
    return Snapshot(page, {"weight": torch.full((4,), float(step))}, {})


def files(s3: FaultyStore, store: CheckpointStore, step: int) -> list[str]:
    return sorted(object_store.StoreFolder(store.location(step)).sizes())


def test_the_best_and_the_newest_are_kept_and_nothing_else(
    description: Checkpoint, s3: FaultyStore, storage: str
) -> None:
    check_storage(storage)
    store = CheckpointStore(storage, "run")
    assert (store.steps(), store.newest(), store.best()) == ([], None, None)
    for step, top1 in ((10, 0.5), (20, 0.9), (30, None), (40, 0.7), (50, None)):
        store.write(snapshot(description, step, top1), KEEP)
    assert (store.steps(), store.newest(), store.best()) == ([20, 40, 50], 50, 20)
    assert files(s3, store, 50) == [PAGE, MODEL, TRAINING]
    assert files(s3, store, 10) == files(s3, store, 30) == []
    with store.fetch(50) as folder:
        assert read_model(folder / MODEL)["weight"].tolist() == [50.0] * 4
    store.write_initial({"weight": torch.ones(3)})
    assert store.has_initial()
    assert store.read_initial()["weight"].tolist() == [1.0] * 3
    assert not store.is_requested("stop")
    store.request("stop")
    assert store.is_requested("stop")
    store.withdraw_requests()
    assert not store.is_requested("stop")


def test_the_endpoint_may_stand_in_the_uri(
    description: Checkpoint, s3: FaultyStore, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override={s3.endpoint.removeprefix('http://')}&scheme=http"
    store = CheckpointStore(storage + options, "run")
    store.write(snapshot(description, 10), KEEP)
    assert store.location(10) == f"{storage}/run/step-00000010{options}"
    assert files(s3, store, 10) == [PAGE, MODEL, TRAINING]


def test_a_checkpoint_whose_upload_failed_is_none(
    description: Checkpoint, s3: FaultyStore, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, recorded = CheckpointStore(storage, "run"), list[str]()
    writer = BackgroundWriter(store, KEEP, lambda: None, lambda last, _best: recorded.append(last))
    writer.write(snapshot(description, 10))
    assert writer.wait() is None
    s3.fault(refuse(403, "AccessDenied"), PAGE, "PUT")
    s3.fault(refuse(403, "AccessDenied"), PAGE, "POST")
    writer.write(snapshot(description, 20))
    assert writer.wait() is not None
    assert "warning: no checkpoint of step 20: " in capsys.readouterr().err
    assert files(s3, store, 20) == [MODEL, TRAINING], "the description comes last"
    assert (store.steps(), store.newest()) == ([10], 10)
    s3.faults.clear()
    writer.write(snapshot(description, 20))
    assert writer.wait() is None
    assert (store.newest(), recorded) == (20, [store.location(10), store.location(20)])


def test_one_that_is_replaced_is_none_until_it_is_complete(
    description: Checkpoint, s3: FaultyStore, storage: str
) -> None:
    store = CheckpointStore(storage, "run")
    for step in (10, 20):
        store.write(snapshot(description, step), KEEP)
    s3.fault(refuse(403, "AccessDenied"), TRAINING, "PUT")
    s3.fault(refuse(403, "AccessDenied"), TRAINING, "POST")
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        store.write(snapshot(description, 20, 0.5), KEEP)
    assert store.steps() == [10]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [refuse(503, "SlowDown"), cut], ids=["503", "cut"])
def test_faults_that_pass_cost_nothing(description: Checkpoint, s3: FaultyStore, storage: str, fault: object) -> None:
    store = CheckpointStore(storage, "run")
    for method in ("GET", "PUT", "POST", "DELETE"):
        s3.fault(fault, method=method, times=1)
    for step in (10, 20, 30):
        store.write(snapshot(description, step), KEEP)
    assert (store.steps(), store.newest()) == ([20, 30], 30)


@pytest.mark.parametrize(
    ("storage", "fault", "message"),
    [
        (
            "s3://missing/runs",
            None,
            r"storage is s3://missing/runs: no file .* there \(there is no such bucket; use",
        ),
        (f"s3://{BUCKET}/runs", refuse(400, "ExpiredToken"), r"\(the credentials have expired; renew them"),
        ("s3://key:SECRET@bucket/runs", None, r"s3://... holds credentials; leave them out of the URI"),
    ],
    ids=["bucket", "expired", "credentials"],
)
def test_a_storage_that_cannot_be_used_is_one_line(s3: FaultyStore, storage: str, fault: object, message: str) -> None:
    if fault is not None:
        for method in ("GET", "HEAD", "PUT", "POST"):
            s3.fault(fault, method=method)
    with pytest.raises(InputError, match=message) as raised:
        check_storage(storage)
    assert "\n" not in str(raised.value)
    assert "SECRET" not in str(raised.value)
