"""Networks whose softmax outputs are averaged, each fed as it was trained (2012 paper, table 2: 5 CNNs)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from errors import InputError
from training.load_model import LoadedModel
from training.loop.step import average_probabilities, log_probabilities
from training.serving.image_classifier import Preprocessing


@dataclass(frozen=True)
class Ensemble:
    """One or more networks of the same classes; a single one predicts what it predicts alone.

    Raises:
        InputError: two of them have different classes, or the same weights, which would count twice.
    """

    members: tuple[LoadedModel, ...]

    def __post_init__(self) -> None:
        first: dict[str, LoadedModel] = {}
        for member in self.members:
            _check_classes(member, self.members[0])
            same = first.setdefault(member.weights_sha256, member)
            if same is not member:
                raise InputError(f"{member.name} has the weights of {same.name}; use each network once")

    @property
    def name(self) -> str:
        """Where the weights come from, for people."""
        names = [member.name for member in self.members]
        return names[0] if len(names) == 1 else f"average of {'; '.join(names)}"

    @property
    def network_names(self) -> str:
        """The names of the networks, equal ones counted: `5 x alexnet`, `alexnet + alexnet-owt`."""
        counts = Counter(member.config.network.name for member in self.members)
        return " + ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file of weights, in hex; of several, that of their sorted SHA-256s, a line each."""
        digests = sorted(member.weights_sha256 for member in self.members)
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()

    @property
    def label(self) -> str:
        """Its name in file names: that of a single network, else their number and the start of their SHA-256."""
        if len(self.members) == 1:
            return self.members[0].label
        return f"ensemble-{len(self.members)}-{self.weights_sha256[:8]}"

    @cached_property
    def views(self) -> dict[Preprocessing, LoadedModel]:
        """The different inputs that the members need, each with the first member that needs it."""
        views: dict[Preprocessing, LoadedModel] = {}
        for member, preprocessing in zip(self.members, self._preprocessings, strict=True):
            views.setdefault(preprocessing, member)
        return views

    @cached_property
    def _preprocessings(self) -> list[Preprocessing]:
        return [member.preprocessing for member in self.members]

    def log_probabilities(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return each member's float32 log-probabilities (N, classes).

        Args:
            inputs: for each of `views`, the same N images as `training.loop.step.log_probabilities` takes them.
        """
        input_of = dict(zip(self.views, inputs, strict=True))
        return [
            log_probabilities(member.network, input_of[preprocessing], member.autocast)
            for member, preprocessing in zip(self.members, self._preprocessings, strict=True)
        ]


def _check_classes(member: LoadedModel, first: LoadedModel) -> None:
    ours, theirs = ([entry.id for entry in one.data.classes] for one in (member, first))
    if ours != theirs:
        raise InputError(
            f"{member.name} has other classes ({len(ours)}) than {first.name} ({len(theirs)}); "
            "use networks of the same classes"
        )


def average(member_logs: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean of the members' probabilities (N, classes); a single member's as they are."""
    return member_logs[0] if len(member_logs) == 1 else average_probabilities(torch.stack(tuple(member_logs)), dim=0)
