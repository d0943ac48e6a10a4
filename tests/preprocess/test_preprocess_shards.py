import hashlib
import os
import tarfile
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from shard_reading import folder_bytes
from wds2idx import IndexCreator

from preprocess.manifest import Shard, read_index
from preprocess.shards import ShardWriter, label_width, sample_keys

NAMES = [
    "train/n01440764/n01440764_10026.JPEG",
    "val/n01440764/ILSVRC2012_val_00000293.JPEG",
    "train/a/x.jpg",
    "train/a/x.png",
    "train/a/x.png.jpg",
    "train/a/x.y.z.jpg",
    "train/a/.hidden.jpg",
    "train/über uns/Bild 1.jpg",
    "train/a/line\nbreak.jpg",
    "train/a/100%25.jpg",
    os.fsdecode(b"train/a/\xff\xfe.jpg"),
]


def test_keys_are_unique_plain_and_lead_back_to_the_file() -> None:
    keys = sample_keys(NAMES)
    assert keys[0] == "train/n01440764/n01440764_10026"
    assert len(set(keys)) == len(NAMES)
    for key, name in zip(keys, NAMES, strict=True):
        assert key.isascii()
        assert not set(key) & set(". \n\t\"'\\")
        path = os.fsencode(name)
        assert unquote_to_bytes(key) in (path, path.rpartition(b".")[0])


def test_keys_do_not_depend_on_the_order_of_the_names() -> None:
    assert sample_keys(NAMES[::-1]) == sample_keys(NAMES)[::-1]


def test_long_names_make_keys_that_ustar_can_hold() -> None:
    names = [f"train/{'長い名前' * 9}/{'x' * 150}{number}.jpg" for number in range(3)]
    keys = sample_keys(names)
    assert len(set(keys)) == 3
    assert all(len(f"{key}.jpg") <= 100 and key.startswith("train/%E9%95%B7") for key in keys)


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (10, 1), (11, 2), (1000, 3), (1001, 4)])
def test_labels_are_as_wide_as_the_largest(classes: int, width: int) -> None:
    assert label_width(classes) == width


@pytest.fixture
def samples() -> list[tuple[str, bytes, str]]:
    sizes = [0, 1, 511, 512, 513, 70_000] + [100] * 5
    keys = sample_keys(NAMES)
    return [(key, bytes([65 + i]) * size, f"{i:03d}") for i, (key, size) in enumerate(zip(keys, sizes, strict=True))]


def write(folder: Path, samples: list[tuple[str, bytes, str]], stem: str = "train-000000") -> Shard:
    with ShardWriter(folder, stem) as writer:
        for sample in samples:
            writer.add(*sample)
        return writer.commit()


def test_the_tar_is_plain_ustar_without_time_or_owner(tmp_path: Path, samples: list) -> None:
    shard = write(tmp_path, samples)
    data = (tmp_path / shard.tar).read_bytes()
    with tarfile.open(tmp_path / shard.tar) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"{key}.{end}" for key, _, _ in samples for end in ("jpg", "cls")]
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644
            header = data[member.offset : member.offset + 512]
            assert header[257:265] == b"ustar\x0000"  # neither GNU nor PAX
            assert member.offset_data == member.offset + 512  # no extended header in between
        contents = [tar.extractfile(member).read() for member in members]
    assert contents == [content for _, image, label in samples for content in (image, label.encode())]
    assert (shard.bytes, shard.samples) == (len(data), len(samples))
    assert shard.sha256 == hashlib.sha256(data).hexdigest()


def test_the_index_is_the_one_that_dali_would_write(tmp_path: Path, samples: list) -> None:
    shard = write(tmp_path, samples)
    with IndexCreator(str(tmp_path / shard.tar), str(tmp_path / "reference.idx"), verbose=False) as creator:
        creator.create_index()
    assert (tmp_path / shard.index).read_text() == (tmp_path / "reference.idx").read_text()
    assert [entry.key for entry in read_index(tmp_path / shard.index)] == [key for key, _, _ in samples]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path, samples: list) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, samples)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_a_shard_has_no_name_before_it_is_whole(tmp_path: Path, samples: list) -> None:
    with ShardWriter(tmp_path, "val-000003") as writer:
        for sample in samples:
            writer.add(*sample)
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
        writer.commit()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["val-000003.idx", "val-000003.tar"]


def test_a_failed_or_abandoned_shard_leaves_nothing(
    tmp_path: Path, samples: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardWriter, "commit", lambda self: self.unknown)
    with pytest.raises(AttributeError):
        write(tmp_path, samples)
    assert list(tmp_path.iterdir()) == []
    with ShardWriter(tmp_path, "train-000001") as writer:
        writer.add("a", b"x" * 100_000, "0")
    assert list(tmp_path.iterdir()) == []
