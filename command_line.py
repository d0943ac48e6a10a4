"""The parser of the command lines: what it refuses is one line, like other bad input."""

from __future__ import annotations

import argparse
from typing import NoReturn

from errors import InputError


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `InputError` where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError`."""
        raise InputError(f"{message}; {self.prog} --help lists the options")
