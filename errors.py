"""Errors that a user can correct, and the checks of arguments that raise them."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a command prints it as one line and exits with code 2."""


def check_choice(name: str, value: object, valid: Iterable[object]) -> None:
    """Raise `InputError` naming the field, its value and the valid ones unless `value` is among `valid`."""
    valid = tuple(valid)
    if value not in valid:
        raise InputError(f"{name} is {value!r}; use {', '.join(str(choice) for choice in valid)}")


def check_count(name: str, value: int, least: int) -> None:
    """Raise `InputError` naming the field and its value unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; use a whole number from {least}")
