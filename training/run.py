"""`python -m training.run [RECIPE | --resume RUN_ID] [--FIELD VALUE ...]`: train, on a local Ray or as a Ray job."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from command_line import CommandParser
from errors import InputError, check_choice
from training.cli import run_command
from training.config import Config
from training.launch.ray_environment import set_ray_environment
from training.options import parse_fields
from training.recipes import RECIPES, finetune

DEFAULT_RECIPE = "sample"
_HELP = {"-h", "--help"}
PROGRAM = "python -m training.run"
DESCRIPTION = (
    "Train a recipe (default: sample), from random weights or from those that --init names. With --resume RUN_ID in "
    "place of a recipe, an earlier run goes on from its newest checkpoint, in the same MLflow run and with its own "
    "fields; --epochs may grow, and what does not change the result, such as --parallel.data, may differ."
)


def parse(arguments: Sequence[str]) -> Config:
    """Return the recipe that the command line names, with its fields as the command line sets them.

    Raises:
        InputError: an unknown recipe or field, or a value of another type or out of range.
        SystemExit: --help (code 0).
    """
    recipe, fields = DEFAULT_RECIPE, list(arguments)
    if fields and not fields[0].startswith("-"):
        recipe = fields.pop(0)
        check_choice("recipe", recipe, RECIPES)
    elif _HELP & set(fields):
        print(_overview())
        raise SystemExit(0)
    default = _finetune(fields) if recipe == "finetune" else RECIPES[recipe]()
    return parse_fields(f"{PROGRAM} {recipe}", inspect.getdoc(RECIPES[recipe]) or "", fields, default)


def _overview() -> str:
    recipes = [f"  {name:<16}{(make.__doc__ or '').splitlines()[0]}" for name, make in RECIPES.items()]
    usage = [f"usage: {PROGRAM} [RECIPE] [--FIELD VALUE ...]", f"       {PROGRAM} --resume RUN_ID [--FIELD VALUE ...]"]
    fields = f"The fields of a recipe, and its values of them: {PROGRAM} RECIPE --help"
    return "\n".join([*usage, "", *textwrap.wrap(DESCRIPTION, 100), "", "recipes:", *recipes, "", fields])


def _finetune(arguments: list[str]) -> Config:
    """Return the recipe `finetune` with the network of the run or the checkpoint that `--init` names."""
    parser = CommandParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--init")
    init: str | None = parser.parse_known_args(arguments)[0].init
    if init is None:
        if _HELP & set(arguments):
            return finetune()
        raise InputError(
            "init is None: the recipe finetune starts from trained weights; "
            "use --init RUN_ID, RUN_ID:best, a checkpoint folder, or a file of weights"
        )
    from training.launch.initial import source_config  # imports MLflow, which takes seconds

    return finetune(source_config(init, Path.cwd()))


def parse_resumed(run_id: str, arguments: Sequence[str]) -> Config:
    """Return the configuration of the run, with the fields that the command line changes.

    Raises:
        InputError: there is no such run, or a field may not be changed.
        SystemExit: --help (code 0).
    """
    from training.launch.resume import check_changes, stored_config  # imports MLflow, which takes seconds

    stored = stored_config(run_id, Path.cwd())
    config = parse_fields(f"{PROGRAM} --resume {run_id}", DESCRIPTION, arguments, stored)
    check_changes(stored, config)
    return config


def main(arguments: Sequence[str]) -> None:
    """Train as the command line says."""
    set_ray_environment()
    parser = CommandParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", metavar="RUN_ID")
    resume, rest = parser.parse_known_args(arguments)
    resumed: str | None = resume.resume
    if resumed is not None and rest[:1] and rest[0] in RECIPES:
        raise InputError(f"recipe is {rest[0]}: --resume goes on with the run's own; leave the recipe out")
    config = parse(rest) if resumed is None else parse_resumed(resumed, rest)
    from training.launch.launcher import TrainingError, launch  # imports Ray and MLflow, which takes seconds

    try:
        launch(config, Path.cwd(), resumed)
    except TrainingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
