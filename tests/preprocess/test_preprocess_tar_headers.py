"""Tar headers are read as `tarfile` reads them, whatever is mixed in one archive."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from errors import InputError
from preprocess.sources.tar_headers import Member, open_tar, read_members

MIXES = {
    "plain": ["a.JPEG", "b c.JPEG", os.fsdecode(b"\xff.JPEG"), "empty.JPEG", "ü/" + "n" * 90],
    "long": ["a.JPEG", "d/" * 60 + "long.JPEG", "b.JPEG", "l" * 120 + ".JPEG", "c.JPEG"],
    "odd": ["a.JPEG", "folder/", "b.JPEG", "link -> a.JPEG", "c.JPEG"],
}


def write_tar(path: Path, names: list[str], kind: int) -> None:
    rng = random.Random(0)
    with tarfile.open(path, "w", format=kind) as tar:
        for name in names:
            name, _, target = name.partition(" -> ")
            info = tarfile.TarInfo(name)
            if target:
                info.type, info.linkname = tarfile.SYMTYPE, target
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            else:
                info.size = 0 if "empty" in name else rng.randrange(1, 2000)
            tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))


def listed(path: Path, begin: int = 0, end: int | None = None) -> list[Member]:
    with open_tar(path) as file:
        return list(read_members(file, path, begin, end))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mix", MIXES)
def test_members_are_those_of_tarfile(tmp_path: Path, mix: str, kind: int) -> None:
    path = tmp_path / "in.tar"
    names = [name for name in MIXES[mix] if kind != tarfile.USTAR_FORMAT or (len(name) < 150 and "l" * 120 not in name)]
    write_tar(path, names, kind)
    with tarfile.open(path) as tar:
        expected = [Member(m.name, m.offset_data, m.size, m.isreg()) for m in tar.getmembers()]
    assert listed(path) == expected
    assert len(expected) == len(names)
    # The same tar as a part of another file, with the rest of that behind it.
    tar_bytes = path.read_bytes()
    path.write_bytes(b"x" * 512 + tar_bytes + b"y" * 10_000)
    moved = [member._replace(offset=member.offset + 512) for member in expected]
    assert listed(path, 512, 512 + len(tar_bytes)) == moved


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_that_is_cut_anywhere_is_not_a_shorter_tar(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "in.tar"
    write_tar(path, MIXES["long"], kind)
    data = path.read_bytes()
    used = len(data.rstrip(b"\0"))  # at the least: the last body may end in zeros
    for length in range(0, used, 100):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"in\.tar is truncated or not a tar: "):
            listed(path)


def test_a_broken_header_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "in.tar"
    write_tar(path, MIXES["plain"], tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    second = listed(path)[1].offset - 512
    data[second + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"neither header nor end mark at byte {second}$"):
        listed(path)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.tar cannot be read: No such file or directory"):
        open_tar(tmp_path / "gone.tar")
