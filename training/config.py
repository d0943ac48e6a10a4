"""The typed configuration of a training. A recipe is a value of `Config`; every field can be set from the command line.

What can be checked without data is checked at construction; errors name the field, its value and what would be valid.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from errors import InputError
from pipeline.augment import Augmentation, Mean, Units, check_units
from pipeline.cache.memory import CacheKind
from pipeline.crops import default_crop
from training.loop.compile import Compile
from training.loop.precision import Precision
from training.models.activation import Activation
from training.models.architecture import Order, check_lrn_size
from training.models.dropout import DropoutForm
from training.models.initial import Init


@dataclass(frozen=True)
class Parallel:
    """How the workers share the training; together they are a `data` x `model` mesh."""

    data: int | None = None
    """Replicas of the network, each with its part of every batch. Default: all GPUs (or 2 CPU workers) / `model`."""
    model: int = 1
    """Devices that share one network. 2 puts one tower on each; of `alexnet-owt` any number share the fully
    connected layers, each with the convolutions whole and images of its own."""
    cpus_per_worker: int | None = None
    """CPU cores of each worker, for decoding and on CPUs for training. Default: an equal share of the cluster's."""

    def __post_init__(self) -> None:
        _at_least("parallel.model", self.model, 1)
        _at_least("parallel.data", self.data, 1)
        _at_least("parallel.cpus_per_worker", self.cpus_per_worker, 1)


@dataclass(frozen=True)
class Network:
    """Which network, and its switches."""

    name: str = "alexnet"
    """A key of `training.models.NETWORKS`. A switch that is None is as this network has it."""
    first_kernel: int | None = None
    """Side of conv1's kernels in pixels."""
    first_stride: int | None = None
    """Stride of conv1 in pixels."""
    lrn: Literal["off", "paper", "code-2012"] | None = None
    """Response normalisation in stages 1 and 2: none, the paper's alpha, or the released code's; `spatial_norm` is
    another."""
    dropout: float | None = None
    """Probability of zeroing a unit of fc6 and fc7 in training."""
    init: Init | None = None
    """Initial weights. `paper`: N(0, 0.01), some biases 1; `code-2012`: 0.03 in conv3 to conv5 (run 145); `he`:
    N(0, 2 / fan-in); `truncated`: N(0, 0.1) cut at two deviations; `torch`: torch's own."""
    lrn_alpha: float | None = None
    """LRN: coefficient of the plain sum of squares, in place of the one that `lrn` names."""
    lrn_k: float | None = None
    """LRN: offset of the denominator."""
    lrn_size: int | None = None
    """LRN: channels in the window, odd."""
    lrn_beta: float | None = None
    """LRN: exponent of the denominator."""
    order1: Order | None = None
    """What follows conv1, in order. The paper: act-lrn-pool; run 145: lrn-pool-act."""
    order2: Order | None = None
    """What follows conv2, in order."""
    spatial_norm: bool | None = None
    """Run 145's normalisation over 5x5 pixels of the same map, after conv2's LRN."""
    pooling: Literal["overlapping", "disjoint"] | None = None
    """3x3 every 2 pixels, or 2x2 with less padding in conv2 and conv5, as run 147."""
    activation: Activation | None = None
    """After every layer but the last; `leaky` has slope 0.1, `prelu` learns one for each channel."""
    dropout_form: DropoutForm | None = None
    """`inverted`: scaled in training; `2012`: not, but in evaluation."""

    def __post_init__(self) -> None:
        _at_least("network.first_kernel", self.first_kernel, 1)
        _at_least("network.first_stride", self.first_stride, 1)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"network.dropout is {self.dropout}; valid is 0 up to but not including 1")
        for name in ("lrn_alpha", "lrn_k", "lrn_beta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"network.{name} is {value}; it must be above 0 and finite")
        if self.lrn_size is not None:
            check_lrn_size(self.lrn_size)


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum, and how its learning rate changes."""

    learning_rate: float = 0.01
    """Highest learning rate, for the mean gradient over the global batch."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Coefficient of the weights in the gradient; of the biases too, unless `bias_decay` is off."""
    schedule: Literal["constant", "linear", "cosine", "plateau", "script", "equal-plateaus"] = "plateau"
    """`linear`, `cosine`: to 0 at the last step; `plateau`: divided by 10 when the validation error stops improving,
    3 times; `script`: as `drops` say; `equal-plateaus`: geometric, in steps of equal length."""
    warmup_epochs: float = 0.0
    """Epochs over which `constant`, `linear` and `cosine` rise from 0."""
    patience: int = 3
    """`plateau` alone: so many epochs without a better validation error are borne, the next one brings the drop. Better
    is by a ten-thousandth or more."""
    form: Literal["torch", "2012"] = "torch"
    """What the velocity holds: gradients alone, so that a drop slows all motion at once, or gradients times learning
    rate, so that it goes on for some steps."""
    bias_rate: float = 1.0
    """Learning rate of the biases as a multiple of that of the weights."""
    bias_decay: bool = True
    """Whether weight decay is for the biases too; the slopes of `prelu` count as weights."""
    layer_rates: dict[str, float] = field(default_factory=dict)
    """By name of layer: its learning rate as a multiple of that of the others."""
    layer_decays: dict[str, float] = field(default_factory=dict)
    """By name of layer: its weight decay."""
    freeze: dict[str, int] = field(default_factory=dict)
    """By name of layer: epochs that are done when it stops learning."""
    drops: dict[int, float] = field(default_factory=dict)
    """`script` alone, by epochs that are done: the learning rate from then on, of layers whose `layer_rates` is 1."""
    bias_drops: dict[int, float] = field(default_factory=dict)
    """The same of the biases. Default: they keep their ratio to the weights."""
    layer_drops: dict[str, dict[int, float]] = field(default_factory=dict)
    """By name of layer: the same of its weights, in place of `drops` from the first of these epochs on, and whatever
    its `layer_rates`."""
    divisor: float = 250.0
    """`equal-plateaus` alone: first learning rate over the last."""
    plateaus: int = 4
    """`equal-plateaus` alone: number of learning rates."""
    bias_divisor: float = 10.0
    """The same of the biases."""
    bias_plateaus: int = 2
    """The same of the biases."""
    ema: float = 0.0
    """What a moving average of the weights keeps of itself at each step; with one, it is validated and given away.
    0: none."""

    def __post_init__(self) -> None:
        for name in ("momentum", "ema"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise InputError(f"optimizer.{name} is {value}; valid is 0 up to but not including 1")
        _at_least("optimizer.patience", self.patience, 0)
        _at_least("optimizer.plateaus", self.plateaus, 1)
        _at_least("optimizer.bias_plateaus", self.bias_plateaus, 1)
        self._check_rates()
        self._check_schedule()

    def _check_rates(self) -> None:
        scripted = {
            "drops": self.drops,
            "bias_drops": self.bias_drops,
            **{f"layer_drops {layer}": drops for layer, drops in self.layer_drops.items()},
        }
        for name in ("learning_rate", "bias_rate", "divisor", "bias_divisor"):
            _finite(name, getattr(self, name), above_zero=True)
        for name in ("weight_decay", "warmup_epochs"):
            _finite(name, getattr(self, name))
        for layer, rate in self.layer_rates.items():
            _finite(f"layer_rates {layer}", rate, above_zero=True)
        for layer, decay in self.layer_decays.items():
            _finite(f"layer_decays {layer}", decay)
        for name, rates in scripted.items():
            for epoch, rate in rates.items():
                _at_least(f"the epoch of optimizer.{name}", epoch, 0)
                _finite(f"{name} {epoch}", rate, above_zero=True)
        for layer, epoch in self.freeze.items():
            _at_least(f"optimizer.freeze {layer}", epoch, 0)

    def _check_schedule(self) -> None:
        if self.schedule == "script" and not self.drops:
            raise InputError("optimizer.schedule is 'script' and optimizer.drops is empty; it needs one at least")
        defaults = {each.name: _default(each) for each in dataclasses.fields(self)}
        for name, schedules in _READ_BY.items():
            value, default = getattr(self, name), defaults[name]
            if value != default and self.schedule not in schedules:
                raise InputError(
                    f"optimizer.{name} is {value}, which optimizer.schedule {self.schedule!r} would not read; "
                    f"leave it {'empty' if default == {} else f'at {default}'}, or choose {' or '.join(schedules)}"
                )


_READ_BY = {
    "warmup_epochs": ("constant", "linear", "cosine"),
    "patience": ("plateau",),
    **dict.fromkeys(("drops", "bias_drops", "layer_drops"), ("script",)),
    **dict.fromkeys(("divisor", "plateaus", "bias_divisor", "bias_plateaus"), ("equal-plateaus",)),
}
"""The schedules that read a field of `Optimizer`; all read the others."""


@dataclass(frozen=True)
class Config:
    """A whole training, from a folder of shards to the last checkpoint."""

    recipe: str
    """Name of the recipe that this is or came from."""
    short_side: int
    """Short side in pixels of the shards that the recipe is for; others are refused."""
    epochs: int
    """Passes over the train split."""
    data: str = "./shards"
    """Folder of shards."""
    crop: int | None = None
    """Side of the square that the network sees, in pixels. Default: 7/8 of the short side."""
    batch_size: int = 128
    """Images per step, over all workers together."""
    micro_batches: int = 1
    """Parts in which a worker computes its share of a batch, one after another: less memory, the same step."""
    seed: int = 0
    """Fixes the initial weights, the order of the samples, their augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: GPUs if the cluster has any."""
    precision: Precision = "auto"
    """`auto`: bfloat16 autocast where the hardware multiplies it (GPUs, CPUs with AMX), float32 elsewhere."""
    compile: Compile = "off"
    """Forward and backward by `torch.compile`: `auto`, on GPUs alone; `graphs`, on one GPU, replayed as CUDA graphs. A
    training starts some tens of seconds later, and has other dropout masks than with `off`."""
    parallel: Parallel = field(default_factory=Parallel)
    network: Network = field(default_factory=Network)
    optimizer: Optimizer = field(default_factory=Optimizer)
    label_smoothing: float = 0.0
    """Part of the training target that is spread evenly over all classes; the validation loss is without."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    units: Units = "grey"
    """What the network sees: `grey`, 0-255 minus the mean as in 2012; `unit`, that over 255; `unit-std`, that over the
    deviation; `torchvision`, the same with the mean and deviation of its published weights."""
    mean: Mean = "channel"
    """What is subtracted: `channel`, a number for each channel; `image`, the central crop of the mean image, the same
    for every window, as the code of 2012 does. (The paper's "per pixel" may also mean each window's own.)"""
    cache: CacheKind = "none"
    """Keep decoded images in memory, so that each is decoded once: `host`, the workers' machine's; `device`, their
    devices'. Training then sees them as YCbCr 4:2:0, within 4 grey levels of the decoded ones, in the order of a true
    permutation; validation sees the same pixels as without."""
    storage: str = "./runs"
    """Where Ray Train keeps the checkpoints; on a cluster, a folder or bucket that all nodes reach."""
    keep_checkpoints: int = 2
    """Checkpoints kept there: the best ones, and the last one in any case."""
    max_failures: int = 3
    """How often a training starts again from its last checkpoint after a worker died."""
    experiment: str = "twotower"
    """MLflow experiment."""
    log_every: int = 10
    """Steps between two points of the training curves."""

    def __post_init__(self) -> None:
        for name in ("short_side", "crop", "epochs", "batch_size", "micro_batches", "keep_checkpoints", "log_every"):
            _at_least(name, getattr(self, name), 1)
        _at_least("max_failures", self.max_failures, 0)
        _at_least("seed", self.seed, 0)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}; valid is 0 up to but not including 1")
        check_units(self.units, self.mean)
        self._check_graphs()
        if self.image_size > self.short_side:
            raise InputError(f"crop is {self.crop}; with a short side of {self.short_side} it can be at most that")

    def _check_graphs(self) -> None:
        # A graph writes its gradients into its own memory, over those of the part before.
        # Buckets of gradients that processes share are untried.
        workers = (self.parallel.data or 1) * self.parallel.model
        for name, value in (("micro_batches", self.micro_batches), ("parallel.data x parallel.model", workers)):
            if self.compile == "graphs" and value > 1:
                raise InputError(f"compile is 'graphs', which goes with {name} 1 alone, not {value}; valid is on")

    @property
    def image_size(self) -> int:
        """Side of the network's square input in pixels."""
        return self.crop or default_crop(self.short_side)

    def switches(self) -> dict[str, Any]:
        """Return the keyword arguments of `training.models.build` that this configuration asks for."""
        switches = dataclasses.asdict(self.network)
        del switches["name"]
        return {**switches, "image_size": self.image_size}


def flatten(config: Config) -> dict[str, Any]:
    """Return the configuration as one level of dotted names, as MLflow parameters are."""
    return _flatten("", dataclasses.asdict(config))


def _flatten(prefix: str, values: dict[Any, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flatten(f"{prefix}{name}.", value))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def config_from_dict(values: dict[str, Any]) -> Config:
    """Return the configuration that `dataclasses.asdict` turned into `values`.

    Raises:
        InputError: an unknown or missing field, or a value out of range.
    """
    return _build(Config, values)


def _build(kind: type, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"field {unknown[0]!r} of {kind.__name__} is unknown; valid are {', '.join(hints)}")
    arguments = {
        name: _build(hints[name], value) if dataclasses.is_dataclass(hints[name]) else _with_keys(hints[name], value)
        for name, value in values.items()
    }
    try:
        return kind(**arguments)
    except TypeError as error:  # a field is missing, or its value is of another type than its check compares with
        raise InputError(f"{kind.__name__} cannot be made from these fields: {error}") from error


def _with_keys(hint: Any, value: Any) -> Any:
    """Give a table back the keys that it was declared with: JSON has made them strings."""
    if typing.get_origin(hint) is not dict:
        return value
    key_type, inner = typing.get_args(hint)
    return {key_type(key): _with_keys(inner, part) for key, part in value.items()}


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()


def _finite(name: str, value: float, *, above_zero: bool = False) -> None:
    if not 0 <= value < float("inf") or (above_zero and value == 0):
        raise InputError(
            f"optimizer.{name} is {value}; it must be {'above' if above_zero else 'at least'} 0 and finite"
        )


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"{name} is {value}; it must be at least {least}")
