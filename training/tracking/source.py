"""Sources of a result: the code, the libraries, the data."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, SourceType
from mlflow.utils import mlflow_tags

from preprocess.manifest import manifest_digest, read_manifest

SPLITS = {"train": "training", "val": "validation"}
"""Context of each split as a data set of the run, in MLflow's words."""
DIGEST_LENGTH = 8
"""Characters of the manifest's digest on a run's page, as in MLflow's own digests; all of it is a parameter."""
COMMAND = "twotower.command"
"""Tag of a run: the command that started or last resumed it."""
COMMAND_LENGTH = 4000
"""Characters of a command that are kept; MLflow refuses long tags."""
LIBRARIES = ("torch", "torchvision", "ray", "nvidia-dali-cuda120", "mlflow", "webdataset", "pillow-simd")


def environment(project: Path) -> dict[str, str]:
    """Return the git commit of `project`, or `unknown`, and the versions of the libraries that are installed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # such as DALI for another CUDA
            continue
    return {"git_commit": git_commit(project) or "unknown", **versions}


def command() -> str:
    """Return the command line of this process, as one would type it."""
    return shlex.join(["python", *sys.orig_argv[1:]])[:COMMAND_LENGTH]


def source_tags(project: Path) -> dict[str, str]:
    """Return the tags by which the UI shows the user, the command and the commit of `project`."""
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    tags = {
        COMMAND: command(),
        # The UI shows what comes after the last slash, and options have paths.
        mlflow_tags.MLFLOW_SOURCE_NAME: command().partition(" --")[0],
        mlflow_tags.MLFLOW_SOURCE_TYPE: SourceType.to_string(SourceType.JOB if is_job else SourceType.LOCAL),
    }
    try:
        tags[mlflow_tags.MLFLOW_USER] = getpass.getuser()
    except (KeyError, OSError):  # a container may have no names of users
        tags[mlflow_tags.MLFLOW_USER] = str(os.getuid())
    if commit := git_commit(project):
        tags[mlflow_tags.MLFLOW_GIT_COMMIT] = commit.removesuffix("-dirty")
        tags[mlflow_tags.MLFLOW_GIT_DIRTY] = str(commit.endswith("-dirty")).lower()
    if branch := _git(project, "branch", "--show-current"):
        tags[mlflow_tags.MLFLOW_GIT_BRANCH] = branch
    return tags


def dataset_inputs(data: str) -> list[DatasetInput]:
    """Return the splits of a folder of shards for a run's page, with the digest of the manifest."""
    manifest, digest = read_manifest(data), manifest_digest(data)[:DIGEST_LENGTH]
    inputs = []
    for split, context in SPLITS.items():
        if not manifest.samples(split):
            continue
        profile = {
            "samples": manifest.split(split).samples,
            "classes": len(manifest.classes),
            "short_side": manifest.short_side,
        }
        source = {"uri": data}
        dataset = Dataset(f"{manifest.name}/{split}", digest, "local", json.dumps(source), profile=json.dumps(profile))
        inputs.append(DatasetInput(dataset, [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, context)]))
    return inputs


def git_commit(project: Path) -> str:
    """Return the commit of `project`, with `-dirty` if files differ from it; empty without git or a repository."""
    return _git(project, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(project: Path, *arguments: str) -> str:
    # Git refuses to read another user's checkout, lest its settings run programs; code of it is running already.
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        answer = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return ""
    return answer.stdout.strip()
