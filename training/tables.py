"""Tables on the command line: `--optimizer.milestones 25 1e-3 51 1e-4`, `--optimizer.layer-milestones conv1 67 1e-5`.

A table that is given replaces the recipe's, and without values it is empty. (What tyro itself makes of a table that is
not empty takes the keys that are there and no others.)
"""

from __future__ import annotations

import typing
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

TABLES = ConstructorRegistry()
_NAMES = {str: "LAYER", int: "EPOCH", float: "VALUE"}


@TABLES.primitive_rule
def _as_rows(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if info.type_origin is not dict:
        return None
    columns = _columns(info.type)
    row = " ".join(_NAMES[column] for column in columns)

    def parse(words: list[str]) -> dict[Any, Any]:
        if len(words) % len(columns):
            raise ValueError(f"{len(words)} values are not rows of {row}")
        table: dict[Any, Any] = {}
        for start in range(0, len(words), len(columns)):
            cells = [column(word) for column, word in zip(columns, words[start : start + len(columns)], strict=True)]
            inner = table if len(cells) == 2 else table.setdefault(cells[0], {})
            inner[cells[-2]] = cells[-1]
        return table

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{row} ...]",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [str(cell) for cells in _rows(table) for cell in cells],
    )


def _columns(hint: Any) -> list[type]:
    """Return the types of a row's cells: of `dict[str, dict[int, float]]` str, int and float."""
    if typing.get_origin(hint) is not dict:
        return [hint]
    key, value = typing.get_args(hint)
    return [key, *_columns(value)]


def _rows(table: Any) -> list[list[Any]]:
    if not isinstance(table, dict):
        return [[table]]
    return [[key, *rest] for key, value in table.items() for rest in _rows(value)]
