"""`python -m training.predict (--run ID | --checkpoint PATH | --weights FILE --recipe NAME) IMAGE...`: the five
most probable classes of each image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from command_line import CommandParser
from errors import InputError
from pipeline.images import load_images
from preprocess.images.transform import UnreadableImage, make_sample
from training.class_names import unique_names
from training.cli import run_command
from training.load_model import LoadedModel, add_device_argument, add_model_arguments, load_model
from training.loop.step import TOP_K, log_probabilities


def main(arguments: Sequence[str]) -> None:
    """Print the top-5 class names and probabilities of each image that can be used, and a line for each other.

    Raises:
        SystemExit: an image cannot be used, with code 1.
    """
    parser = CommandParser(prog="python -m training.predict", description="Name what images show.")
    add_model_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--data", metavar="DIR", help="with --weights: shards with the same classes")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    options = parser.parse_args(arguments)
    trained = load_model(options, Path.cwd(), options.data)
    usable: list[tuple[Path, bytes]] = []
    for path in options.images:
        try:
            usable.append((path, read_sample(path, trained)))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
    if usable:
        for (path, _), guesses in zip(usable, predict(trained, [sample for _, sample in usable]), strict=True):
            print(path)
            for name, probability in guesses:
                print(f"  {probability:7.2%}  {name}")
    if len(usable) < len(options.images):
        raise SystemExit(1)


def read_sample(path: Path, trained: LoadedModel) -> bytes:
    """Return the JPEG that the build would have made of this file; `InputError` if it cannot."""
    try:
        data = path.read_bytes()
        known = trained.data
        return make_sample(data, known.short_side, known.jpeg_quality, known.apply_exif, known.value_range).jpeg
    except OSError as error:
        raise InputError(f"image {path} cannot be read: {error.strerror}") from error
    except UnreadableImage as error:
        reason, of_build, _ = str(error).partition("; use --value-range")
        trained_without = "; the network was trained on shards built without --value-range" if of_build else ""
        raise InputError(f"image {path} cannot be used: {reason}{trained_without}") from error


def make_input(trained: LoadedModel, samples: Sequence[bytes], crops: int = 1) -> Tensor:
    """Return the input of the network, float32 N,3,H,W or N,10,3,H,W on its device, for the JPEGs of `read_sample`."""
    return load_images(
        samples,
        short_side=trained.data.short_side,
        color_stats=trained.data.color_stats,
        crop=trained.config.image_size,
        crops=crops,
        units=trained.config.units,
        mean_image=trained.mean_image,
        device=trained.device,
    )


def predict(trained: LoadedModel, samples: Sequence[bytes]) -> list[list[tuple[str, float]]]:
    """Return class names and probabilities of the best classes, best first, for each sample."""
    logs = log_probabilities(trained.network, make_input(trained, samples), trained.autocast)
    best = logs.exp().topk(min(TOP_K, logs.shape[1]))
    names = unique_names(trained.data.classes)
    return [
        [(names[label], probability) for label, probability in zip(labels, probabilities, strict=True)]
        for labels, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
