"""The commands of a package: what `python -m PACKAGE` prints."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

_DOCSTRING_BEGINS = "`python -m {}.{}"
_GUARD = 'if __name__ == "__main__":'


def list_commands(folder: Path) -> dict[str, str]:
    """Return what each command of the package in `folder` does, by its module's dotted name.

    A command is a module that can be run, whose docstring begins with its usage: "`python -m a.b ...`: what it does."
    Nothing is imported.
    """
    found = {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        usage = _DOCSTRING_BEGINS.format(folder.name, path.stem)
        docstring = ast.get_docstring(ast.parse(text)) or ""
        if _GUARD in text and docstring.startswith(usage):
            first = " ".join(docstring.partition("\n\n")[0].split())
            found[f"{folder.name}.{path.stem}"] = first.partition("`: ")[2].rstrip(".")
    return found


def main(file: str, arguments: Sequence[str]) -> int:
    """Print the commands of the package whose `__main__.py` is `file`; return the exit code, 2 for an argument."""
    folder = Path(file).resolve().parent
    commands = list_commands(folder)
    if arguments and arguments[0] not in ("-h", "--help"):
        names = [name for name in commands if name.endswith(f".{arguments[0]}")] or list(commands)
        use = ", ".join(f"python -m {name}" for name in names) or f"from {folder.name} import ... in Python"
        print(f"error: python -m {folder.name} takes no {arguments[0]!r}; use {use}", file=sys.stderr)
        return 2
    if not commands:
        print(f"{folder.name} has no commands: it is a library, which docs/loader.md describes")
        return 0
    print(f"Commands of {folder.name}, each with --help:")
    width = max(map(len, commands))
    for name, purpose in commands.items():
        print(f"  python -m {name:{width}}  {purpose}")
    return 0
