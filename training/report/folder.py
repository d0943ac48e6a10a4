"""A report as a folder: `report.html`, `pictures/*.png`, and `report.json`, which is written last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from atomic_files import atomic_write
from errors import InputError
from preprocess.manifest import ClassEntry
from training.report.examples import Exhibits, ReadExample, choose_exhibits
from training.report.html import Subject, has_matrix, render_html
from training.report.metrics import Predictions, Report, confusion_matrix
from training.report.pictures import cards_png, confusion_png, kernels_png

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
PICTURES = "pictures"
# Every picture that a report may have, so that a new one can take away what an older one left.
PICTURE_NAMES = ("conv1-kernels.png", "predictions.png", "errors.png", "confusion.png")
_PARTIAL = ".report.partial"


def prepare_folder(folder: Path | str) -> Path:
    """Make `folder` where it is missing and make sure that files can be made in it.

    Raises:
        InputError: it is a file, or may not be written to; worth knowing before an hour of evaluation.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
        (folder / _PARTIAL).mkdir()
        (folder / _PARTIAL).rmdir()
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written to: {error.strerror}") from error
    return folder


def write_report(
    folder: Path | str,
    report: Report,
    predictions: Predictions,
    subject: Subject,
    read_example: ReadExample,
    *,
    seed: int = 0,
) -> None:
    """Write `report.json`, `report.html` and `pictures/` into `folder`, over an older report but nothing else.

    Everything is made aside first. Then the old `report.json` goes, the new files are renamed into place, and
    `report.json` comes last: a folder that has one has a whole report.

    Args:
        report: what `summarise` returned for `predictions`.
        read_example: gives the key and JPEG bytes of the sample at a position of the split; called for about
            seventy positions.
        seed: decides which random samples are shown.

    Raises:
        InputError: `folder` cannot be written to.
    """
    folder = prepare_folder(folder)
    partial = folder / _PARTIAL
    try:
        classes = [ClassEntry(row["id"], row["name"]) for row in report["per_class"]]
        exhibits = choose_exhibits(predictions, classes, read_example, seed)
        pictures = draw_pictures(report, predictions, subject, exhibits)
        partial.mkdir()
        text = f"{json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)}\n"
        atomic_write(partial / REPORT_NAME, text.encode())
        atomic_write(partial / PAGE_NAME, render_html(report, predictions, subject, exhibits).encode())
        for name, png in pictures.items():
            atomic_write(partial / name, png)
        _commit(partial, folder, pictures)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def draw_pictures(report: Report, predictions: Predictions, subject: Subject, exhibits: Exhibits) -> dict[str, bytes]:
    """Return the PNGs that this report has, by file name."""
    names = [row["name"] for row in report["per_class"]]
    where = f"{subject.network} on {subject.data}, {report['split']}"
    pictures = {"predictions.png": cards_png(exhibits.random, f"Random samples: {where}")}
    if subject.conv1 is not None:
        pictures["conv1-kernels.png"] = kernels_png(subject.conv1, subject.towers)
    if exhibits.errors:
        pictures["errors.png"] = cards_png(exhibits.errors, f"Surest errors: {where}")
    if has_matrix(report):
        pictures["confusion.png"] = confusion_png(confusion_matrix(predictions, len(names)), names)
    return pictures


def report_files(folder: Path | str) -> list[Path]:
    """Return the files of the report in `folder`, relative to it: what belongs into a run's artifacts.

    Raises:
        FileNotFoundError: there is no whole report.
    """
    folder = Path(folder)
    if not (folder / REPORT_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {REPORT_NAME}, so it is not a whole report")
    pictures = [Path(PICTURES, name) for name in PICTURE_NAMES if (folder / PICTURES / name).is_file()]
    return [Path(REPORT_NAME), Path(PAGE_NAME), *pictures]


def _commit(partial: Path, folder: Path, pictures: Mapping[str, bytes]) -> None:
    (folder / REPORT_NAME).unlink(missing_ok=True)
    (folder / PICTURES).mkdir(exist_ok=True)
    for name in PICTURE_NAMES:
        if name in pictures:
            (partial / name).replace(folder / PICTURES / name)
        else:
            (folder / PICTURES / name).unlink(missing_ok=True)
    (partial / PAGE_NAME).replace(folder / PAGE_NAME)
    (partial / REPORT_NAME).replace(folder / REPORT_NAME)
