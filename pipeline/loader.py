"""`make_loader`: a folder of shards -> batches on the device; `pipeline.rank_plan` lists the stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from errors import InputError, check_choice, check_count
from object_store import join
from pipeline.augment import Augmentation
from pipeline.cache.memory import CacheKind
from pipeline.cache.store import Cache
from pipeline.cache.stream import CachedBatchStream
from pipeline.rank_plan import RankPlan, make_rank_plan
from pipeline.reading.dali_stream import DaliStream, Decoder
from pipeline.reading.read_ahead import ReadAhead
from pipeline.reading.samples import Samples, StoredSample
from pipeline.reading.staging import Staging
from pipeline.sampler import Sampling
from pipeline.views import Mean, Units, ViewSpec, check_units, make_view, read_mean_image
from preprocess.manifest import ColorStats, manifest_digest, read_manifest

Mode = Literal["train", "eval"]
OnError = Literal["raise", "skip"]


BatchStream = DaliStream | CachedBatchStream
"""A rank's batches in the order of its epochs, from any position."""


class Loader:
    """Batches of one rank: `for images, labels in loader` is one epoch, and each `iter()` the next one.

    In training, each epoch visits the samples in an order of its own; those beyond the last complete global batch
    (fewer than batch_size * world_size) are left out of that epoch. With sampling `balanced`, an epoch has as many
    batches, in which all classes come equally often. Global batch b is the same whatever the number
    of ranks, as long as batch_size * world_size is: rank r takes its r-th part. In evaluation, rank r takes samples
    [floor(r n / world_size), floor((r + 1) n / world_size)) in the order of the shards, each once; the last batch may
    be smaller, and a rank may have fewer batches than another, or none.

    With a cache each rank keeps a fixed part of the training samples, drawn from the seed, and goes through it by a
    permutation of (seed, epoch) from the first epoch on: with one rank a true permutation of all. The parts differ by
    one sample at most, and each epoch leaves out different samples. The content of a global batch then depends on the
    number of ranks. A sample is decoded when it is first needed; once all samples of the part are decoded, nothing more
    is read.

    images: float32 N,3,H,W (N,10,3,H,W with ten crops), labels: int64 N, both on the device. They belong to the
    caller: later batches do not overwrite them. On the CPU, a cache reuses a batch's memory once nothing refers to it:
    no tensor, view or numpy array. `iter()` in the middle of an epoch abandons the rest of it. The first batches of the
    next training epoch are decoded while the last ones of this epoch are used.

    With `on_error="skip"` a sample that cannot be read or decoded is left out: its batch is that much smaller, all
    others are what they would have been, in order, content and number. It is counted in `skipped` each time and named
    in a warning the first time. A batch that would be left with no sample raises the error.

    Raises while iterating:
        SampleError: a sample cannot be read or decoded; the text names its shard and key.
    """

    def __init__(
        self,
        samples: Samples,
        stream: BatchStream,
        batches: int,
        identity: dict[str, Any],
        augmentation: Augmentation | None,
    ) -> None:
        self._samples = samples
        self._stream = stream
        self._batches = batches
        self._common_identity = identity
        self._augmentation = augmentation
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
        """Number of samples left out so far, in the batches that this loader has given out."""
        return self._stream.skipped

    def example(self, index: int) -> StoredSample:
        """Return one sample of the split as it is stored; evaluation gives them in this order."""
        return self._samples.example(index)

    def class_counts(self) -> np.ndarray:
        """Return the number of samples of each class in the split, int64; reads all labels.

        Raises:
            SampleError: one cannot be read.
        """
        return self._samples.class_counts()

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
            InputError: the state comes from another data set, split, seed, mode or global batch size, or from images
                cut, augmented or scaled in another way in that epoch; in evaluation and with a cache, whose order
                depends on it, also from another number of ranks.
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
        """Release the threads, the files and the decoded batches; a closed loader gives no more batches."""
        self._closed = True
        self._iteration = None
        self._stream.close()
        self._samples.close()

    def __del__(self) -> None:
        """Close the loader when it is garbage-collected."""
        if hasattr(self, "_stream"):
            self.close()

    def _identity(self, epoch: int) -> dict[str, Any]:
        """Return the settings that determine the content of the batches of one epoch."""
        augmentation = None if self._augmentation is None else asdict(self._augmentation.at(epoch))
        return {**self._common_identity, "augmentation": augmentation}

    def _move(self, epoch: int, batch: int) -> None:
        check_count("epoch", epoch, 0)
        if not isinstance(batch, int) or not 0 <= batch <= self._batches:
            raise InputError(f"batch is {batch!r}; use 0 to {self._batches}")
        self._epoch, self._batch, self._begun = epoch, batch, False
        self._iteration = None

    def _rest_of_epoch(self, iteration: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while self._batch < self._batches:
            if iteration is not self._iteration:
                raise RuntimeError("this epoch was abandoned: the loader was closed or iterated again")
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
    sampling: Sampling = "uniform",
    crops: int = 1,
    units: Units = "grey",
    mean: Mean = "channel",
    color_stats: ColorStats | None = None,
    mean_image: np.ndarray | None = None,
    on_error: OnError = "raise",
    cache: CacheKind = "none",
    num_threads: int | None = None,
    staging: Staging | None = None,
) -> Loader:
    """Open a split of a folder of shards as an iterable of batches.

    Args:
        data: folder of shards with its manifest, or the URI of one in an object store (`s3://bucket/shards`).
        split: a split of the manifest, such as `train` or `val`.
        batch_size: images per batch and rank.
        rank: position on the data axis; peers on the model axis pass the same one and get the same batches.
        world_size: size of the data axis.
        device: `cpu`, `cuda` or `cuda:N`: where images are decoded and handed out.
        crop: side of the images handed out, in pixels; None is 7/8 of the short side.
        seed: of order, crops, flips and lighting; not negative.
        mode: `train` or `eval`; None is `train` for the split of that name and `eval` elsewhere.
        augmentation: augmentation of training; default: the paper's; not allowed in evaluation.
        sampling: of training: `uniform` takes each sample once an epoch, `balanced` draws all classes equally often
            (`pipeline.balanced.BalancedPartition`), for which all labels are read at the start.
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
        num_threads: CPU threads for decoding; default: all cores of this process. The batches do not depend on it.
            (torch's own threads make the batches of a cache.)
        staging: where the shards of an object store are copied to, ahead of need; the processes of a machine share
            them. The batches do not depend on it.

    Raises:
        InputError: the folder is not a complete data set, an argument has no valid value, a label that is needed cannot
            be read, the cache does not fit into memory or with the augmentation, or the object store or the disk
            refuses; the text says which.
    """
    manifest = read_manifest(data)
    samples = Samples(data, manifest, split, staging)
    mode = mode or ("train" if split == "train" else "eval")
    _check_choices(mode, on_error, cache, sampling)
    if mode == "train":
        check_choice("crops", crops, [1])
        check_count("seed", seed, 0)
        augmentation = augmentation or Augmentation()
    else:
        check_choice("augmentation", augmentation, [None])
        check_choice("sampling", sampling, ["uniform"])
    check_units(units, mean)
    if mean == "image" and mean_image is None:
        mean_image = read_mean_image(join(str(data), manifest.color_stats.mean_image), manifest.short_side)
    view = make_view(
        manifest.short_side,
        color_stats or manifest.color_stats,
        crop=crop,
        crops=crops,
        units=units,
        mean_image=mean_image if mean == "image" else None,
    )
    plan = make_rank_plan(
        samples.shard_samples,
        view,
        augmentation,
        seed,
        labels=samples.labels() if sampling == "balanced" else None,
        cached=cache != "none",
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )
    samples.reserve(plan.shards_in_turns)
    stream = _open_stream(samples, view, plan, cache, Decoder.on(device, num_threads), skip=on_error == "skip")
    identity = {"data": manifest_digest(data), "split": split, "mode": mode, "seed": seed}
    # In these orders, a global batch is the same for any number of ranks.
    fixed_world_size = None if plan.order in ("shards", "balanced") else world_size
    identity |= {"global_batch_size": batch_size * world_size, "world_size": fixed_world_size, "order": plan.order}
    identity |= {"crop": view.crop, "crops": crops, "units": units, "mean": mean}
    return Loader(samples, stream, len(plan.rank_slice), identity, augmentation)


def _check_choices(mode: Mode, on_error: OnError, cache: CacheKind, sampling: Sampling) -> None:
    for name, value, valid in (
        ("mode", mode, Mode),
        ("on_error", on_error, OnError),
        ("cache", cache, CacheKind),
        ("sampling", sampling, Sampling),
    ):
        check_choice(name, value, get_args(valid))


def _open_stream(
    samples: Samples, view: ViewSpec, plan: RankPlan, kind: CacheKind, decoder: Decoder, *, skip: bool
) -> BatchStream:
    if kind == "none":
        source = ReadAhead(samples, plan, read_across_epochs=lambda: plan.read_across_epochs, skip=skip)
        return DaliStream(source, plan.graph, decoder)
    cache_device = decoder.device if kind == "device" else torch.device("cpu")
    cache = Cache(plan.cached_samples, len(samples), plan.pixel_format, cache_device)
    return CachedBatchStream(cache, samples, plan, view, decoder, skip=skip)
