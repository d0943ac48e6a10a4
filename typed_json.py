"""Read JSON into dataclasses, with every type, literal and field name checked."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from errors import InputError

T = TypeVar("T")
# Making one takes milliseconds, and a build reads a record for every shard.
_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def parse_json(kind: type[T], page: bytes | str, source: str) -> T:
    """Return the dataclass `kind` that the JSON document `page` describes.

    Nested dataclasses, tuples, literals and dicts with integer keys are understood.

    Raises:
        InputError: not JSON, a missing or unknown field, or a value of another type; names `source` and the field.
    """
    try:
        parsed: T = _adapter(kind).validate_json(page, strict=True, extra="forbid")
        return parsed
    except ValidationError as error:
        raise InputError(f"{source} is not valid: {_describe(error)}") from error


def read_versioned_json(kind: type[T], path: Path, *schemas: int) -> T:
    """Return the dataclass `kind` that the JSON file `path` describes, if its field `schema` is among `schemas`.

    Raises:
        InputError: as `parse_versioned_json`, or the file cannot be read.
    """
    try:
        page = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    return parse_versioned_json(kind, page, str(path), *schemas)


def parse_versioned_json(kind: type[T], page: bytes, source: str, *schemas: int) -> T:
    """Return the dataclass `kind` that a JSON document describes, if its field `schema` is among `schemas`.

    Raises:
        InputError: as `parse_json`, or the document has another schema; names `source`.
    """
    try:
        fields = json.loads(page)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} cannot be read as JSON: {error}") from error
    found = fields.get("schema") if isinstance(fields, dict) else fields
    if not isinstance(fields, dict) or found not in schemas:
        known = " and ".join(map(str, schemas))
        raise InputError(f"{source} has schema {found!r}: this version reads schema {known}")
    return parse_json(kind, page, source)


def to_json_values(value: object) -> Any:
    """Return a dataclass as dicts and lists of JSON values, under the names that its file has."""
    return _adapter(type(value)).dump_python(value, mode="json", by_alias=True)


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the document"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])  # raised by `__post_init__`: it names its field itself
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{field} is unknown"
    if first["type"] in ("missing", "missing_argument"):
        return f"{field} is missing"
    return f"{field} is {str(first['input'])[:40]!r}: {first['msg']}"
