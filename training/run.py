"""`python -m training.run [RECIPE | --resume RUN_ID] [--FIELD VALUE ...]`: train, on a local Ray or as a Ray job."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from errors import InputError, check_choice
from training.cli import run_command, table_options
from training.config import Config
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
        InputError: an unknown recipe, or a value out of range.
        SystemExit: an unknown field or a value of another type (code 2), or --help (code 0).
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        check_choice("recipe", arguments[0], RECIPES)
    elif not _HELP & set(arguments):
        # The recipe may be left out, but the parser of the recipe's fields wants it named.
        arguments.insert(0, DEFAULT_RECIPE)
    recipes = {name: ((make.__doc__ or "").splitlines()[0], make()) for name, make in RECIPES.items()}
    if arguments[:1] == ["finetune"]:
        recipes["finetune"] = (recipes["finetune"][0], _finetune(arguments))
    return tyro.extras.overridable_config_cli(
        recipes,
        prog=PROGRAM,
        description=DESCRIPTION,
        args=arguments,
        registry=table_options(),
        config=(tyro.conf.UseAppendAction,),
    )


def _finetune(arguments: list[str]) -> Config:
    """Return the recipe `finetune` with the network of the run or the checkpoint that `--init` names."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
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
        SystemExit: as `parse`.
    """
    from training.launch.resume import check_changes, stored_config  # imports MLflow, which takes seconds

    stored = stored_config(run_id, Path.cwd())
    config = tyro.cli(
        Config,
        prog=f"{PROGRAM} --resume {run_id}",
        description=DESCRIPTION,
        args=arguments,
        default=stored,
        registry=table_options(),
        config=(tyro.conf.UseAppendAction,),
    )
    check_changes(stored, config)
    return config


def main(arguments: Sequence[str]) -> None:
    """Train as the command line says."""
    # Ray reads it when it is imported. `training.terminal` leaves out what several workers say.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", metavar="RUN_ID")
    resume, rest = parser.parse_known_args(arguments)
    resumed: str | None = resume.resume
    config = parse(rest) if resumed is None else parse_resumed(resumed, rest)
    from training.launch.launcher import TrainingError, launch  # imports Ray and MLflow, which takes seconds

    try:
        launch(config, Path.cwd(), resumed)
    except TrainingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
