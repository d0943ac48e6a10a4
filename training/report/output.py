"""The output folder of an evaluation: pages and pictures, and a JSON file that is written last."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atomic_files import atomic_write, remove_partial_files
from errors import InputError
from training.report.metrics import Evaluated


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


def check_replaceable(folder: Path, evaluated: Evaluated, record: str) -> None:
    """Raise `InputError` if `folder` has a JSON file `record` of anything other than `evaluated`."""
    path = folder / record
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found.get(key) == value for key, value in evaluated.items()):
            return
        held = f"the {path.stem} of {found['checkpoint']} on {found['split']}"
    except (OSError, ValueError, AttributeError, KeyError):
        held = f"a {record} that is not of this command"
    raise InputError(f"--output is {folder}: it holds {held}; use another folder, or add --overwrite")


def encode_record(content: Mapping[str, Any]) -> bytes:
    """Return the content of the JSON file."""
    return f"{json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)}\n".encode()


def replace_files(folder: Path, contents: Mapping[str, bytes], names: Sequence[str]) -> None:
    """Write the files of an evaluation into `folder`, replacing those of an older one; other files stay.

    The last of `contents` is its JSON file. It is removed first and written last: a folder that has it is complete.

    Args:
        folder: an existing folder.
        contents: by name relative to `folder`, a `/` between folder and file.
        names: of all files that an evaluation of this kind may have.
    """
    *_, record = contents
    (folder / record).unlink(missing_ok=True)
    paths = [folder / name for name in names]
    for directory in {path.parent: None for path in paths}:
        directory.mkdir(exist_ok=True)
        remove_partial_files(directory, "|".join(re.escape(path.name) for path in paths))
    for path, name in zip(paths, names, strict=True):
        if name not in contents:
            path.unlink(missing_ok=True)
    for name, content in contents.items():
        atomic_write(folder / name, content)
