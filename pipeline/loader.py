"""`make_loader`: a folder of shards -> batches on the device.

The order and all random numbers are ours (`pipeline.sampler`), our threads read the files ahead of need
(`pipeline.reading.read_ahead`), DALI decodes and augments (`pipeline.graphs`); or decodes only, once, and a pass of
ours makes the batches from what is kept (`pipeline.cache.stream`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch

from errors import InputError, check_choice, check_count
from pipeline.augment import Augmentation, Mean, Units, check_units, mean_crop, read_mean_image
from pipeline.cache.filler import CacheFiller
from pipeline.cache.memory import CacheKind
from pipeline.cache.store import Cache
from pipeline.cache.stream import CachedBatchStream
from pipeline.crops import default_crop
from pipeline.graphs import CPU_ENVIRONMENT, SPARE_THREADS, square_graph
from pipeline.inputs import central_windows
from pipeline.rank_plan import RankPlan, ViewSpec, eval_rank_plan, train_rank_plan
from pipeline.reading.dali_stream import DaliStream, Graph, to_torch
from pipeline.reading.jpeg_size import jpeg_size
from pipeline.reading.read_ahead import ReadAhead
from pipeline.reading.samples import Samples, StoredSample
from preprocess.manifest import ColorStats, Manifest, manifest_digest, read_manifest

Mode = Literal["train", "eval"]
OnError = Literal["raise", "skip"]

IMAGES_AT_A_TIME = 64
"""Images that `load_images` decodes at once."""


class BatchStream(Protocol):
    """A rank's batches in the order of its epochs, from any position: `DaliStream` or `CachedBatchStream`."""

    skipped: int
    """Samples left out of the batches that were given out."""

    def seek(self, epoch: int, number: int) -> None:
        """Go on with this batch; costs nothing where it comes next anyway."""

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next images and labels."""

    def close(self) -> None:
        """Let go of the threads and of what is decoded."""


class Loader:
    """Batches of one rank: `for images, labels in loader` is one epoch, and each `iter()` the next one.

    In training, each epoch visits the samples in an order of its own; those beyond the last whole global batch
    (fewer than batch_size * world_size) are left out of that epoch. Global batch b is the same whatever the number
    of ranks, as long as batch_size * world_size is: rank r takes its r-th part. In evaluation, rank r takes samples
    [floor(r n / world_size), floor((r + 1) n / world_size)) in the order of the shards, each once, the last batch as
    small as it gets: a rank may have fewer batches than another, or none.

    With a cache each rank keeps a fixed part of the training samples, drawn from the seed, and goes through it by a
    permutation of (seed, epoch) from the first epoch on: with one rank a true permutation of all. The parts differ by
    one sample at most, and each epoch leaves out others. What is in a global batch then depends on the number of ranks.
    A sample is decoded when it is first needed; once all of a part are, nothing is read any more.

    images: float32 N,3,H,W (N,10,3,H,W with ten crops), labels: int64 N, both on the device. They belong to the
    caller: later batches do not overwrite them. With a cache, on the CPU, the memory of a batch that the caller holds
    no tensor of any more (nor a view, nor a numpy array of it) is used again for a later one; what is held is never
    touched. `iter()` in the middle of an epoch gives up the rest of it. The first batches of the next training epoch
    are decoded while the last ones of this are used.

    With `on_error="skip"` a sample that cannot be read or decoded is left out: its batch is that much smaller, all
    others are what they would have been, in order, content and number. It is counted in `skipped` each time and named
    in a warning the first time. A batch that would be left with no sample raises the error.

    Raises while iterating:
        SampleError: a sample cannot be read or decoded; the text names its shard and key.
    """

    def __init__(
        self, samples: Samples, stream: BatchStream, batches: int, identity: Callable[[int], dict[str, Any]]
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

    def example(self, index: int) -> StoredSample:
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
                raise RuntimeError("this epoch was given up: the loader was closed or iterated again")
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
    color_stats: ColorStats | None = None,
    mean_image: np.ndarray | None = None,
    on_error: OnError = "raise",
    cache: CacheKind = "none",
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
        units: `grey` gives 0-255 minus the mean; `unit`, (x - mean) / 255; `unit-std`, (x - mean) / standard deviation
            of each channel; `torchvision`, the same with the mean and deviation of its published weights.
        mean: what is subtracted: `channel`, one number for each channel, or `image`, the central crop of the mean
            image, the same for every window and never flipped, as in the released code of 2012.
        color_stats: for the mean, the standard deviation and the lighting; None is the manifest's own. A
            network is evaluated with those that it was trained with.
        mean_image: float32 short_side,short_side,3 in grey levels, for `mean="image"`; None is the data set's own.
        on_error: `raise` ends the iteration at a sample that cannot be read or decoded, `skip` leaves it out: see
            `Loader`.
        cache: `host` or `device` keeps what was decoded in the memory of the machine or of `device`, so that no image
            is decoded twice. In training that is the central square as YCbCr 4:2:0 (1.5 bytes a pixel), the batches
            differ from those without by at most 4 grey levels for an image on average, and so does their order; in
            evaluation it is the pixels themselves.
        num_threads: cores that decode (a cache's batches are made by torch's own threads); None is all that this
            process may use. The batches do not depend on it.

    Raises:
        InputError: the folder is not a whole data set, an argument has no valid value, or the cache does not fit into
            memory or with the augmentation; the text says which.
    """
    manifest = read_manifest(data) if color_stats is None else replace(read_manifest(data), color_stats=color_stats)
    samples = Samples(data, manifest, split)
    mode = mode or ("train" if split == "train" else "eval")
    check_choice("mode", mode, get_args(Mode))
    check_choice("on_error", on_error, get_args(OnError))
    check_units(units, mean)
    check_choice("cache", cache, get_args(CacheKind))
    side = _checked_crop(crop, manifest.short_side)
    subtracted = _mean_crop(Path(data), manifest, mean, mean_image, side)
    view = ViewSpec(manifest.short_side, side, crops, manifest.color_stats, units, subtracted)
    ranks = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
    if mode == "train":
        check_choice("crops", crops, [1])
        check_count("seed", seed, 0)
        augmentation = augmentation or Augmentation()
        plan = train_rank_plan(samples, view, augmentation, seed, cached=cache != "none", **ranks)
    else:
        check_choice("augmentation", augmentation, [None])
        check_choice("crops", crops, (1, 10))
        plan = eval_rank_plan(samples, view, cached=cache != "none", **ranks)
    stream = _open_stream(samples, view, plan, batch_size, cache, _checked_device(device), num_threads, on_error)
    identity = {"data": manifest_digest(data), "split": split, "mode": mode, "seed": seed}
    identity |= {"batch_size": batch_size, "world_size": world_size, "crop": side, "crops": crops}
    identity |= {"units": units, "mean": mean, "order": plan.order}
    return Loader(samples, stream, len(plan.rank_slice), partial(_identity, identity, augmentation))


def _open_stream(
    samples: Samples,
    view: ViewSpec,
    plan: RankPlan,
    batch_size: int,
    kind: CacheKind,
    device: torch.device,
    num_threads: int | None,
    on_error: OnError,
) -> BatchStream:
    skip = on_error == "skip"
    if kind == "none":
        source = ReadAhead(samples, plan.rank_slice, plan.inputs, endless=lambda: plan.endless, skip=skip)
        return DaliStream(source, samples, _placed(plan.graph, device, num_threads), batch_size, device, skip=skip)
    pixel_format = plan.pixel_format
    where = device if kind == "device" else torch.device("cpu")
    cache = Cache(plan.members, len(samples), pixel_format, where)
    graph = _placed(partial(square_graph, side=pixel_format.side), device, num_threads)
    filler = CacheFiller(
        cache, samples, plan.rank_slice, plan.inputs, graph, view.short_side, batch_size, device, skip=skip
    )
    return CachedBatchStream(cache, filler, plan.rank_slice, plan.inputs, view, batch_size, device)


def _identity(common: dict[str, Any], augmentation: Augmentation | None, epoch: int) -> dict[str, Any]:
    """Return what decides the content of the batches of one epoch."""
    return {**common, "augmentation": None if augmentation is None else asdict(augmentation.at(epoch))}


def load_images(
    jpegs: Sequence[bytes],
    *,
    short_side: int,
    color_stats: ColorStats,
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
        color_stats: the colour statistics of that data.
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
    check_choice("crops", crops, (1, 10))
    check_units(units, "channel" if mean_image is None else "image")
    view = ViewSpec(
        short_side, side, crops, color_stats, units, None if mean_image is None else mean_crop(mean_image, side)
    )
    parts = iter(jpegs[i : i + IMAGES_AT_A_TIME] for i in range(0, len(jpegs), IMAGES_AT_A_TIME))

    def source() -> tuple[Any, ...]:
        part = next(parts)
        sizes = np.array([jpeg_size(jpeg) for jpeg in part], np.int32)
        return [np.frombuffer(jpeg, np.uint8) for jpeg in part], *central_windows(sizes, short_side, view.eval_window)

    pipeline = _placed(view.eval_graph(), target, num_threads)(
        source=source,
        batch_size=min(len(jpegs), IMAGES_AT_A_TIME),
        prefetch_queue_depth=1,
    )
    return torch.cat([to_torch(pipeline.run()[0]) for _ in range(0, len(jpegs), IMAGES_AT_A_TIME)])


def _mean_crop(
    folder: Path, manifest: Manifest, mean: Mean, mean_image: np.ndarray | None, side: int
) -> np.ndarray | None:
    """Return what is subtracted pixel by pixel, float32 3,side,side, or None where it is the channel mean."""
    check_choice("mean", mean, get_args(Mean))
    if mean == "channel":
        return None
    if mean_image is None:
        mean_image = read_mean_image(folder / manifest.color_stats.mean_image, manifest.short_side)
    return mean_crop(mean_image, side)


def _placed(graph: Graph, device: torch.device, num_threads: int | None) -> Graph:
    if num_threads is not None:
        check_count("num_threads", num_threads, 1)
    threads = num_threads or len(os.sched_getaffinity(0))
    if device.type != "cpu":
        return partial(graph, device="gpu", device_id=device.index, num_threads=threads)
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return partial(graph, device="cpu", device_id=None, num_threads=threads + SPARE_THREADS)


def _checked_crop(crop: int | None, short_side: int) -> int:
    side = default_crop(short_side) if crop is None else crop
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
