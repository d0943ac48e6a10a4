"""The typed configuration of a training, as requested: a recipe is a value of `Config`.

Construction checks whatever needs no data. `training.launch.resources` adds what depends on the cluster.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from errors import InputError, check_choice, check_count, check_finite, check_fraction
from pipeline.augment import Augmentation
from pipeline.cache.memory import CacheKind
from pipeline.crops import default_crop
from pipeline.reading.staging import Staging
from pipeline.sampler import Sampling
from pipeline.views import Mean, Units, check_units
from training.loop.compile import Compile
from training.loop.precision import Precision
from training.models import NetworkArchitecture, architecture
from training.models.architecture import Lrn, Order, Pooling
from training.models.layers import Activation, DropoutForm, Init

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TAG_KEY = re.compile(r"[\w.\- :/]+")
_RESERVED_TAGS = ("mlflow.", "twotower.", "checkpoint.")


@dataclass(frozen=True)
class Parallel:
    """Shape of the `data` x `model` mesh of workers."""

    data: int | str | None = None
    """Replicas of the network, each with its share of every batch. Default: all GPUs (or 2 CPU workers) / `model`.
    `MIN..MAX`: elastic, as many in this range as there is room for; when a node joins or is lost, the training
    continues from its newest checkpoint with another number, and with the same batches."""
    model: int = 1
    """Devices that share one network: 2 for a tower on each; any number for `alexnet-owt`, whose devices split the
    fully connected layers and compute all convolutions for their own images."""
    cpus_per_worker: int | None = None
    """CPU cores per worker, for decoding and, on CPUs, for training. Default: an equal share of the cluster's."""

    def __post_init__(self) -> None:
        for name in ("model", "cpus_per_worker"):
            if (value := getattr(self, name)) is not None:
                check_count(f"parallel.{name}", value, 1)
        if isinstance(self.data, str):
            ends = _RANGE.fullmatch(self.data)
            if not ends or not 0 < int(ends[1]) <= int(ends[2]):
                raise InputError(f"parallel.data is {self.data!r}; use a whole number from 1, or MIN..MAX such as 1..4")
        elif self.data is not None:
            check_count("parallel.data", self.data, 1)

    @property
    def data_range(self) -> tuple[int, int] | None:
        """The fewest and the most replicas; None: the default."""
        if isinstance(self.data, str):
            least, most = self.data.split("..")
            return int(least), int(most)
        return None if self.data is None else (self.data, self.data)

    @property
    def is_elastic(self) -> bool:
        """True if the number of replicas may change in the course of a training."""
        return isinstance(self.data, str)


@dataclass(frozen=True)
class Network:
    """A network by name, and what to change of its architecture, which checks it; None: nothing."""

    name: str = "alexnet"
    """A key of `training.models.NETWORKS`."""
    first_kernel: int | None = None
    """Side of conv1's kernels in pixels."""
    first_stride: int | None = None
    """Stride of conv1 in pixels."""
    lrn: Lrn | None = None
    """Response normalisation in stages 1 and 2: none, the paper's alpha, or that of the released code."""
    dropout: float | None = None
    """Probability of zeroing a unit of fc6 and fc7 in training."""
    init: Init | None = None
    """Initial weights. `paper`: N(0, 0.01), some biases 1; `code-2012`: 0.03 in conv3 to conv5; `he`:
    N(0, 2 / fan-in); `he-zero`: that, and 0 in the last layer; `truncated`: N(0, 0.1) cut at two deviations; `torch`:
    torch's own."""
    lrn_alpha: float | None = None
    """LRN: coefficient of the plain sum of squares; overrides that of `lrn`."""
    lrn_k: float | None = None
    """LRN: offset of the denominator."""
    lrn_size: int | None = None
    """LRN: channels in the window, odd."""
    lrn_beta: float | None = None
    """LRN: exponent of the denominator."""
    order1: Order | None = None
    """Operations after conv1: act-lrn-pool in the paper, lrn-pool-act in run 145 of the released code."""
    order2: Order | None = None
    """Operations after conv2."""
    spatial_norm: bool | None = None
    """Normalisation over 5x5 pixels of the same map after conv2's LRN, as in run 145."""
    pooling: Pooling | None = None
    """3x3 every 2 pixels, or 2x2 with less padding in conv2 and conv5, as run 147."""
    activation: Activation | None = None
    """Activation after every layer but the last; `leaky` has slope 0.1, `prelu` learns one per channel."""
    dropout_form: DropoutForm | None = None
    """Where dropout scales: in training (`inverted`) or in evaluation (`2012`)."""


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum, and its learning rate schedule."""

    learning_rate: float = 0.01
    """Highest learning rate, for the mean gradient over the global batch."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Coefficient of the weights in the gradient; of the biases too, unless `bias_decay` is off."""
    schedule: Literal["constant", "linear", "cosine", "plateau", "piecewise", "geometric"] = "plateau"
    """Learning rate over time. `linear`, `cosine`: to 0 at the last step; `plateau`: divided by 10 when the validation
    error stops improving, 3 times; `piecewise`: set by `milestones`; `geometric`: plateaus of equal length whose rates
    fall by a constant factor."""
    warmup_epochs: float = 0.0
    """Epochs over which `constant`, `linear` and `cosine` rise from 0."""
    patience: int = 3
    """For `plateau`: epochs without improvement before the learning rate is divided by 10. An improvement is a ten
    thousandth or more."""
    momentum_form: Literal["torch", "2012"] = "torch"
    """Where the learning rate is applied: at the update (`torch`) or inside the momentum buffer (`2012`)."""
    bias_lr_scale: float = 1.0
    """Learning rate of the biases as a multiple of that of the weights."""
    bias_decay: bool = True
    """Weight decay of the biases; the slopes of `prelu` count as weights."""
    layer_lr_scale: dict[str, float] = field(default_factory=dict)
    """Learning rate by layer name, as a multiple of that of the other layers."""
    layer_weight_decay: dict[str, float] = field(default_factory=dict)
    """Weight decay by layer name."""
    freeze: dict[str, int] = field(default_factory=dict)
    """Completed epochs by layer name after which the layer stops learning."""
    milestones: dict[int, float] = field(default_factory=dict)
    """For `piecewise`: learning rate by completed epochs, of layers whose `layer_lr_scale` is 1."""
    bias_milestones: dict[int, float] = field(default_factory=dict)
    """For `piecewise`: the same of the biases. Default: they keep their ratio to the weights."""
    layer_milestones: dict[str, dict[int, float]] = field(default_factory=dict)
    """For `piecewise`: absolute learning rate of a layer's weights by layer name and completed epochs; it replaces
    `milestones` from the first of these epochs on."""
    lr_ratio: float = 250.0
    """For `geometric`: first learning rate divided by the last."""
    plateaus: int = 4
    """For `geometric`: number of learning rates."""
    bias_lr_ratio: float = 10.0
    """For `geometric`: `lr_ratio` of the biases."""
    bias_plateaus: int = 2
    """For `geometric`: `plateaus` of the biases."""
    ema_decay: float = 0.0
    """EMA decay per step; if above 0, the EMA weights are validated and saved."""

    def __post_init__(self) -> None:
        for name in ("momentum", "ema_decay"):
            check_fraction(f"optimizer.{name}", getattr(self, name))
        for name, least in (("patience", 0), ("plateaus", 1), ("bias_plateaus", 1)):
            check_count(f"optimizer.{name}", getattr(self, name), least)
        for name in ("learning_rate", "bias_lr_scale", "lr_ratio", "bias_lr_ratio"):
            check_finite(f"optimizer.{name}", getattr(self, name), above_zero=True)
        for name in ("weight_decay", "warmup_epochs"):
            check_finite(f"optimizer.{name}", getattr(self, name))
        self._check_tables()
        self._check_schedule()

    def _check_tables(self) -> None:
        for name in ("layer_lr_scale", "milestones", "bias_milestones", "layer_milestones"):
            for *keys, rate in table_rows(getattr(self, name)):
                check_finite(f"optimizer.{name} {' '.join(map(str, keys))}", rate, above_zero=True)
                if name != "layer_lr_scale":
                    check_count(f"the epoch of optimizer.{name}", keys[-1], 0)
        for layer, decay in self.layer_weight_decay.items():
            check_finite(f"optimizer.layer_weight_decay {layer}", decay)
        for layer, epoch in self.freeze.items():
            check_count(f"optimizer.freeze {layer}", epoch, 0)

    def _check_schedule(self) -> None:
        if self.schedule == "piecewise" and not self.milestones:
            raise InputError("optimizer.schedule is 'piecewise': optimizer.milestones is empty; use at least one")
        for name, schedules in _READ_BY.items():
            value, default = getattr(self, name), getattr(type(self), name, {})  # a table has no class attribute
            if value != default and self.schedule not in schedules:
                raise InputError(
                    f"optimizer.{name} is {value}, which optimizer.schedule {self.schedule!r} would not read; "
                    f"leave it {'empty' if default == {} else f'at {default}'}, or choose {' or '.join(schedules)}"
                )


_READ_BY = {
    "warmup_epochs": ("constant", "linear", "cosine"),
    "patience": ("plateau",),
    **dict.fromkeys(("milestones", "bias_milestones", "layer_milestones"), ("piecewise",)),
    **dict.fromkeys(("lr_ratio", "plateaus", "bias_lr_ratio", "bias_plateaus"), ("geometric",)),
}
"""The schedules that read a field of `Optimizer`; all read the others."""


@dataclass(frozen=True)
class Checkpointing:
    """The checkpoints within an epoch; there is one after each epoch in any case."""

    every_steps: int | None = None
    """Optimizer steps between two checkpoints."""
    every_minutes: float | None = None
    """Minutes between two checkpoints, to the next point of the training curves."""
    grace_seconds: float = 30.0
    """Time to save and stop after Ctrl-C or SIGTERM; then, and at a second signal, the workers are killed."""

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            check_count("checkpoint.every_steps", self.every_steps, 1)
        if self.every_minutes is not None:
            check_finite("checkpoint.every_minutes", self.every_minutes, above_zero=True)
        check_finite("checkpoint.grace_seconds", self.grace_seconds)


@dataclass(frozen=True)
class Config:
    """A complete training, from a folder of shards to the last checkpoint."""

    recipe: str
    """Name of the recipe that the configuration started from."""
    short_side: int
    """Short side of the shards in pixels; others are refused."""
    epochs: int
    """Passes over the train split."""
    data: str = "./shards"
    """Folder of shards, or the URI of one in an object store: `s3://bucket/shards`, `gs://...`, `abfs://...`."""
    staging: str | None = None
    """Folder on the disk of each node that shards of an object store are copied to. Default: `twotower/shards` in the
    user's cache folder."""
    staging_bytes: int | None = None
    """Bytes of all shards there; those used longest ago make room. Default: the disk but for a gibibyte."""
    init: str | None = None
    """Weights to start from, instead of random ones: RUN_ID, RUN_ID:best, a checkpoint folder, or a file of weights."""
    crop: int | None = None
    """Side of the network's square input in pixels. Default: 7/8 of the short side."""
    batch_size: int = 128
    """Images per step over all workers."""
    micro_batches: int = 1
    """Parts in which a worker computes its share of a batch: less memory, the same step."""
    seed: int = 0
    """Seed of the initial weights, the sample order, the augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: GPUs if the cluster has any."""
    precision: Precision = "auto"
    """Of forward and backward. `auto`: bfloat16 where the hardware multiplies it (GPUs from Ampere on, CPUs with AMX or
    AVX512-BF16), float32 elsewhere. GPUs without bfloat16 take float16 for it, whose loss is scaled."""
    compile: Compile = "off"
    """`torch.compile` of forward and backward: `auto` only on GPUs; `graphs` as CUDA graphs on a single GPU. The start
    takes some tens of seconds longer, and the dropout masks differ from those of `off`."""
    parallel: Parallel = field(default_factory=Parallel)
    network: Network = field(default_factory=Network)
    optimizer: Optimizer = field(default_factory=Optimizer)
    label_smoothing: float = 0.0
    """Part of the training target spread evenly over all classes; the validation loss has none."""
    sampling: Sampling = "uniform"
    """Samples of an epoch: each once (`uniform`), or as many of each class (`balanced`), where those of rare classes
    come several times and those of frequent classes in some epochs only."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of a class in the training loss: 1, or inverse to its number of train samples (`balanced`), 1 on average
    over all samples. The validation loss has no weights."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    units: Units = "grey"
    """Units of the input: `grey`, 0-255 minus the mean as in 2012; `unit`, that divided by 255; `unit-std`, that
    divided by the standard deviation; `torchvision`, with the mean and deviation of its published weights."""
    mean: Mean = "channel"
    """Mean to subtract: one number per `channel`, or the central crop of the mean `image`, the same for every crop, as
    the released code does. (The paper's "per pixel" may also mean the crop's own window.)"""
    cache: CacheKind = "none"
    """Memory that keeps decoded images, so that each is decoded once: of the `host` or of the `device`. Training then
    sees them as YCbCr 4:2:0, within 4 grey levels of the decoded ones, in a true permutation; validation sees the same
    pixels as with `none`."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """At a sample that cannot be read or decoded: end the training, or leave it out of its batch, which then counts as
    if the gradient of that sample were 0."""
    storage: str = "./runs"
    """Folder of the checkpoints; on a cluster, a folder or URI (`s3://bucket/runs`) that all nodes reach."""
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    keep_checkpoints: int = 2
    """Number of newest checkpoints kept in `storage`, as well as the best one."""
    max_failures: int = 3
    """Restarts from the last checkpoint after a worker died."""
    experiment: str = "twotower"
    """MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run. Default: the recipe, the data set, and the fields that differ from the recipe's."""
    tag: tuple[str, ...] = ()
    """Tag of the MLflow run, as KEY=VALUE; may be given several times."""
    register: str | None = None
    """Name in MLflow's model registry that the trained network becomes the next version of. Default: none."""
    log_every: int = 10
    """Steps between two points of the training curves; an epoch that is shorter has one at its end."""

    def __post_init__(self) -> None:
        for name in ("short_side", "crop", "epochs", "batch_size", "micro_batches", "keep_checkpoints", "log_every"):
            if name != "crop" or self.crop is not None:
                check_count(name, getattr(self, name), 1)
        check_count("max_failures", self.max_failures, 0)
        check_count("seed", self.seed, 0)
        check_fraction("label_smoothing", self.label_smoothing)
        check_units(self.units, self.mean)
        self.local_staging()
        self._check_balance()
        if self.run_name is not None and not self.run_name.strip():
            raise InputError("run_name is empty; use at least one letter, or leave it out")
        self._check_tags()
        self.architecture()
        self._check_graphs()
        if self.parallel.is_elastic and self.cache != "none":
            raise InputError(
                f"cache is {self.cache!r}: batches from a cache depend on the number of replicas, which "
                f"parallel.data {self.parallel.data} lets change; use cache none, or one number"
            )
        if self.image_size > self.short_side:
            raise InputError(f"crop is {self.crop}: it is above short_side; use at most {self.short_side}")

    def _check_balance(self) -> None:
        check_choice("sampling", self.sampling, get_args(Sampling))
        check_choice("class_weights", self.class_weights, ("none", "balanced"))
        if self.sampling == self.class_weights == "balanced":
            raise InputError(
                "class_weights is 'balanced': sampling is too, so rare classes would count twice; use one of the two"
            )

    def _check_tags(self) -> None:
        for tag in self.tag:
            key = tag.partition("=")[0]
            if "=" not in tag or not _TAG_KEY.fullmatch(key):
                raise InputError(f"tag is {tag!r}; use KEY=VALUE, with a key of letters, digits and _-. :/")
            if key.startswith(_RESERVED_TAGS):
                raise InputError(f"tag is {tag!r}: {key.partition('.')[0]} keeps its own tags there; use another key")

    def _check_graphs(self) -> None:
        # A graph writes its gradients into its own memory, over those of the part before.
        # Buckets of gradients that processes share are untried.
        workers = (self.parallel.data_range or (1, 1))[1] * self.parallel.model
        for name, value in (("micro_batches", self.micro_batches), ("parallel.data x parallel.model", workers)):
            if self.compile == "graphs" and value > 1:
                raise InputError(f"compile is 'graphs': it needs {name} 1, not {value}; use on")

    @property
    def image_size(self) -> int:
        """Side of the network's square input in pixels."""
        return self.crop or default_crop(self.short_side)

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the MLflow run by key."""
        return {key: value for key, _, value in (tag.partition("=") for tag in self.tag)}

    def local_staging(self) -> Staging:
        """Return where shards of an object store are copied to."""
        return Staging(self.staging, self.staging_bytes)

    def architecture(self) -> NetworkArchitecture:
        """Return the architecture of the network for images of `image_size`."""
        return architecture(**dataclasses.asdict(self.network), image_size=self.image_size)


CHANGEABLE = {
    *(
        "data",
        "staging",
        "staging_bytes",
        "storage",
        "device",
        "max_failures",
        "keep_checkpoints",
        "log_every",
        "on_bad_sample",
        "register",
    ),
    *("parallel.data", "parallel.model", "parallel.cpus_per_worker"),
    *("checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.grace_seconds"),
}
"""Fields that do not change what is computed, but for rounding: a run may be resumed with others."""


def flatten(config: Config) -> dict[str, Any]:
    """Return the configuration as one level of dotted names, as MLflow parameters are; without name and tags."""
    fields = dataclasses.asdict(config)
    for label in ("run_name", "tag"):
        del fields[label]
    return {".".join(map(str, names)): value for *names, value in table_rows(fields)}


def table_rows(table: Any) -> list[list[Any]]:
    """Return the rows of nested dicts: `{"conv1": {3: 0.1}}` is `[["conv1", 3, 0.1]]`."""
    if not isinstance(table, dict):
        return [[table]]
    return [[key, *rest] for key, value in table.items() for rest in table_rows(value)]
