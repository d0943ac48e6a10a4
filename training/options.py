"""The fields of a training as options of its command line: `--epochs 3`, `--optimizer.freeze conv1 3`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from errors import InputError
from training.config import Config, table_rows

_COLUMNS = {str: "LAYER", int: "EPOCH", float: "VALUE"}
_BOX, _HELP = "│╭╮╰╯─", "Argument helptext: "


def parse_fields(program: str, description: str, arguments: Sequence[str], default: Config) -> Config:
    """Return `default` with its fields as the command line sets them.

    Args:
        program: the command before these arguments, for --help and in errors.
        description: for --help.
        arguments: `--FIELD VALUE ...`; --help lists the fields.
        default: the values of fields that are not given.

    Raises:
        InputError: an unknown field, or a value of another type or out of range.
        SystemExit: --help (code 0).
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config, unknown = tyro.cli(
                Config,
                prog=program,
                description=description,
                args=arguments,
                default=default,
                registry=_table_options(),
                config=(tyro.conf.UseAppendAction,),
                return_unknown_args=True,
            )
    except SystemExit as error:
        if error.code == 0:
            raise
        raise InputError(_without_box(said.getvalue())) from None
    if unknown:
        raise InputError(f"{unknown[0]} is unknown; {_suggestion(unknown[0])}{program} --help lists all")
    return config


def _without_box(text: str) -> str:
    """Return the message in tyro's box, and the option's help if it is there, as one line."""
    lines = [line.strip(f"{_BOX} ") for line in text.splitlines()[1:]]
    parts = [" ".join(part) for filled, part in itertools.groupby(lines, bool) if filled]
    option = [f"; {part.removeprefix(_HELP)}" for part in parts if part.startswith(_HELP)]
    return "".join([parts[0].removeprefix("Error parsing Config: "), *option])


def _suggestion(unknown: str) -> str:
    """Return the fields that an unknown option may mean: with `--lr`, `--optimizer.learning-rate`."""
    name = unknown.partition("=")[0].lstrip("-").replace("_", "-").lower()
    close = []
    for option in _option_names(Config):
        last = option.rpartition(".")[2]
        is_short = name == "".join(word[0] for word in last.split("-"))
        ratio = max(difflib.SequenceMatcher(None, name, form).ratio() for form in (option, last))
        close.append((1.0 if is_short else ratio, option))
    matches = [option for ratio, option in sorted(close, key=lambda pair: -pair[0]) if ratio > 0.7][:2]
    return f"did you mean {' or '.join(f'--{option}' for option in matches)}? " if matches else ""


def _option_names(cls: type) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from (f"{name}.{inner}" for inner in _option_names(hints[field.name]))
        else:
            yield name


def _table_options() -> ConstructorRegistry:
    """Return tyro's rules for tables: `--optimizer.milestones 25 1e-3`, `--optimizer.layer-milestones conv1 67 1e-5`.

    A table that is given replaces the recipe's, and without values it is empty. (Tyro's own rule for a table that is
    not empty takes only the keys that are there.)
    """
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
