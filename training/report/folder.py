"""A report as a folder: `report.html`, `pictures/*.png`, and `report.json`, which is written last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from preprocess.manifest import ClassEntry
from training.class_names import unique_names
from training.report.examples import ReadExample, ReportExamples, choose_examples
from training.report.html import Subject, has_matrix, render_html
from training.report.metrics import Predictions, Report, confusion_matrix
from training.report.output import encode_record, prepare_folder, replace_files
from training.report.pictures import cards_png, confusion_png, kernels_png

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
PICTURES = "pictures"
PictureName = Literal["conv1-kernels.png", "predictions.png", "errors.png", "confusion.png"]
PICTURE_NAMES: tuple[PictureName, ...] = get_args(PictureName)
"""Every picture that a report may have: a new report removes those of an older one."""
FILE_NAMES = (REPORT_NAME, PAGE_NAME, *(f"{PICTURES}/{name}" for name in PICTURE_NAMES))


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

    Everything is drawn before a file is touched. A folder that has a `report.json` has a complete report. `seed`
    decides which random samples are shown.

    Raises:
        InputError: `folder` cannot be written to.
    """
    folder = prepare_folder(folder)
    classes = [ClassEntry(row["id"], row["name"]) for row in report["per_class"]]
    names = unique_names(classes)
    examples = choose_examples(predictions, names, read_example, seed)
    pictures = draw_pictures(report, predictions, subject, examples, names)
    page = render_html(report, predictions, subject, examples, names, read_example)
    drawn = {f"{PICTURES}/{name}": pictures[name] for name in PICTURE_NAMES if name in pictures}
    replace_files(folder, {**drawn, PAGE_NAME: page.encode(), REPORT_NAME: encode_record(report)}, FILE_NAMES)


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
    return [Path(name) for name in FILE_NAMES if (folder / name).is_file()]
