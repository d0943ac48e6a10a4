"""Object stores: addresses, and errors that are one line and say what to do."""

import os
from pathlib import Path

import pytest
from s3_server import BUCKET, FaultyStore, refuse

import object_store
from errors import InputError
from object_store import StoreError, StoreFolder, is_uri, join, read_file
from preprocess.manifest import read_manifest


def test_names_go_before_the_options_of_a_uri() -> None:
    assert join("s3://bucket/runs/?endpoint_override=host:9000&scheme=http", "a", "b") == (
        "s3://bucket/runs/a/b?endpoint_override=host:9000&scheme=http"
    )
    assert join("/data/what?", "a") == "/data/what?/a"
    assert [is_uri(place) for place in ("gs://bucket", "./shards", Path("/data"))] == [True, False, False]


def test_what_is_written_is_read_listed_and_removed(s3: FaultyStore, tmp_path: Path) -> None:
    content = os.urandom(object_store.PART_BYTES + 5)
    (tmp_path / "file").write_bytes(content)
    folder = StoreFolder(f"s3://{BUCKET}/some/folder")
    assert folder.sizes() == {}
    folder.upload(tmp_path / "file", "name")
    assert folder.sizes() == {"name": len(content)}
    assert b"".join(folder.parts("name")) == content
    assert read_file(f"s3://{BUCKET}/some/folder/name") == content
    folder.delete("name")
    folder.delete("name")
    assert folder.read("name") is None
    with pytest.raises(FileNotFoundError):
        read_file(f"s3://{BUCKET}/some/folder/name")


def test_the_endpoint_may_stand_in_the_uri(s3: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = s3.endpoint.removeprefix("http://")
    assert StoreFolder(f"s3://{BUCKET}/nothing?endpoint_override={host}&scheme=http").sizes() == {}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://missing/shards", "s3://missing/shards cannot be read: there is no such bucket; use one that exists"),
        (f"s3://{BUCKET}/none", f"s3://{BUCKET}/none has no manifest.json: it is not a complete folder of shards"),
        ("ftp://host/shards", "ftp://host/shards cannot be read: .*; use s3://BUCKET/FOLDER, gs://"),
        ("s3://KEY:SECRET@bucket/shards", "s3://... holds credentials; leave them out of the URI"),
    ],
    ids=["bucket", "manifest", "scheme", "credentials"],
)
def test_a_wrong_address_is_one_line(s3: FaultyStore, uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_manifest(uri)
    assert "\n" not in str(raised.value)
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "ExpiredToken", "the credentials have expired; renew them"),
        (403, "AccessDenied", r"the store refuses these credentials \(ACCESS_DENIED\); use some that are allowed to"),
        (403, "InvalidAccessKeyId", r"the store refuses these credentials \(INVALID_ACCESS_KEY_ID\)"),
        (403, "SignatureDoesNotMatch", r"the store refuses these credentials \(SIGNATURE_DOES_NOT_MATCH\)"),
    ],
)
def test_credentials_that_are_refused_are_one_line_at_once(
    s3: FaultyStore, status: int, code: str, message: str
) -> None:
    for method in ("GET", "HEAD", "POST", "PUT"):
        s3.fault(refuse(status, code), method=method)
    with pytest.raises(StoreError, match=f"s3://{BUCKET}/shards cannot be read: {message}") as raised:
        read_manifest(f"s3://{BUCKET}/shards")
    assert not raised.value.is_transient
    assert len(s3.requests) < 4, "the same credentials would be refused again"
    with pytest.raises(StoreError, match=f"cannot be written: {message}"):
        StoreFolder(f"s3://{BUCKET}/shards").upload(Path(__file__), "file")


def test_a_wrong_endpoint_is_one_line(s3: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        StoreError, match=r"no store answers there \(Could not connect.*\); use the right endpoint"
    ) as no:
        read_manifest(f"s3://{BUCKET}/shards")
    assert no.value.is_transient


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_upload_is_tried_again(
    s3: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(object_store, "BACK_OFF_SECONDS", (0.01,) * 4)
    (tmp_path / "file").write_bytes(b"content")
    s3.fault(refuse(503, "SlowDown"), method=method, times=4)
    folder = StoreFolder(f"s3://{BUCKET}/tried/{method}")
    folder.upload(tmp_path / "file", "name")
    assert folder.read("name") == b"content"
