"""A trained network as a function of image files, without DALI.

An MLflow model carries this module, and those that it imports (`mlflow_model.CODE`), to the machine that serves it: it
needs numpy, Pillow, torch and MLflow, and nothing else of the project.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.crops import centre_corners
from preprocess.images.transform import UnreadableImage, decode_rgb, make_sample

if TYPE_CHECKING:
    import pandas

MODEL_FILE = "model.pt2"
"""The network in evaluation mode as `torch.export` saves it: MLflow's own name for it."""
DESCRIPTION_FILE = "image_classifier.json"
TOP_K = 5
BATCH_IMAGES = 64
"""Images that are classified at once, which bounds the memory of a large request."""


@dataclass(frozen=True)
class Preprocessing:
    """The way from an image file to the input of a network: what the build does, then what evaluation does."""

    short_side: int
    """Side that the shorter side is scaled to (bicubic, antialiased), in pixels."""
    jpeg_quality: int
    """Of the JPEG (4:2:0) that the scaled image is encoded as: the network was trained on such."""
    apply_exif: bool
    """The image is turned as its EXIF orientation says."""
    crop: int
    """Side of the central square that the network sees, in pixels."""
    mean: tuple[float, ...]
    """Subtracted from red, green and blue, in grey levels 0-255; zeros where it is the mean image."""
    mean_image: str | None
    """Subtracted too, if there is one: float32 3,crop,crop in grey levels, little-endian, as base64."""
    divisor: tuple[float, ...]
    """Divisor of red, green and blue after that."""
    value_range: tuple[float, float] | None = None
    """The values of black and white in images of one channel of more than 8 bits; None: the upper 8 of 16 bits."""

    def __call__(self, file: bytes) -> np.ndarray:
        """Return the input, float32 3,crop,crop; raise `UnreadableImage` if the build would reject the file."""
        sample = make_sample(file, self.short_side, self.jpeg_quality, self.apply_exif, self.value_range)
        pixels = np.asarray(decode_rgb(sample.jpeg), np.float32)
        ((top, left),) = centre_corners(np.array([pixels.shape[:2]]), self.short_side, self.crop)
        return self.normalise(pixels[top : top + self.crop, left : left + self.crop].transpose(2, 0, 1))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Return the input of pixels 0-255, float32 ...,3,crop,crop."""
        mean, divisor = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.divisor))
        return (pixels - (mean if self._mean_crop is None else self._mean_crop)) / divisor

    @cached_property
    def _mean_crop(self) -> np.ndarray | None:
        if self.mean_image is None:
            return None
        return np.frombuffer(base64.b64decode(self.mean_image), "<f4").reshape(3, self.crop, self.crop)


class ImageClassifier:
    """A network with its preprocessing and its classes; MLflow calls `predict`."""

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        preprocessing: Preprocessing,
        classes: list[dict[str, str]],
    ) -> None:
        self._network, self._device = network, device
        self._preprocessing, self._classes = preprocessing, classes

    def predict(self, model_input: pandas.DataFrame) -> list[list[dict[str, Any]]]:
        """Return the five most probable classes of each image, best first: `id`, `name` and `probability` (0-1).

        The first column holds image files as bytes, or as base64 where the request is JSON.

        Raises:
            MlflowException: a file is not an image that the build would take.
        """
        files = model_input.iloc[:, 0].tolist()
        starts = range(0, len(files), BATCH_IMAGES)
        return [best for start in starts for best in self._predict(files[start : start + BATCH_IMAGES], start)]

    def _predict(self, files: list[Any], start: int) -> list[list[dict[str, Any]]]:
        images = np.stack([self._input(file, number) for number, file in enumerate(files, start)])
        with torch.inference_mode():
            logits = self._network(torch.from_numpy(images).to(self._device))
            best = logits.float().softmax(1).topk(min(TOP_K, len(self._classes)))
        return [
            [{**self._classes[label], "probability": value} for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _input(self, file: Any, number: int) -> np.ndarray:
        data = file.encode() if isinstance(file, str) else bytes(file)
        try:
            try:
                return self._preprocessing(data)
            except UnreadableImage:
                # MLflow decodes base64 in `dataframe_split` and `dataframe_records`, but not in `inputs`.
                decoded = _decode_base64(data)
                if decoded is None:
                    raise
                return self._preprocessing(decoded)
        except UnreadableImage as error:
            from mlflow.exceptions import MlflowException  # so that the server answers 400, with this message

            raise MlflowException.invalid_parameter_value(f"image {number} cannot be used: {error}") from error


def _decode_base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        return None


def write_description(folder: Path, preprocessing: Preprocessing, classes: list[dict[str, str]]) -> None:
    """Write what `_load_pyfunc` reads next to the network."""
    text = json.dumps({"preprocessing": asdict(preprocessing), "classes": classes}, indent=1)
    (folder / DESCRIPTION_FILE).write_text(f"{text}\n", encoding="utf-8")


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ImageClassifier:
    """Load the model from its folder, onto `model_config["device"]` or a GPU if there is one; MLflow calls this."""
    from torch.export.passes import move_to_device_pass

    description = json.loads(Path(path, DESCRIPTION_FILE).read_text(encoding="utf-8"))
    name = (model_config or {}).get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    program = torch.export.load(str(Path(path, MODEL_FILE)))
    if name != "cpu":
        program = move_to_device_pass(program, name)
    preprocessing = Preprocessing(**description["preprocessing"])
    return ImageClassifier(program.module(), torch.device(name), preprocessing, description["classes"])
