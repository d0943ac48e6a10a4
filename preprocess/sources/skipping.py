"""Files of an input folder that are no images: which they are, and how they are counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath

from preprocess.images.formats import MAGIC_BYTES, format_of
from preprocess.sources.catalogue import IMAGE_ENDINGS, printable

Skipped = Counter[str]
"""Number of skipped files by ending, or by name for what a file manager or an editor has left."""

_LEFT_FILES = {"thumbs.db", "desktop.ini", ".ds_store"}
_LEFT_FOLDERS = {"__macosx", "__pycache__", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
_LABEL_ENDINGS = (".txt", ".json", ".xml", ".csv")
_ARCHIVE = re.compile(r"[^.].*\.(tar|tgz|tbz2?|txz|tzst|tar\.\w+|zip|rar|7z)", re.IGNORECASE)
_APPLE_DOUBLE = "._"  # macOS writes `._a.jpg`, without an image in it, where a file system cannot hold attributes


def is_left_folder(name: str) -> bool:
    """Return True for a folder that holds no data: a hidden one, or one of a file manager, an editor or the system."""
    return name.startswith(".") or name.lower() in _LEFT_FOLDERS


def is_archive_name(name: str) -> bool:
    """Return True for a file whose ending is that of an archive of files."""
    return _ARCHIVE.fullmatch(name) is not None


def is_image_name(name: str) -> bool | None:
    """Return whether a file of this name is an image; None if its first bytes have to tell.

    A file with the ending of an image counts as one: the build reads it anyway, and rejects it if it is none. Files of
    labels and boxes, of which data sets have one for each image, need not be opened.
    """
    if name.startswith(_APPLE_DOUBLE) or name.lower().endswith(_LABEL_ENDINGS):
        return False
    return name.lower().endswith(IMAGE_ENDINGS) or None


def ending_of(name: str) -> str:
    """Return the group in which a skipped file is counted."""
    if name.startswith(_APPLE_DOUBLE):
        return f"{_APPLE_DOUBLE}*"
    if name.lower() in _LEFT_FILES:
        return name
    return printable(PurePosixPath(name).suffix.lower()) or "no ending"


def holds_image(path: Path | str) -> bool:
    """Return True if a file begins as images do; False if it does not, or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return format_of(os.pread(descriptor, MAGIC_BYTES, 0)) is not None
    except OSError:
        return False
    finally:
        os.close(descriptor)
