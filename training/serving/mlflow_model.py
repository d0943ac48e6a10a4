"""A trained network as an MLflow model with two flavours: `pytorch` and `python_function`, which takes image files."""

from __future__ import annotations

import logging
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema

from training.load_model import LoadedModel
from training.serving import image_classifier
from training.serving.graph import export_program
from training.serving.image_classifier import MODEL_FILE, write_description

PROJECT = Path(__file__).resolve().parents[2]
CODE = (
    "errors.py",
    "pipeline/__init__.py",
    "pipeline/crops.py",
    "preprocess/__init__.py",
    "preprocess/images/__init__.py",
    "preprocess/images/decoding.py",
    "preprocess/images/formats.py",
    "preprocess/images/transform.py",
    "preprocess/images/value_range.py",
    "training/__init__.py",
    "training/serving/__init__.py",
    "training/serving/image_classifier.py",
)
"""What travels with a model: `image_classifier` and all that it imports of the project."""
_CLASS = {"id": DataType.string, "name": DataType.string, "probability": DataType.double}
_CLASSES = Array(Object([Property(name, kind) for name, kind in _CLASS.items()]))
SIGNATURE = ModelSignature(inputs=Schema([ColSpec(DataType.binary)]), outputs=Schema([ColSpec(_CLASSES)]))
"""One image file in, its best classes out. The column has no name: a list of files and any table are taken."""


def requirements() -> list[str]:
    """Return the packages that a machine which serves the model needs, with the versions of this one.

    Pillow is not named: MLflow depends on it, by way of matplotlib. pillow-simd, which this project uses, would have
    to be compiled there, and would overwrite Pillow.
    """
    return [f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "torch", "numpy")]


def save_model(trained: LoadedModel, folder: Path, example: bytes, model: Model | None = None) -> None:
    """Write the MLflow model of a network on the CPU into an empty or new folder.

    The network is saved as a graph (`torch.export`), which is loaded without its code and without pickle. What turns a
    file into its input is code, and is run where the `python_function` is loaded.

    Args:
        trained: the network, in eval mode.
        folder: where to.
        example: an image file, for the model's input example.
        model: MLflow's description of the model, to be completed; None: a new one.
    """
    model = model or Model()
    # It tells that it validates the example, and that the version of pip, which uv does without, is unknown.
    for name in ("mlflow.pyfunc", "mlflow.utils.environment"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        data, code = Path(temporary, "network"), Path(temporary, "code")
        data.mkdir()
        torch.export.save(export_program(trained), data / MODEL_FILE)
        write_description(data, trained.preprocessing, trained.classes)
        mlflow.pyfunc.save_model(
            folder,
            loader_module=image_classifier.__name__,
            data_path=str(data),
            code_paths=_stage_code(code),
            mlflow_model=model,
            signature=SIGNATURE,
            input_example=[example],
            pip_requirements=requirements(),
            model_config={"device": None},
        )
    loaded_from = model.flavors[mlflow.pyfunc.FLAVOR_NAME][mlflow.pyfunc.DATA]
    model.add_flavor("pytorch", model_data=loaded_from, pytorch_version=str(torch.__version__), code=None)
    model.save(folder / "MLmodel")


def _stage_code(folder: Path) -> list[str]:
    """Copy `CODE` into `folder` and return its entries; MLflow copies files and folders, but not a part of one."""
    for name in CODE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, folder / name)
    return [str(entry) for entry in sorted(folder.iterdir())]
