"""The command line of `training`: exit codes and error lines, paths, and tables as options."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import InputError
from interrupts import sigterm_as_sigint

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

_COLUMNS = {str: "LAYER", int: "EPOCH", float: "VALUE"}


def run_command(main: Callable[[Sequence[str]], None]) -> int:
    """Run `main` on the command line and return the exit code: 0, 2 for bad input, 130 or 143 when interrupted.

    SIGTERM takes the way of Ctrl-C, so that a stopped job cleans up like an interrupted one.
    """
    terminated = sigterm_as_sigint()
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 143 if terminated else 130
    return 0


def resolve(what: str, path: str | Path, project: Path, *, must_exist: bool = False) -> str:
    """Return the path of the option `what`, relative to the folder `project`, as an absolute one; URIs as they are.

    Raises:
        InputError: it is relative, and `project` is a copy that Ray unpacked for a job (`--working-dir`): files written
            there are lost with the job, and data does not travel with it, unless it `must_exist` and does.
    """
    if "://" in str(path):
        return str(path)
    absolute = (project / path).resolve()
    inside_copy = not Path(path).is_absolute() and is_job_copy(project)
    if inside_copy and not (must_exist and absolute.exists()):
        raise InputError(
            f"{what} is {str(path)!r}: it is relative, but this job runs in a copy of the project (--working-dir); "
            "use an absolute path"
        )
    return str(absolute)


def is_job_copy(project: Path) -> bool:
    """Tell whether Ray unpacked `project` for a job from what `ray job submit --working-dir` uploaded."""
    return any(part.startswith("_ray_pkg_") for part in project.parts)


def table_options() -> ConstructorRegistry:
    """Return tyro's rules for tables: `--optimizer.milestones 25 1e-3`, `--optimizer.layer-milestones conv1 67 1e-5`.

    A table that is given replaces the recipe's, and without values it is empty. (Tyro's own rule for a table that is
    not empty takes only the keys that are there.)
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo  # only `run` has it

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def as_rows(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type_origin is not dict:
            return None
        columns = _columns(info.type)
        row = " ".join(_COLUMNS[column] for column in columns)
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"[{row} ...]",
            instance_from_str=lambda words: _parse_table(words, columns, row),
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda table: [str(cell) for cells in table_rows(table) for cell in cells],
        )

    return registry


def _parse_table(words: list[str], columns: list[type], row: str) -> dict[Any, Any]:
    if len(words) % len(columns):
        raise ValueError(f"{len(words)} values are not rows of {row}")
    table: dict[Any, Any] = {}
    for start in range(0, len(words), len(columns)):
        cells = [column(word) for column, word in zip(columns, words[start : start + len(columns)], strict=True)]
        inner = table if len(cells) == 2 else table.setdefault(cells[0], {})
        inner[cells[-2]] = cells[-1]
    return table


def _columns(hint: Any) -> list[type]:
    """Return the types of a row's cells: of `dict[str, dict[int, float]]` str, int and float."""
    if typing.get_origin(hint) is not dict:
        return [hint]
    key, value = typing.get_args(hint)
    return [key, *_columns(value)]


def table_rows(table: Any) -> list[list[Any]]:
    """Return the rows of nested dicts: `{"conv1": {3: 0.1}}` is `[["conv1", 3, 0.1]]`."""
    if not isinstance(table, dict):
        return [[table]]
    return [[key, *rest] for key, value in table.items() for rest in table_rows(value)]
