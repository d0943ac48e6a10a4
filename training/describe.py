"""The descriptions of evaluated networks, for a report and for a comparison."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from pipeline.reading.samples import StoredSample
from preprocess.manifest import Manifest
from training.config import flatten
from training.ensemble import Ensemble
from training.features import convolution_maps
from training.load_model import LoadedModel
from training.report.comparison import Side
from training.report.curves import CURVE_METRICS
from training.report.html import Subject
from training.report.metrics import Predictions
from training.report.retrieval import Retrieval


def describe(
    ensemble: Ensemble, manifest: Manifest, project: Path, example: StoredSample, retrieval: Retrieval | None = None
) -> Subject:
    """Return the names and the size of the networks; of a single one also its first layer, maps and run's curves.

    Args:
        ensemble: the networks.
        manifest: of the data set that they are evaluated on.
        project: the folder of the default MLflow store.
        example: the sample whose feature maps are shown.
        retrieval: of a single network, if it was asked for.

    Raises:
        InputError: the store fails.
    """
    single = ensemble.members[0] if len(ensemble.members) == 1 else None
    parameters = [member.network.parameters() for member in ensemble.members]
    return Subject(
        network=ensemble.network_names,
        parameters=sum(parameter.numel() for parameter in itertools.chain(*parameters)),
        data=manifest.name,
        conv1=None if single is None else first_layer(single),
        towers=1 if single is None else single.architecture.towers,
        retrieval=retrieval,
        maps=() if single is None else tuple(convolution_maps(single, example.jpeg)),
        maps_of=example,
        history={} if single is None or single.run_id is None else training_history(single.run_id, project),
    )


def describe_side(trained: LoadedModel, project: Path, predictions: Predictions) -> Side:
    """Return the description of one of two networks that are compared.

    Args:
        trained: the network, of an MLflow run, which has its name and its curves.
        project: the folder of the default MLflow store.
        predictions: its predictions of the split.

    Raises:
        InputError: the store fails.
    """
    from training import tracking  # MLflow takes seconds to import: weights and checkpoints do without

    assert trained.run_id is not None, "only runs are compared"
    run = tracking.find_run(tracking.open_client(tracking.tracking_uri(project)), trained.run_id)
    return Side(
        name=run.info.run_name,
        run_id=trained.run_id,
        checkpoint=trained.name,
        network=trained.config.network.name,
        parameters=sum(parameter.numel() for parameter in trained.network.parameters()),
        weights_sha256=trained.weights_sha256,
        fields=flatten(trained.config),
        conv1=first_layer(trained),
        towers=trained.architecture.towers,
        history=training_history(trained.run_id, project),
        predictions=predictions,
    )


def first_layer(trained: LoadedModel) -> np.ndarray:
    """Return the weights of the first layer, float32 (F, C, k, k)."""
    first = trained.network.get_parameter(f"{trained.architecture.first_layer}.weight")
    return first.detach().cpu().float().numpy()


def training_history(run_id: str, project: Path) -> dict[str, dict[int, float]]:
    """Return the value of each metric of the curves at each step of a run; raise `InputError` if the store fails."""
    from training import tracking  # MLflow takes seconds to import: weights and checkpoints do without

    client = tracking.open_client(tracking.tracking_uri(project))
    return tracking.read_history(client, run_id, CURVE_METRICS)
