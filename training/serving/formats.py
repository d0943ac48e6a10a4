"""The formats of `training.export`: each holds a network in a file's bytes, and another runtime computes with them."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from preprocess.images.transform import CHROMA, RESAMPLE
from training.load_model import LoadedModel
from training.models import make_network
from training.serving.graph import example_batch, export_program

TOLERANCE = 1e-4
"""Largest difference of a logit from the network's own, as a part of the largest logit."""
CHECKED_BATCHES = (1, 3)
"""Numbers of images that a file is checked with: the batch size must not be fixed."""
INPUT, OUTPUT = "images", "logits"
"""Names of an ONNX model's input and output."""
METADATA_FILE = "twotower.json"
"""File within a TorchScript archive that holds the metadata."""

Logits = Callable[[np.ndarray], np.ndarray]
"""Computes the logits float32 N,classes of images float32 N,3,crop,crop."""


class ExportError(RuntimeError):
    """What was exported computes other logits than the network."""


@dataclass(frozen=True)
class Format:
    """A file format for a network."""

    write: Callable[[LoadedModel], bytes]
    """Returns the content of the file."""
    read: Callable[[bytes, LoadedModel], Logits]
    """Returns the function that the content of the file is in its own runtime; state dicts need the architecture."""
    suffixes: tuple[str, ...]
    """Endings of a file's name by which readers know the format."""


def export(trained: LoadedModel, format_name: str) -> tuple[bytes, float]:
    """Return the content of a file in this format, and the largest difference of its logits.

    Random images are computed in the format's own runtime and by the network. The difference is a part of the largest
    logit.

    Raises:
        ExportError: it is above `TOLERANCE`.
    """
    chosen = FORMATS[format_name]
    with warnings.catch_warnings():
        # TorchScript is deprecated, and takes the graph's check of its input's shape for a result.
        for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):
            warnings.simplefilter("ignore", category)
        content = chosen.write(trained)
        difference = max(_difference(trained, chosen.read(content, trained), count) for count in CHECKED_BATCHES)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the logits of {trained.name} as {format_name} differ by {difference:.1e} of the largest one, "
            f"which is more than {TOLERANCE:.0e}"
        )
    return content, difference


def metadata(trained: LoadedModel) -> dict[str, str]:
    """Return what a reader needs to feed the network and to name its answer; values that are no text are JSON."""
    facts = {
        "network": trained.config.network.name,
        "source": trained.name,
        "classes": trained.classes,
        "channels": "RGB",
        "units": trained.config.units,
        "resample": RESAMPLE,
        "chroma": CHROMA,
        **asdict(trained.preprocessing),
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in facts.items()
        if value is not None
    }


def _difference(trained: LoadedModel, logits: Logits, count: int) -> float:
    side = trained.config.image_size
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, side, side)).astype(np.float32)
    images = trained.preprocessing.normalise(pixels)
    found = logits(images)
    with torch.inference_mode():
        expected = trained.network(torch.from_numpy(images)).numpy()
    if not np.isfinite(expected).all():
        raise ExportError(f"the logits of {trained.name} are not finite: its training has diverged")
    if found.shape != expected.shape:
        raise ExportError(f"the logits of {count} images have the shape {found.shape} instead of {expected.shape}")
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def _write_onnx(trained: LoadedModel) -> bytes:
    program = torch.onnx.export(
        export_program(trained),
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: "batch"},),
    )
    assert program is not None
    program.model.metadata_props.update(metadata(trained))
    return program.model_proto.SerializeToString()


def _read_onnx(content: bytes, _trained: LoadedModel) -> Logits:
    import onnxruntime  # takes a second, which the other formats do without

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _write_torchscript(trained: LoadedModel) -> bytes:
    buffer = io.BytesIO()
    # The graph and not the network, whose own backward of LRN TorchScript could not hold.
    network = export_program(trained).module()
    with torch.no_grad():
        traced = torch.jit.trace(network, example_batch(trained), check_trace=False)
        torch.jit.save(traced, buffer, _extra_files={METADATA_FILE: json.dumps(metadata(trained))})
    return buffer.getvalue()


def _read_torchscript(content: bytes, _trained: LoadedModel) -> Logits:
    return _torch_logits(torch.jit.load(io.BytesIO(content)))


def _write_safetensors(trained: LoadedModel) -> bytes:
    return safetensors.torch.save(_state(trained), metadata(trained))


def _read_safetensors(content: bytes, trained: LoadedModel) -> Logits:
    return _rebuilt_logits(safetensors.torch.load(content), trained)


def _write_state_dict(trained: LoadedModel) -> bytes:
    buffer = io.BytesIO()
    torch.save(_state(trained), buffer)
    return buffer.getvalue()


def _read_state_dict(content: bytes, trained: LoadedModel) -> Logits:
    return _rebuilt_logits(torch.load(io.BytesIO(content), weights_only=True), trained)


def _state(trained: LoadedModel) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in trained.network.state_dict().items()}


def _rebuilt_logits(state: dict[str, Tensor], trained: LoadedModel) -> Logits:
    network = make_network(trained.architecture, len(trained.classes))
    network.load_state_dict(state)
    return _torch_logits(network.eval())


def _torch_logits(network: torch.nn.Module) -> Logits:
    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return logits


FORMATS = {
    "onnx": Format(_write_onnx, _read_onnx, (".onnx",)),
    "safetensors": Format(_write_safetensors, _read_safetensors, (".safetensors",)),
    "torchscript": Format(_write_torchscript, _read_torchscript, (".pt", ".pth", ".torchscript")),
    "state-dict": Format(_write_state_dict, _read_state_dict, (".pt", ".pth")),
}
