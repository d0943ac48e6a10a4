"""Argument types of the benchmarks' command lines."""

from __future__ import annotations

import argparse


def positive_int(text: str) -> int:
    """Return the number that an option gives, as argparse's `type`; below 1, argparse ends with exit code 2."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}; use at least 1")
    return number
