"""`python -m training.ablate RECIPE --toggle NAME ... --seeds N ...`: what each idea of 2012 is worth on a data set."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import CommandParser
from errors import InputError, check_choice, check_count
from preprocess.manifest import read_manifest
from training.ablation.plan import Study
from training.ablation.toggles import TOGGLES
from training.cli import resolve, run_command
from training.config import Config, Parallel, flatten
from training.launch.ray_environment import set_ray_environment
from training.options import parse_fields
from training.recipes import RECIPES

PROGRAM = "python -m training.ablate"
DESCRIPTION = (
    "Train a recipe, and variants of it that each switch one idea to its opposite, with several seeds; compare them "
    "with the recipe of the same seed. The same command again goes on with what is not finished."
)
_NOT_READ = {
    "init": "every training of a study starts from random weights",
    "seed": "use --seeds",
    "register": "a study registers no network",
    "max_failures": "the same command again repeats what failed",
    "keep_checkpoints": "a study keeps the last weights of each training",
    "checkpoint": "a study keeps the last weights of each training",
    "parallel": "each training of a study has one device",
}
"""Fields of a recipe that a study does not read, and why."""


@dataclass(frozen=True)
class Request:
    """A parsed command line."""

    study: Study | None
    """None: that of the run `resume`."""
    resume: str | None
    concurrent: int
    output: Path | None


def parse(arguments: Sequence[str], project: Path) -> Request:
    """Return what the command line asks for; relative paths start at `project`.

    Raises:
        InputError: an unknown recipe, toggle or field, or one that a study does not read.
        SystemExit: --help (code 0).
    """
    fields = list(arguments)
    recipe = fields.pop(0) if fields and not fields[0].startswith("-") else None
    parser = _make_parser()
    options, rest = parser.parse_known_args(fields)
    check_count("--concurrent", options.concurrent, 1)
    if options.resume is not None:
        given = [recipe, *rest, *(name for name in ("toggle", "seeds", "name") if getattr(options, name))]
        if extra := [word for word in given if word]:
            raise InputError(f"--resume goes on with the study's own recipe and fields, not {extra[0]}; leave it out")
        return Request(None, options.resume, options.concurrent, options.output)
    if recipe is None or not options.toggle:
        missing = "RECIPE" if recipe is None else "--toggle"
        raise InputError(f"{missing} is missing; use {PROGRAM} RECIPE --toggle {' '.join(list(TOGGLES)[:3])}")
    return Request(_make_study(recipe, options, rest, project), None, options.concurrent, options.output)


def _make_parser() -> CommandParser:
    toggles = [f"  {name:<12}{toggle.meaning}" for name, toggle in TOGGLES.items()]
    parser = CommandParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} RECIPE --toggle NAME ... [--seeds N ...] [--FIELD VALUE ...]\n"
        f"       {PROGRAM} --resume RUN_ID",
        description=textwrap.fill(DESCRIPTION, 100),
        epilog="\n".join(
            ["toggles:", *toggles, "", f"recipes: {', '.join(RECIPES)}; fields: python -m training.run RECIPE --help"]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--toggle", nargs="+", metavar="NAME", help="ideas to switch, one in each variant")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="trainings of each variant (default: 0 1 2)")
    parser.add_argument("--concurrent", type=int, default=1, metavar="N", help="trainings at once (default: 1)")
    parser.add_argument("--name", help="of the study and its MLflow run (default: recipe and data set)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: reports/ablation-RUN_ID)")
    parser.add_argument("--resume", metavar="RUN_ID", help="go on with this study, with its own fields")
    return parser


def _make_study(recipe: str, options: argparse.Namespace, fields: list[str], project: Path) -> Study:
    check_choice("recipe", recipe, [name for name in RECIPES if name != "finetune"])
    default = RECIPES[recipe]()
    config = parse_fields(PROGRAM, DESCRIPTION, fields, default)
    _check_read(config, default)
    seeds, toggles = options.seeds or [0, 1, 2], options.toggle
    for option, values in (("--seeds", seeds), ("--toggle", toggles)):
        if repeated := [value for value in values if values.count(value) > 1]:
            raise InputError(f"{option} has {repeated[0]} twice; use it once")
    for seed in seeds:
        check_count("--seeds", seed, 0)
    for toggle in toggles:
        check_choice("--toggle", toggle, TOGGLES)
    base = replace(config, parallel=Parallel(1, 1))
    data = read_manifest(resolve("data", base.data, project, must_exist=True)).name
    return Study(options.name or f"ablation of {recipe} on {data}", base, tuple(toggles), tuple(seeds))


def _check_read(config: Config, default: Config) -> None:
    """Raise `InputError` for a field that differs from the recipe's, and that a study would not read."""
    if config.run_name is not None:
        raise InputError(f"run_name is {config.run_name!r}: a study has a name of its own; use --name")
    usual = flatten(default)
    for field, value in flatten(config).items():
        why = _NOT_READ.get(field, _NOT_READ.get(field.partition(".")[0]))
        if why is not None and value != usual.get(field):
            raise InputError(f"{field} is {value}: {why}; leave it out")


def main(arguments: Sequence[str]) -> None:
    """Run the study that the command line names."""
    set_ray_environment()
    project = Path.cwd()
    request = parse(arguments, project)
    from training import tracking  # imports MLflow, and the next ones Ray, which takes seconds
    from training.ablation.launcher import StudyError, launch_study
    from training.ablation.study import stored_study

    study = request.study
    if study is None:
        assert request.resume is not None
        study = stored_study(tracking.open_client(tracking.tracking_uri(project)), request.resume)
    try:
        launch_study(study, project, request.concurrent, request.output, request.resume)
    except StudyError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main))
