"""A report as a folder: `report.html`, `pictures/*.png`, and `report.json`, which is written last."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from atomic_files import atomic_write, remove_partial_files
from errors import InputError
from preprocess.manifest import ClassEntry
from training.class_names import unique_names
from training.report.examples import ReadExample, ReportExamples, choose_examples
from training.report.html import Subject, has_matrix, render_html
from training.report.metrics import Evaluated, Predictions, Report, confusion_matrix
from training.report.pictures import cards_png, confusion_png, kernels_png

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
PICTURES = "pictures"
PictureName = Literal["conv1-kernels.png", "predictions.png", "errors.png", "confusion.png"]
PICTURE_NAMES: tuple[PictureName, ...] = get_args(PictureName)
"""Every picture that a report may have: a new report removes those of an older one."""


def prepare_folder(folder: Path | str) -> Path:
    """Create `folder` if it is missing; raise `InputError` if files cannot be written into it.

    Call it before an evaluation, which may take an hour.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written to: {error.strerror}") from error
    return folder


def check_replaceable(folder: Path, evaluated: Evaluated) -> None:
    """Raise `InputError` if `folder` holds a report of anything other than `evaluated`."""
    path = folder / REPORT_NAME
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found.get(key) == value for key, value in evaluated.items()):
            return
        held = f"the report of {found['checkpoint']} on {found['split']}"
    except (OSError, ValueError, AttributeError, KeyError):
        held = f"a {REPORT_NAME} that is not of this command"
    raise InputError(f"--output is {folder}: it holds {held}; use another folder, or add --overwrite")


def write_report(
    folder: Path | str,
    report: Report,
    predictions: Predictions,
    subject: Subject,
    read_example: ReadExample,
    *,
    seed: int = 0,
) -> None:
    """Write `report.json`, `report.html` and `pictures/` into `folder`, replacing an older report; other files stay.

    Everything is drawn before a file is touched. Then `report.json` is removed first and written last: a folder that
    has one has a complete report. `seed` decides which random samples are shown.

    Raises:
        InputError: `folder` cannot be written to.
    """
    folder = prepare_folder(folder)
    classes = [ClassEntry(row["id"], row["name"]) for row in report["per_class"]]
    names = unique_names(classes)
    examples = choose_examples(predictions, names, read_example, seed)
    pictures = draw_pictures(report, predictions, subject, examples, names)
    page = render_html(report, predictions, subject, examples, names, read_example)
    text = f"{json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)}\n"
    (folder / REPORT_NAME).unlink(missing_ok=True)
    (folder / PICTURES).mkdir(exist_ok=True)
    for directory in (folder, folder / PICTURES):
        remove_partial_files(directory, "|".join([REPORT_NAME, PAGE_NAME, *PICTURE_NAMES]))
    for name in PICTURE_NAMES:
        if name in pictures:
            atomic_write(folder / PICTURES / name, pictures[name])
        else:
            (folder / PICTURES / name).unlink(missing_ok=True)
    atomic_write(folder / PAGE_NAME, page.encode())
    atomic_write(folder / REPORT_NAME, text.encode())


def draw_pictures(
    report: Report, predictions: Predictions, subject: Subject, examples: ReportExamples, names: Sequence[str]
) -> dict[PictureName, bytes]:
    """Return the PNGs that this report has, by file name; `names` are those of the classes, no two the same."""
    caption = f"{subject.network} on {subject.data}, {report['split']}"
    pictures: dict[PictureName, bytes] = {
        "predictions.png": cards_png(examples.random, f"Random samples: {caption}"),
    }
    if subject.conv1 is not None:
        pictures["conv1-kernels.png"] = kernels_png(subject.conv1, subject.towers)
    if examples.errors:
        pictures["errors.png"] = cards_png(examples.errors, f"Surest errors: {caption}")
    if has_matrix(report):
        pictures["confusion.png"] = confusion_png(confusion_matrix(predictions, len(names)), names)
    return pictures


def report_files(folder: Path | str) -> list[Path]:
    """Return the files of the report in `folder`, relative to it; raise `FileNotFoundError` if it is incomplete."""
    folder = Path(folder)
    if not (folder / REPORT_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {REPORT_NAME}, so it is not a complete report")
    pictures = [Path(PICTURES, name) for name in PICTURE_NAMES if (folder / PICTURES / name).is_file()]
    return [Path(REPORT_NAME), Path(PAGE_NAME), *pictures]
