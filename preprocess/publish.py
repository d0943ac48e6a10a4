"""A complete folder of shards, copied into an object store; its manifest is written last.

Until then the folder in the store holds `.upload`, the digest of the manifest to come: what lies beside it is of this
upload, or of one with the same bytes, and an upload that was interrupted goes on after the files that are complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from errors import InputError
from object_store import StoreFolder, cache_folder
from preprocess.manifest import MANIFEST_NAME, parse_manifest

UPLOADS = 8
"""Files that are uploaded at the same time."""
_MARK = ".upload"


def default_folder(uri: str) -> Path:
    """Return where the shards of a data set in a store are built: in the user's cache, one folder for each URI."""
    return cache_folder("builds") / hashlib.sha256(uri.encode()).hexdigest()[:16]


def publish(folder: Path, uri: str) -> int:
    """Copy the complete data set in `folder` to `uri`; return the number of files that were not there yet.

    Raises:
        InputError: another data set is there.
        StoreError: of the store; the same call goes on.
    """
    store, page = StoreFolder(uri), (folder / MANIFEST_NAME).read_bytes()
    digest = hashlib.sha256(page).hexdigest().encode()
    there = store.sizes()
    current = store.read(MANIFEST_NAME) if MANIFEST_NAME in there else None
    if current not in (None, page):
        raise InputError(f"--output is {uri}: it is another complete data set; use another folder, or remove it")
    if current is None and (_MARK not in there or store.read(_MARK) != digest):
        store.write(_MARK, digest)  # before any file of this data set: what is there now may be of another one
        there = {}
    sizes = {name: (folder / name).stat().st_size for name in _files(folder)}
    pending = [name for name, size in sizes.items() if there.get(name) != size]
    _upload_all(store, folder, pending)
    there = store.sizes()
    if wrong := [name for name, size in sizes.items() if there.get(name) != size]:
        raise InputError(
            f"{uri} has not kept {wrong[0]}, which was uploaded; look who else writes there, and try again"
        )
    if current is None:
        store.upload(folder / MANIFEST_NAME, MANIFEST_NAME)
        pending.append(MANIFEST_NAME)
    if _MARK in there:
        store.delete(_MARK)
    return len(pending)


def _files(folder: Path) -> list[str]:
    manifest = parse_manifest(folder)
    return [
        *(name for shard in manifest.shards() for name in (shard.tar, shard.index)),
        manifest.color_stats.mean_image,
    ]


def _upload_all(store: StoreFolder, folder: Path, names: Sequence[str]) -> None:
    with (
        ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload") as threads,
        tqdm(total=len(names), desc="uploading", unit="file", disable=None) as progress,
    ):
        try:
            for done in as_completed([threads.submit(store.upload, folder / name, name) for name in names]):
                done.result()
                progress.update()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
