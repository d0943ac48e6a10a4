"""`python -m training.run [RECIPE] [--data DIR] [--FIELD VALUE ...]`: train, on a local Ray or as a Ray job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from errors import check_choice
from training.cli import run_command, table_options
from training.config import Config
from training.recipes import RECIPES

DEFAULT_RECIPE = "sample"


def parse(arguments: Sequence[str]) -> Config:
    """Return the recipe that the command line names, with its fields as the command line sets them.

    Raises:
        InputError: an unknown recipe, or a value out of range.
        SystemExit: an unknown field or a value of another type (code 2), or --help (code 0).
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        check_choice("recipe", arguments[0], RECIPES)
    elif not {"-h", "--help"} & set(arguments):
        # The recipe may be left out, but the parser of the recipe's fields wants it named.
        arguments.insert(0, DEFAULT_RECIPE)
    recipes = {name: ((make.__doc__ or "").splitlines()[0], make()) for name, make in RECIPES.items()}
    return tyro.extras.overridable_config_cli(
        recipes, args=arguments, prog="python -m training.run", registry=table_options()
    )


def main(arguments: Sequence[str]) -> None:
    """Train, then say where the run is."""
    config = parse(arguments)
    from training.launch.launcher import TrainingError, launch  # imports Ray and MLflow, which takes seconds

    try:
        run_id = launch(config, Path.cwd())
    except TrainingError as error:
        sys.exit(f"error: {error}")
    print(f"run {run_id}")


if __name__ == "__main__":
    sys.exit(run_command(main))
