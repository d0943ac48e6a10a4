"""The name and the description of a run."""

from __future__ import annotations

import shlex
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from training.config import CHANGEABLE, Config, flatten
from training.loop.metrics import EPOCH, TOP1
from training.recipes import RECIPES, finetune
from training.tracking.source import COMMAND

NAME_LENGTH = 100
"""Longest name of a run, in characters."""
LINE_LENGTH = 90
"""Length from which the lines of a command are broken, in characters."""
EPOCHS = "twotower.epochs"
"""Tag of a run: to how many epochs it is trained; its parameter keeps the number that it began with."""
MARK = "<!-- twotower: below this line, the text is replaced -->"
"""Line of a description: what users write above it stays."""
_OUTCOMES = {"RUNNING": "In training", "FINISHED": "Finished", "FAILED": "Failed", "KILLED": "Interrupted"}


def run_name(config: Config, data_name: str) -> str:
    """Return a name that tells runs apart: recipe, data set, and the fields that differ from the recipe's."""
    usual = _usual_fields(config)
    words = list(dict.fromkeys((config.recipe, data_name)))
    for field, value in flatten(config).items():
        if value == usual.get(field) or field in CHANGEABLE or field in ("recipe", "experiment"):
            continue
        section, _, name = field.partition(".")
        short = "lr" if field == "optimizer.learning_rate" else name or section
        words.append(f"{short}={str(value).rpartition('/')[2]}")
    name = " ".join(words).replace("'", "")
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _usual_fields(config: Config) -> dict[str, Any]:
    make_recipe = RECIPES.get(config.recipe)
    if make_recipe is None:
        return {}
    # A name has no room for all that a fine-tuning takes over from its source.
    return flatten(finetune(config) if make_recipe is finetune else make_recipe())


def numbered(client: MlflowClient, experiment_id: str, name: str) -> str:
    """Return the name, with a number if the experiment has runs of this name."""
    same = client.search_runs([experiment_id], f"attributes.run_name LIKE '{name}%'", max_results=1000)
    count = sum(run.info.run_name.partition(" #")[0] == name for run in same)
    return f"{name} #{count + 1}" if count else name


def page_path(run: Run) -> str:
    """Return the address of a run in MLflow's UI, less that of the server."""
    # Without its last part, the page is among those for prompts, whatever kind the experiment is of.
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"


def update_description(client: MlflowClient, run_id: str) -> None:
    """Write the description of a run as it is now: result, place, commands."""
    run = client.get_run(run_id)
    above = run.data.tags.get(MLFLOW_RUN_NOTE, "").partition(MARK)[0].rstrip()
    text = "\n\n".join([_result(client, run), *_place(client, run), _commands(run)])
    client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{above}\n\n{MARK}\n\n{text}".lstrip())


def _result(client: MlflowClient, run: Run) -> str:
    state = _OUTCOMES.get(run.info.status, run.info.status.capitalize())
    epochs = run.data.tags.get(EPOCHS, "?")
    history = client.get_metric_history(run.info.run_id, TOP1)
    if EPOCH in run.data.metrics:
        return f"**{state}** after {run.data.metrics[EPOCH]:.0f} of {epochs} epochs, without validation."
    if not history:
        return f"**{state}** before the first of {epochs} epochs was complete."
    best = max(history, key=lambda point: (point.value, point.step))
    metrics = run.data.metrics
    top5 = f", top-5 {metrics['val/top5']:.4f}" if "val/top5" in metrics else ""
    line = f"**{state}, top-1 {history[-1].value:.4f}**{top5} after {len(history)} of {epochs} epochs"
    if best.step != history[-1].step:
        line += f"; best top-1 {best.value:.4f} after epoch {history.index(best) + 1}"
    if "eval/top1" in metrics:
        line += f"; evaluated: top-1 {metrics['eval/top1']:.4f}"
    return f"{line}."


def _place(client: MlflowClient, run: Run) -> list[str]:
    params = run.data.params
    if TOP1 not in run.data.metrics or not {"recipe", "manifest_sha256"} <= set(params):
        return []
    alike = f"params.recipe = '{params['recipe']}' and params.manifest_sha256 = '{params['manifest_sha256']}'"
    runs = client.search_runs([run.info.experiment_id], f"{alike} and attributes.status = 'FINISHED'")
    others = [one for one in runs if one.info.run_id != run.info.run_id and TOP1 in one.data.metrics]
    if not others:
        return [f"The first finished run of `{params['recipe']}` on this data set."]
    mine = run.data.metrics[TOP1]
    place = 1 + sum(one.data.metrics[TOP1] > mine for one in others)
    first = max(others, key=lambda one: one.data.metrics[TOP1])
    link = f"[{first.info.run_name}]({page_path(first)})"
    compared = f"the best other one is {link} with {first.data.metrics[TOP1]:.4f}"
    return [f"Place {place} of {len(others) + 1} finished runs of `{params['recipe']}` on this data set; {compared}."]


def _commands(run: Run) -> str:
    run_id, metrics = run.info.run_id, run.data.metrics
    data = "DIR" if EPOCH in metrics else shlex.quote(run.data.params.get("data", "DIR"))
    more = " --epochs N" if run.info.status == "FINISHED" else ""
    lines = [
        *["# evaluate", _broken(f"python -m training.evaluate --run {run_id} --which best --data {data}")],
        *["# continue", f"python -m training.run --resume {run_id}{more}"],
    ]
    if COMMAND in run.data.tags:
        lines += ["# started by", _broken(run.data.tags[COMMAND])]
    return "\n".join(["```bash", *lines, "```"])


def _broken(command: str) -> str:
    """Return a command in lines that do not widen the page."""
    try:
        words = shlex.split(command)
    except ValueError:  # it was too long, and is cut off within quotes
        return command
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + len(word) > LINE_LENGTH:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)
