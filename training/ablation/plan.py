"""The plan of a study: its variants, its trainings, and what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from dataclasses import dataclass, replace

from training.ablation.toggles import Variant, make_variant
from training.config import CHANGEABLE, Config, flatten

BASE = "base"

Key = tuple[str, int]
"""Name of a variant, and seed: one child run."""


@dataclass(frozen=True)
class Study:
    """What a study compares; a study with anything else is another study."""

    name: str
    base: Config
    toggles: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def variants(self) -> list[Variant]:
        """The base, then one variant for each toggle; raises `InputError` for a toggle that its network cannot have."""
        return [Variant(BASE, BASE, self.base), *(make_variant(name, self.base) for name in self.toggles)]

    @property
    def keys(self) -> list[Key]:
        """The child runs, seeds in the outer loop, so that an unfinished study has complete pairs."""
        return [(variant.name, seed) for seed in self.seeds for variant in self.variants]

    def digest(self, manifest_sha256: str) -> str:
        """Return what identifies the study on a data set, in hex; fields that do not change results are left out."""
        fields = {name: value for name, value in flatten(self.base).items() if name not in CHANGEABLE}
        identity = [self.name, sorted(self.toggles), sorted(self.seeds), fields, manifest_sha256]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Training:
    """One training, and the child runs that its weights are evaluated for."""

    key: Key
    config: Config
    views: dict[Key, int]
    """Number of crops for each child run that is not finished."""


def plan_trainings(study: Study, finished: Container[Key]) -> list[Training]:
    """Return the trainings that child runs which are not finished need, in the order of `Study.keys`."""
    trainings = []
    for seed in study.seeds:
        views = {BASE: {(BASE, seed): 1}}
        for variant in study.variants[1:]:
            of = BASE if variant.crops > 1 else variant.name
            views.setdefault(of, {})[variant.name, seed] = variant.crops
        for variant in study.variants:
            left = {key: crops for key, crops in views.get(variant.name, {}).items() if key not in finished}
            if left:
                trainings.append(Training((variant.name, seed), replace(variant.config, seed=seed), left))
    return trainings
