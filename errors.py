"""Errors that a user can correct, and the checks of arguments that raise them."""

from __future__ import annotations

import math
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


def check_fraction(name: str, value: float) -> None:
    """Raise `InputError` naming the field and its value unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise InputError(f"{name} is {value}; use 0 up to but not including 1")


def check_finite(name: str, value: float, *, above_zero: bool = False) -> None:
    """Raise `InputError` naming the field and its value unless it is finite and at least, or above, 0."""
    if not 0 <= value < math.inf or (above_zero and value == 0):
        raise InputError(f"{name} is {value}; use a finite number {'above' if above_zero else 'from'} 0")
