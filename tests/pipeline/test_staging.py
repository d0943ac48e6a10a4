"""Shards from an object store: the same batches as from a folder, each shard copied once, room made, faults survived.

The store is a real S3 server on loopback, behind a proxy that does what networks and stores do.
"""

import contextlib
import hashlib
import multiprocessing
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import PROJECT
from s3_server import BUCKET, FaultyStore, cut, damage, hold, refuse, slow, upload
from shard_folders import cut as divide
from shard_folders import texture_jpegs, write_shards

import object_store
from errors import InputError
from object_store import StoreError
from pipeline.loader import Loader, make_loader
from pipeline.reading.staging import Staging
from preprocess.manifest import manifest_digest, read_manifest

TRAIN, SHARDS = 200, 20
BATCH = 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty train shards of ten samples, more than are shuffled together, and two val shards."""
    jpegs = texture_jpegs(0, TRAIN + 30)
    train = divide(jpegs[:TRAIN], [TRAIN // SHARDS] * SHARDS)
    val = divide(jpegs[TRAIN:], [20, 10])
    return write_shards(tmp_path_factory.mktemp("shards") / "data", {"train": train, "val": val}, classes=5)


@pytest.fixture
def uri(shards: Path, s3: FaultyStore, request: pytest.FixtureRequest) -> str:
    prefix = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    upload(s3.endpoint, shards, prefix)
    s3.requests.clear()
    return f"s3://{BUCKET}/{prefix}"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "BACK_OFF_SECONDS", (0.01,) * 2)


def staging(folder: Path, **limits: int) -> Staging:
    return Staging(str(folder / "staging"), **limits)


def digests(loader: Loader, epochs: int = 1) -> Iterator[str]:
    for _ in range(epochs):
        for images, labels in loader:
            yield hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def staged_bytes(folder: Path) -> int:
    total = 0
    for path in (folder / "staging").glob("*/*.tar"):
        with contextlib.suppress(FileNotFoundError):  # it makes room at this moment
            total += path.stat().st_size
    return total


def test_the_batches_are_those_of_a_folder_and_each_shard_is_copied_once(
    shards: Path, uri: str, s3: FaultyStore, tmp_path: Path
) -> None:
    assert read_manifest(uri) == read_manifest(shards)
    assert manifest_digest(uri) == manifest_digest(shards)
    for split, settings in (("train", {"seed": 3, "mean": "image"}), ("val", {"crops": 10})):
        local = make_loader(shards, split, BATCH, **settings)
        staged = make_loader(uri, split, BATCH, staging=staging(tmp_path), **settings)
        assert list(digests(staged, 2)) == list(digests(local, 2))
    assert {s3.gets(f"/{shard.tar}") for shard in read_manifest(shards).shards()} == {1}
    before = s3.gets(".tar")
    warm = make_loader(uri, "train", BATCH, seed=4, staging=staging(tmp_path))
    assert list(digests(warm)) == list(digests(make_loader(shards, "train", BATCH, seed=4)))
    assert s3.gets(".tar") == before


@pytest.mark.parametrize(
    "setting",
    [pytest.param({"cache": "host"}, marks=pytest.mark.slow), {"sampling": "balanced"}],  # it compiles its kernel
    ids=["cache", "balanced"],
)
def test_the_other_orders_have_the_same_batches_too(
    shards: Path, uri: str, tmp_path: Path, setting: dict[str, str]
) -> None:
    local, staged = (
        make_loader(where, "train", BATCH, staging=staging(tmp_path), **setting) for where in (shards, uri)
    )
    assert list(digests(staged, 2)) == list(digests(local, 2))


def test_a_loader_goes_on_from_the_state_of_one_that_read_a_folder(shards: Path, uri: str, tmp_path: Path) -> None:
    local = make_loader(shards, "train", BATCH)
    batches = digests(local)
    for _ in range(5):
        next(batches)
    state = local.state_dict()
    staged = make_loader(uri, "train", BATCH, staging=staging(tmp_path))
    staged.load_state_dict(state)
    assert list(digests(staged)) == list(batches)


def test_the_first_batch_does_not_wait_for_the_shards_after_it(
    shards: Path, uri: str, s3: FaultyStore, tmp_path: Path
) -> None:
    val = read_manifest(shards).split("val").shards
    released = threading.Event()
    s3.fault(hold(released), val[1].tar)
    batches = digests(make_loader(uri, "val", 4, staging=staging(tmp_path)))
    next(batches)
    assert not released.is_set()
    released.set()
    assert len(list(batches)) == 7
    assert s3.gets(f"/{val[1].tar}") == 1


def test_the_shards_used_longest_ago_make_room(shards: Path, uri: str, s3: FaultyStore, tmp_path: Path) -> None:
    largest = sorted((shard.bytes for shard in read_manifest(shards).split("train").shards), reverse=True)
    limit = sum(largest[:17])
    staged = make_loader(uri, "train", BATCH, staging=staging(tmp_path, bytes=limit))
    expected = digests(make_loader(shards, "train", BATCH), 3)
    for digest in digests(staged, 3):
        assert digest == next(expected)
        assert staged_bytes(tmp_path) <= limit
    assert s3.gets(".tar") > SHARDS, "there was no room for all"
    other = make_loader(uri, "val", BATCH, staging=staging(tmp_path, bytes=limit))
    assert list(digests(other)) == list(digests(make_loader(shards, "val", BATCH)))


def test_a_folder_too_small_for_the_shards_in_turns_is_refused(shards: Path, uri: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"staging_bytes is 20000 in .*: the 16 shards that are read in turns have up to"
    ):
        make_loader(uri, "train", BATCH, staging=staging(tmp_path, bytes=20_000))
    total = sum(shard.bytes for shard in read_manifest(shards).split("train").shards)
    with pytest.raises(InputError, match="the 20 shards that are read in turns"):
        make_loader(uri, "train", BATCH, cache="host", staging=staging(tmp_path, bytes=total - 1))


def _read(uri: str, folder: Path, rank: int, found: "multiprocessing.Queue[list[str]]") -> None:
    loader = make_loader(uri, "train", BATCH // 2, rank=rank, world_size=2, staging=staging(folder))
    found.put(list(digests(loader, 2)))


@pytest.mark.slow
def test_processes_of_a_machine_copy_each_shard_once(shards: Path, uri: str, s3: FaultyStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found = [context.Queue() for _ in range(2)]
    workers = [context.Process(target=_read, args=(uri, tmp_path, rank, found[rank])) for rank in range(2)]
    for worker in workers:
        worker.start()
    for rank in range(2):
        expected = make_loader(shards, "train", BATCH // 2, rank=rank, world_size=2)
        assert found[rank].get(timeout=120) == list(digests(expected, 2))
    for worker in workers:
        worker.join(60)
    assert {s3.gets(f"/{shard.tar}") for shard in read_manifest(shards).split("train").shards} == {1}


def test_what_a_killed_process_leaves_is_not_taken_for_a_shard(
    shards: Path, uri: str, s3: FaultyStore, tmp_path: Path
) -> None:
    s3.fault(slow(30), "train-000007.tar", times=1)
    code = (
        "import sys; from pipeline.loader import make_loader; from pipeline.reading.staging import Staging;"
        f"[0 for _ in make_loader({uri!r}, 'train', {BATCH}, staging=Staging({str(tmp_path / 'staging')!r}))]"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT)
    deadline = time.monotonic() + 60
    while not s3.gets("train-000007.tar") and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    (partial,) = (tmp_path / "staging").glob("*/.train-000007.tar.partial")
    assert not partial.with_name("train-000007.tar").exists()
    staged = make_loader(uri, "train", BATCH, staging=staging(tmp_path))
    assert list(digests(staged)) == list(digests(make_loader(shards, "train", BATCH)))
    assert not partial.exists()


def test_a_data_set_that_is_replaced_in_the_store_does_not_mix_with_the_old_one(
    shards: Path, uri: str, s3: FaultyStore, tmp_path: Path
) -> None:
    list(digests(make_loader(uri, "val", BATCH, staging=staging(tmp_path))))
    jpegs = texture_jpegs(1, 60)
    new = write_shards(tmp_path / "new", {"train": [jpegs[:30]], "val": [jpegs[30:50], jpegs[50:]]}, classes=5)
    upload(s3.endpoint, new, uri.rpartition("/")[2])
    replaced = make_loader(uri, "val", BATCH, staging=staging(tmp_path))
    assert list(digests(replaced)) == list(digests(make_loader(new, "val", BATCH)))


@pytest.mark.parametrize(
    ("fault", "times"),
    [(refuse(503, "SlowDown"), 3), (refuse(500, "InternalError"), 3), (cut, 3), (damage, 1)],
    ids=["503", "500", "cut", "damaged"],
)
@pytest.mark.usefixtures("no_pauses")
def test_a_fault_that_passes_changes_nothing(
    shards: Path, uri: str, s3: FaultyStore, tmp_path: Path, fault: object, times: int
) -> None:
    s3.fault(fault, ".tar", times=times)
    staged = make_loader(uri, "train", BATCH, staging=staging(tmp_path))
    assert list(digests(staged)) == list(digests(make_loader(shards, "train", BATCH)))
    assert s3.gets(".tar") > SHARDS


def test_an_answer_later_than_the_sdk_waits_for_is_waited_for(
    shards: Path, uri: str, s3: FaultyStore, tmp_path: Path
) -> None:
    s3.fault(slow(4), "train-000000.tar")
    staged = make_loader(uri, "train", BATCH, staging=staging(tmp_path))
    assert list(digests(staged)) == list(digests(make_loader(shards, "train", BATCH)))
    assert s3.gets("train-000000.tar") == 1


@pytest.mark.parametrize(
    ("fault", "methods", "message"),
    [
        pytest.param(
            refuse(503, "SlowDown"),
            ("GET",),
            r"cannot be read: the store fails again and again \(.*\); try again later",
            marks=pytest.mark.slow,  # the SDK tries each request several times
        ),
        (refuse(400, "ExpiredToken"), ("GET", "HEAD"), "cannot be read: the credentials have expired; renew them"),
        (damage, ("GET",), "train-0000.*.tar has another SHA-256 than the manifest says; upload it again"),
    ],
    ids=["busy", "expired", "damaged"],
)
@pytest.mark.usefixtures("no_pauses")
def test_a_fault_that_stays_while_reading_is_one_line(
    uri: str, s3: FaultyStore, tmp_path: Path, fault: object, methods: tuple[str, ...], message: str
) -> None:
    staged = make_loader(uri, "train", BATCH, on_error="skip", staging=staging(tmp_path))
    for method in methods:
        s3.fault(fault, "" if "expired" in message else ".tar", method)
    with pytest.raises(StoreError, match=message) as raised:
        list(digests(staged))
    assert "\n" not in str(raised.value)
    assert raised.value.is_transient == ("again and again" in message)
    assert staged_bytes(tmp_path) == 0


def test_a_full_disk_is_one_line(uri: str, shards: Path, tmp_path: Path) -> None:
    disk = tmp_path / "staging"
    disk.mkdir()
    size = read_manifest(shards).split("val").shards[0].bytes
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * size}", "tmpfs", disk], check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        staged = make_loader(uri, "val", BATCH, staging=staging(tmp_path, bytes=2 * size))
        (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free))
        with pytest.raises(InputError, match=r"staging is .*: a shard cannot be written: No space left on device"):
            list(digests(staged))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written_is_one_line(uri: str, tmp_path: Path) -> None:
    (tmp_path / "staging").write_text("a file")
    with pytest.raises(InputError, match=r"staging is .*: it cannot be written: .*; use another folder"):
        make_loader(uri, "val", BATCH, staging=staging(tmp_path))


def test_the_default_folder_is_the_user_s_cache(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loader = make_loader(uri, "val", BATCH)
    assert torch.equal(next(iter(loader))[1], torch.from_numpy(np.arange(BATCH) % 5))
    assert len(list((tmp_path / "twotower" / "shards").glob("*/val-*.tar"))) == 2
