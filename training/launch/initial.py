"""Starting from weights: those of a run, of a checkpoint, or in a file."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pyarrow.fs import FileType, copy_files
from torch import Tensor

from errors import InputError
from object_store import open_filesystem
from preprocess.manifest import ClassEntry, read_manifest
from training import tracking
from training.checkpoint import file_sha256, model_path, read_checkpoint, read_description, read_model
from training.cli import resolve
from training.config import Config
from training.launch.resume import stored_config
from training.launch.store import CheckpointStore
from training.models import make_network
from training.models.state_dict import check_fits

_RUN = re.compile(r"([0-9a-f]{32})(?::(.*))?")
_VALID = "use RUN_ID, RUN_ID:best, a checkpoint folder, or a file of weights"


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a training starts from; they fit its network."""

    state: dict[str, Tensor]
    """Single-device state dict on the CPU; without the last layer if that is drawn from the seed."""
    params: dict[str, str]
    """Their source, for the parameters of the MLflow run."""


def resolve_init(init: str, project: Path) -> str:
    """Return `init` with a path relative to the folder `project` as an absolute one; run ids and URIs as they are.

    Raises:
        InputError: a run without such a checkpoint, or a path as in `resolve`.
    """
    run = _RUN.fullmatch(init)
    if run is None:
        return resolve("init", init, project, must_exist=True)
    if run[2] not in (None, "best", "last"):
        raise InputError(f"init is {init!r}: a run has no checkpoint {run[2]!r}; use RUN_ID:best or RUN_ID:last")
    return init


def source_config(init: str, project: Path) -> Config | None:
    """Return the configuration of the run or the checkpoint that `init` names; None if it names a file of weights.

    Raises:
        InputError: there is no such run, checkpoint or file.
    """
    if run := _RUN.fullmatch(resolve_init(init, project)):
        return stored_config(run[1], project)
    with _fetch(init, project) as path:
        return read_description(path).config if path.is_dir() else None


def read_initial(config: Config, project: Path, resumed: str | None = None) -> InitialWeights | None:
    """Return the weights that `config.init` names; None if it names none, or the run `resumed` has its weights already.

    Print a line where the training starts, and another if the last layer starts with new weights: the source has
    another number of classes, or is known to have other classes.

    Raises:
        InputError: there is no such source, or its weights do not fit the network; names them.
    """
    if config.init is None or (resumed is not None and _has_weights(config, resumed)):
        return None
    with _fetch(config.init, project) as path:
        saved = read_checkpoint(path) if path.is_dir() else None
        file = path if saved is None else model_path(path)
        state, digest = read_model(file), file_sha256(file)
    state, num_classes = _fit(state, config)
    print(f"starts from the weights of {config.init}" + (f", step {saved.step}" if saved else ""), flush=True)
    known = None if saved is None else saved.data.classes
    difference = _compare_classes(num_classes, known, read_manifest(config.data).classes)
    if difference is not None:
        last = config.architecture().last_layer
        print(f"{last} starts from new weights, drawn from seed {config.seed}: {difference}", flush=True)
        state = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] != last}
    return InitialWeights(state, {"init_sha256": digest, **({"init_run_id": saved.run_id} if saved else {})})


def _has_weights(config: Config, run_id: str) -> bool:
    store = CheckpointStore(config.storage, run_id)
    return store.has_initial() or bool(store.steps())


@contextlib.contextmanager
def _fetch(init: str, project: Path) -> Iterator[Path]:
    """Lend the checkpoint folder or the file that `init` names as a local path."""
    init = resolve_init(init, project)
    run = _RUN.fullmatch(init)
    with tempfile.TemporaryDirectory() as folder:
        if run is not None:
            client = tracking.open_client(tracking.tracking_uri(project))
            yield tracking.fetch_checkpoint(client, run[1], run[2] or "last", Path(folder))
        elif "://" in init:
            yield _download(init, Path(folder))
        else:
            if not Path(init).exists():
                raise InputError(f"init is {init!r}: there is no such file or folder; {_VALID}")
            yield Path(init)


def _download(uri: str, folder: Path) -> Path:
    try:
        filesystem, path = open_filesystem(uri)
        info = filesystem.get_file_info(path)
        if info.type != FileType.NotFound:
            target = folder / info.base_name
            if info.type == FileType.Directory:
                target.mkdir()
            copy_files(path, str(target), filesystem)
            return target
    except (OSError, ValueError) as error:  # pyarrow's own errors are subclasses of these
        raise InputError(f"init is {uri!r}: it cannot be read: {error}; {_VALID}") from error
    raise InputError(f"init is {uri!r}: there is no such file or folder; {_VALID}")


def _fit(state: dict[str, Tensor], config: Config) -> tuple[dict[str, Tensor], int]:
    """Return the tensors in the format of the network of `config`, and for how many classes they are."""
    last = state.get(f"{config.architecture().last_layer}.weight")
    num_classes = len(read_manifest(config.data).classes) if last is None or not last.dim() else len(last)
    with torch.device("meta"):  # only names, shapes and dtypes
        wanted = make_network(config.architecture(), num_classes).state_dict()
    try:
        check_fits(state, wanted, f"init {config.init}")
    except InputError as error:
        raise InputError(f"{error}; use the recipe and the --network options that these weights are of") from error
    # Copies, since safetensors writes no tensors that share their memory.
    copied = {name: tensor.detach().to(wanted[name].dtype, copy=True) for name, tensor in state.items()}
    return {name: tensor.contiguous() for name, tensor in copied.items()}, num_classes


def _compare_classes(
    num_classes: int, classes: tuple[ClassEntry, ...] | None, wanted: tuple[ClassEntry, ...]
) -> str | None:
    if num_classes != len(wanted):
        return f"the source has {num_classes} classes, the data {len(wanted)}"
    pairs = zip(classes or wanted, wanted, strict=True)
    different = [f"{theirs.id} is not {ours.id}" for theirs, ours in pairs if theirs.id != ours.id]
    return f"the source has other classes than the data, {different[0]}" if different else None
