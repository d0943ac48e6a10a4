"""`make_loader`: a folder of shards -> batches on the device.

The order and all random numbers are ours (`pipeline.epoch`), our threads read the files ahead of need
(`pipeline.read_ahead`), DALI decodes and augments (`pipeline.graphs`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from pipeline.augment import Augmentation, Mean, Units, divisor, mean_crop, read_mean_image
from pipeline.checks import check_choice, check_count
from pipeline.epoch import Share
from pipeline.graphs import eval_graph, train_graph
from pipeline.inputs import EpochInputs, TrainingInputs, evaluation_inputs
from pipeline.jpeg_size import jpeg_size
from pipeline.read_ahead import ReadAhead
from pipeline.samples import Example, Samples
from pipeline.stream import Graph, Stream, to_torch
from pipeline.windows import centre_corners
from preprocess.manifest import InputError, Manifest, Rgb, manifest_digest, read_manifest

Mode = Literal["train", "eval"]
OnError = Literal["raise", "skip"]

IMAGES_AT_A_TIME = 64
"""How many images `load_images` decodes at once."""


class Loader:
    """Batches of one rank: `for images, labels in loader` is one epoch, and each `iter()` the next one.

    In training, each epoch visits the samples in an order of its own; those beyond the last whole global batch
    (fewer than batch_size * world_size) are left out of that epoch. Global batch b is the same whatever the number
    of ranks, as long as batch_size * world_size is: rank r takes its r-th part. In evaluation, rank r takes samples
    [floor(r n / world_size), floor((r + 1) n / world_size)) in the order of the shards, each once, the last batch as
    small as it gets: a rank may have fewer batches than another, or none.

    images: float32 N,3,H,W (N,10,3,H,W with ten crops), labels: int64 N, both on the device. They belong to the
    caller: later batches do not overwrite them. `iter()` in the middle of an epoch gives up the rest of it. The
    first batches of the next training epoch are decoded while the last ones of this are used.

    With `on_error="skip"` a sample that cannot be read or decoded is left out: its batch is that much smaller, all
    others are what they would have been, in order, content and number. It is counted in `skipped` each time and named
    in a warning the first time. A batch that would be left with no sample raises the error.

    Raises while iterating:
        SampleError: a sample cannot be read or decoded; the text names its shard and key.
    """

    def __init__(
        self, samples: Samples, stream: Stream, batches: int, identity: Callable[[int], dict[str, Any]]
    ) -> None:
        self._samples = samples
        self._stream = stream
        self._batches = batches
        self._identity = identity
        self._epoch = 0
        self._batch = 0
        self._begun = False
        self._closed = False
        self._iteration: object = None

    def __len__(self) -> int:
        """Count the batches that this rank gives per epoch."""
        return self._batches

    @property
    def epoch(self) -> int:
        """The epoch that is under way, and between epochs the one that the next `iter()` begins; from 0."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._move(epoch, 0)

    @property
    def skipped(self) -> int:
        """Count the samples that were left out of the batches given out so far by this loader."""
        return self._stream.skipped

    def example(self, index: int) -> Example:
        """Return one sample of the split as it is stored; evaluation gives them in this order."""
        return self._samples.example(index)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Begin the next epoch, or go on in the one that a loaded state points into."""
        if self._closed:
            raise RuntimeError("the loader is closed")
        if self._begun:
            self._move(self._epoch + 1, 0)
        self._begun = True
        self._iteration = iteration = object()
        if self._batch < self._batches:
            self._stream.seek(self._epoch, self._batch)
        return self._rest_of_epoch(iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, as a small dict of JSON values: the same for every rank.

        After the last batch of an epoch it points to the beginning of the next one.
        """
        epoch, batch = self._epoch, self._batch
        if batch and batch == self._batches:
            epoch, batch = epoch + 1, 0
        return {**self._identity(epoch), "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` go on with the batch after the one at which `state` was taken.

        Raises:
            InputError: the state comes from another data set, split, seed, batch size, number of ranks or mode, or
                from images cut, augmented or scaled in another way in that epoch.
        """
        missing = [name for name in (*self._identity(0), "epoch", "batch") if name not in state]
        if missing:
            raise InputError(f"loader state lacks {', '.join(missing)}")
        check_count("epoch", state["epoch"], 0)
        differing = [
            f"{name} {state[name]!r} where this loader has {own!r}"
            for name, own in self._identity(state["epoch"]).items()
            if state[name] != own
        ]
        if differing:
            raise InputError(f"loader state does not fit: it was taken with {', '.join(differing)}")
        self._move(state["epoch"], state["batch"])

    def close(self) -> None:
        """Let go of the threads, the files and the decoded batches; a closed loader gives no more batches."""
        self._closed = True
        self._iteration = None
        self._stream.close()
        self._samples.close()

    def __del__(self) -> None:
        """Do the same when the loader is forgotten."""
        if hasattr(self, "_stream"):
            self.close()

    def _move(self, epoch: int, batch: int) -> None:
        check_count("epoch", epoch, 0)
        if not isinstance(batch, int) or not 0 <= batch <= self._batches:
            raise InputError(f"batch is {batch!r}; valid: 0 to {self._batches}")
        self._epoch, self._batch, self._begun = epoch, batch, False
        self._iteration = None

    def _rest_of_epoch(self, iteration: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while self._batch < self._batches:
            if iteration is not self._iteration:
                raise RuntimeError("this epoch was given up: the loader was closed or iterated anew")
            images, labels = self._stream.next()
            self._batch += 1
            yield images, labels
        if iteration is self._iteration:
            self._move(self._epoch + 1, 0)


def make_loader(
    data: Path | str,
    split: str,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
    crop: int | None = None,
    seed: int = 0,
    mode: Mode | None = None,
    augmentation: Augmentation | None = None,
    crops: int = 1,
    units: Units = "grey",
    mean: Mean = "channel",
    rgb: Rgb | None = None,
    mean_image: np.ndarray | None = None,
    on_error: OnError = "raise",
    num_threads: int | None = None,
) -> Loader:
    """Open a split of a folder of shards as an iterable of batches.

    Args:
        data: folder of shards with its manifest.
        split: a split of the manifest, such as `train` or `val`.
        batch_size: images per batch and rank.
        rank: position on the data axis; peers on the model axis pass the same one and get the same batches.
        world_size: size of the data axis.
        device: `cpu`, `cuda` or `cuda:N`: where images are decoded and handed out.
        crop: side of the images handed out, in pixels; None is 7/8 of the short side.
        seed: of order, crops, flips and lighting; not negative.
        mode: `train` or `eval`; None is `train` for the split of that name and `eval` elsewhere.
        augmentation: what training does to an image, None for what the paper did; evaluation has none.
        crops: 1 for the centre; 10, in evaluation, for the four corners and the centre of the central square, then
            those of its mirror image, in the order of torchvision's TenCrop.
        units: `grey` gives 0-255 minus the mean, `unit` that divided by 255, `unit-std` that divided by the standard
            deviation of each channel.
        mean: what is subtracted: `channel`, one number for each channel, or `image`, the central crop of the mean
            image, the same for every window and never flipped, as in the released code of 2012.
        rgb: colour statistics for the mean, the standard deviation and the lighting; None is the manifest's own. A
            network is evaluated with those that it was trained with.
        mean_image: float32 short_side,short_side,3 in grey levels, for `mean="image"`; None is the data set's own.
        on_error: `raise` ends the iteration at a sample that cannot be read or decoded, `skip` leaves it out: see
            `Loader`.
        num_threads: threads that decode; None is one for each core that this process may use. The batches do not
            depend on it.

    Raises:
        InputError: the folder is not a whole data set, or an argument has no valid value; the text says which.
    """
    manifest = read_manifest(data) if rgb is None else replace(read_manifest(data), rgb=rgb)
    samples = Samples(data, manifest, split)
    mode = mode or ("train" if split == "train" else "eval")
    check_choice("mode", mode, get_args(Mode))
    check_choice("on_error", on_error, get_args(OnError))
    check_choice("units", units, get_args(Units))
    side = _checked_crop(crop, manifest.short_side)
    subtracted = _mean_crop(Path(data), manifest, mean, mean_image, side)
    if mode == "train":
        check_choice("crops", crops, [1])
        check_count("seed", seed, 0)
        augmentation = augmentation or Augmentation()
        share = Share.of_training(len(samples), batch_size, rank, world_size)
        whole_batch = batch_size * world_size
        epoch_inputs: Callable[[int], EpochInputs] = TrainingInputs(
            samples.shard_samples, seed, whole_batch, manifest.short_side, side, augmentation, manifest.rgb, units, mean
        )
        resized = augmentation.crop_size == "random"
        graph: Graph = partial(train_graph, crop=side, resized=resized, mean_crop=subtracted)
    else:
        check_choice("augmentation", augmentation, [None])
        share = Share.of_evaluation(len(samples), batch_size, rank, world_size)
        graph = _eval_graph(manifest.short_side, manifest.rgb, side, crops, units, subtracted)
        inputs = evaluation_inputs(len(samples), manifest.short_side, side if crops == 1 else manifest.short_side)
        epoch_inputs = lambda _epoch: inputs  # noqa: E731
    target = _checked_device(device)
    skip = on_error == "skip"
    source = ReadAhead(samples, share, epoch_inputs, endless=mode == "train", skip=skip)
    stream = Stream(source, samples, _placed(graph, target, num_threads), batch_size, target, skip=skip)
    identity = {"data": manifest_digest(data), "split": split, "mode": mode, "seed": seed}
    identity |= {"batch_size": batch_size, "world_size": world_size, "crop": side, "crops": crops}
    identity |= {"units": units, "mean": mean}
    return Loader(samples, stream, len(share), partial(_identity, identity, augmentation))


def _identity(common: dict[str, Any], augmentation: Augmentation | None, epoch: int) -> dict[str, Any]:
    """Return what decides the content of the batches of one epoch."""
    return {**common, "augmentation": None if augmentation is None else asdict(augmentation.at(epoch))}


def load_images(
    jpegs: Sequence[bytes],
    *,
    short_side: int,
    rgb: Rgb,
    crop: int | None = None,
    crops: int = 1,
    units: Units = "grey",
    mean_image: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
) -> torch.Tensor:
    """Decode JPEG files as evaluation does, through the same graph: float32 N,3,H,W or N,10,3,H,W on the device.

    Args:
        jpegs: files as they lie in a shard: the shorter side is `short_side` pixels.
        short_side: as in the manifest of the data that the network was trained on.
        rgb: the colour statistics of that data.
        mean_image: of that data, to subtract its central crop; None subtracts the channel mean.
        crop, crops, units, device, num_threads: as in `make_loader`.

    Raises:
        InputError: no file, or an argument has no valid value.
        RuntimeError: a file does not decode.
    """
    if not jpegs:
        raise InputError("jpegs is empty; valid: at least one image")
    target = _checked_device(device)
    side = _checked_crop(crop, short_side)
    subtracted = None if mean_image is None else mean_crop(mean_image, side)
    parts = iter(jpegs[i : i + IMAGES_AT_A_TIME] for i in range(0, len(jpegs), IMAGES_AT_A_TIME))

    def source() -> tuple[list[np.ndarray], np.ndarray]:
        part = next(parts)
        sizes = np.array([jpeg_size(jpeg) for jpeg in part], np.int32)
        corners = centre_corners(sizes, short_side, side if crops == 1 else short_side)
        return [np.frombuffer(jpeg, np.uint8) for jpeg in part], corners

    pipeline = _placed(_eval_graph(short_side, rgb, side, crops, units, subtracted), target, num_threads)(
        source=source,
        batch_size=min(len(jpegs), IMAGES_AT_A_TIME),
        prefetch_queue_depth=1,
    )
    return torch.cat([to_torch(pipeline.run()[0]) for _ in range(0, len(jpegs), IMAGES_AT_A_TIME)])


def _eval_graph(short_side: int, rgb: Rgb, side: int, crops: int, units: Units, subtracted: np.ndarray | None) -> Graph:
    check_choice("crops", crops, (1, 10))
    return partial(
        eval_graph,
        short_side=short_side,
        crop=side,
        crops=crops,
        mean=list(rgb.mean),
        mean_crop=subtracted,
        divisor=divisor(rgb, units),
    )


def _mean_crop(
    folder: Path, manifest: Manifest, mean: Mean, mean_image: np.ndarray | None, side: int
) -> np.ndarray | None:
    """Return what is subtracted pixel by pixel, float32 3,side,side, or None where it is the channel mean."""
    check_choice("mean", mean, get_args(Mean))
    if mean == "channel":
        return None
    if mean_image is None:
        mean_image = read_mean_image(folder / manifest.rgb.mean_image, manifest.short_side)
    return mean_crop(mean_image, side)


def _placed(graph: Graph, device: torch.device, num_threads: int | None) -> Graph:
    if num_threads is not None:
        check_count("num_threads", num_threads, 1)
    return partial(
        graph,
        device="cpu" if device.type == "cpu" else "gpu",
        device_id=device.index,
        num_threads=num_threads or len(os.sched_getaffinity(0)),
    )


def _checked_crop(crop: int | None, short_side: int) -> int:
    side = short_side * 7 // 8 if crop is None else crop
    if not 1 <= side <= short_side:
        raise InputError(f"crop is {crop}; valid: 1 to {short_side}, the short side of the images")
    return side


def _checked_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; valid: cpu, cuda, cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cuda" or (device.index or 0) >= count:
        there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        raise InputError(f"device is {str(name)!r}; valid on this machine: {there}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
