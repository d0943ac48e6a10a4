"""The project folder: where relative paths of a command begin, and what is different when Ray made a copy of it."""

from __future__ import annotations

from pathlib import Path

from errors import InputError


def resolve(what: str, path: str | Path, project: Path, *, must_exist: bool = False) -> str:
    """Return `path` as an absolute path, taken from `project`; URIs as they are.

    Args:
        what: the option or field, for the error.
        path: what the user gave.
        project: the folder that the command runs in.
        must_exist: the command reads it.

    Raises:
        InputError: it is relative, and `project` is a copy that Ray unpacked for a job (`--working-dir`): what is
            written there is lost with the job, and data does not travel with it.
    """
    if "://" in str(path):
        return str(path)
    absolute = (project / path).resolve()
    inside_copy = not Path(path).is_absolute() and is_job_copy(project)
    if inside_copy and not (must_exist and absolute.exists()):
        raise InputError(
            f"{what} {str(path)!r} is relative, but this job runs in a copy of the project (--working-dir): "
            "give an absolute path"
        )
    return str(absolute)


def is_job_copy(project: Path) -> bool:
    """Tell whether Ray unpacked `project` for a job from what `ray job submit --working-dir` uploaded."""
    return any(part.startswith("_ray_pkg_") for part in project.parts)
