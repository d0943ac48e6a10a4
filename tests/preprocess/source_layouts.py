"""The layouts in which data sets are handed out, written in their real formats from class folders.

`write_wnid_folders` makes the class folders: train/<wnid>/*, val/<wnid>/ILSVRC2012_val_<number>.JPEG. The others turn
those into what the same images would be if they came from elsewhere.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import shutil
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import savemat

# ILSVRC2012_ID, WNID, words, number of children: the ids are in another order than the wnids, as they really are.
SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n03887697", "paper towel", 0),
    (3, "n01440764", "tench, Tinca tinca", 0),
    (4, "n00001740", "entity", 2),
    (5, "n00015388", "animal, animate being, beast", 1),
]
WORDS = {wnid: words for _, wnid, words, children in SYNSETS if not children}
WNIDS = sorted(WORDS)
TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


def write_wnid_folders(raw: Path, root: Path) -> None:
    """Give three class folders of train and val the names that ImageNet has."""
    val = []
    for wnid, name in zip(WNIDS, sorted(path.name for path in (raw / "train").iterdir()), strict=True):
        shutil.copytree(raw / "train" / name, root / "train" / wnid)
        (root / "val" / wnid).mkdir(parents=True)
        val += [(path, wnid) for path in sorted((raw / "val" / name).iterdir())]
    random.Random(3).shuffle(val)
    for number, (path, wnid) in enumerate(val, start=1):
        shutil.copy(path, root / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG")


def val_files(folders: Path) -> list[tuple[Path, str]]:
    """Return the val images by name, each with its class."""
    return sorted(((path, path.parent.name) for path in (folders / "val").glob("*/*")), key=lambda pair: pair[0].name)


def tar_of(files: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_340_000_000.5 if kind == tarfile.PAX_FORMAT else 1_340_000_000  # makes an extended header
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def meta_mat(synsets: list[tuple[int, str, str, int]]) -> bytes:
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    fields.append("num_train_images")
    table = np.empty((len(synsets), 1), [(field, object) for field in fields])
    for row, (number, wnid, words, children) in zip(table[:, 0], synsets, strict=True):
        below = np.arange(children, dtype=np.float64).reshape(1, -1)
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(number), wnid, words
        row["gloss"], row["num_children"], row["children"] = "what it is", float(children), below
        row["wordnet_height"], row["num_train_images"] = 0.0, 0.0 if children else 1300.0
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table}, do_compression=True)
    return buffer.getvalue()


def write_devkit(root: Path, meta: bytes, truth: list[object]) -> None:
    text = "".join(f"{number}\n" for number in truth).encode("ascii")
    files = [
        ("ILSVRC2012_devkit_t12/readme.txt", b"This is the documentation of the development kit."),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", text),
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta),
    ]
    with tarfile.open(root / DEVKIT, "w:gz") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_ilsvrc(folders: Path, root: Path, kind: int = tarfile.GNU_FORMAT) -> None:
    """Write the three official archives."""
    root.mkdir(parents=True)
    tars = []
    for wnid in WNIDS[::-1]:
        files = [(path.name, path.read_bytes()) for path in sorted((folders / "train" / wnid).iterdir())]
        tars.append((f"{wnid}.tar", tar_of(files, kind)))
    (root / TRAIN_TAR).write_bytes(tar_of(tars, kind))
    val = val_files(folders)
    # Not in the order of the names, which is what the ground truth is in.
    (root / VAL_TAR).write_bytes(tar_of([(path.name, path.read_bytes()) for path, _ in val[::-1]], kind))
    number_of = {wnid: number for number, wnid, _, _ in SYNSETS}
    write_devkit(root, meta_mat(SYNSETS), [number_of[wnid] for _, wnid in val])


def write_kaggle(folders: Path, root: Path) -> None:
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(folders / "train", images / "train")
    for folder in ("val", "test"):
        (images / folder).mkdir()
    lines = ["ImageId,PredictionString"]
    for path, wnid in val_files(folders)[::-1]:
        shutil.copy(path, images / "val")
        lines.append(f"{path.stem},{wnid} 85 1 499 272 {wnid} 3 4 20 30 ")
    (images / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    (root / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {WORDS[wnid]}\n" for wnid in WNIDS))


def write_tiny_imagenet(folders: Path, root: Path) -> None:
    for wnid in WNIDS:
        shutil.copytree(folders / "train" / wnid, root / "train" / wnid / "images")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x.JPEG\t0\t0\t62\t57\n")
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "images" / "test_0.JPEG").write_bytes(b"")
    lines = []
    for path, wnid in val_files(folders):
        shutil.copy(path, root / "val" / "images")
        lines.append(f"{path.name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for _, wnid, words, _ in SYNSETS))


def parquet_table(rows: list[tuple[bytes | None, str | None, int]], names: list[str] | None) -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata)
    images = [{"bytes": data, "path": path} for data, path, _ in rows]
    return pa.table([pa.array(images, image), pa.array([label for _, _, label in rows], pa.int64())], schema=schema)


def write_parquet(folders: Path, root: Path) -> None:
    """Write two files of train, one of validation and one of test, rows in no order, a few rows in a row group."""
    data = root / "data"
    data.mkdir(parents=True)
    names = [WORDS[wnid] for wnid in WNIDS]
    for split, folder, parts in (("train", "train", 2), ("validation", "val", 1)):
        files = [path for path in sorted((folders / folder).glob("*/*")) if path.suffix != ".txt"]
        random.Random(4).shuffle(files)
        for part in range(parts):
            rows = []
            for path in files[part::parts]:
                wnid = path.parent.name
                rows.append((path.read_bytes(), f"{path.stem}_{wnid}{path.suffix}", WNIDS.index(wnid)))
            target = data / f"{split}-{part:05d}-of-{parts:05d}.parquet"
            pq.write_table(parquet_table(rows, names), target, row_group_size=7)
    pq.write_table(parquet_table([(b"", "ILSVRC2012_test_1.JPEG", -1)], names), data / "test-00000-of-00001.parquet")


class _Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did: text and bytes alike."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        head = bytes([len(data)]) if len(data) < 256 else len(data).to_bytes(4, "little")
        self.write((pickle.SHORT_BINSTRING if len(data) < 256 else pickle.BINSTRING) + head + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content: object) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(content)
    return re.sub(rb"cnumpy\._core\.", b"cnumpy.core.", buffer.getvalue())


def cifar_batch(split: str, number: int, rows: int) -> dict[str, object]:
    """Return a batch of images whose every row has another colour and a gradient to tell up from left."""
    rng = np.random.default_rng(number)
    data = rng.integers(0, 100, (rows, 3, 32, 32), np.uint8)
    data[:, 0] += np.arange(32, dtype=np.uint8)  # red grows to the right
    labels = [row % 10 for row in range(rows)]
    return {
        "batch_label": f"{split} batch {number}",
        "labels": labels,
        "data": data.reshape(rows, -1),
        "filenames": [f"name_s_{row % 5:06d}.png" for row in range(rows)],
    }


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(folder: Path, rows: int = 20) -> None:
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(python2_pickle(cifar_batch("training", number, rows)))
    (folder / "test_batch").write_bytes(python2_pickle(cifar_batch("testing", 6, rows)))
    meta = {"num_cases_per_batch": rows, "label_names": CIFAR_NAMES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    (folder / "readme.html").write_text("<meta>")
