"""How many images may be unreadable, and where, before the source is taken for rotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from errors import InputError
from preprocess.manifest import Rejection
from preprocess.plan import Plan
from preprocess.run.pool import REASONS_SHOWN
from preprocess.sources import Catalogue, printable


def describe(rejection: Rejection) -> str:
    """Return which image was rejected, and why."""
    return f"{rejection.source}: {rejection.reason}"


def check_rejected(plan: Plan, rejected: int, reasons: Iterable[str]) -> None:
    """Raise `InputError` when more images are rejected than the options allow.

    The number only grows while a build goes on, so whether a build fails does not depend on when this is called, as
    long as it is called at the end.

    Args:
        plan: of the build.
        rejected: how many images are rejected so far.
        reasons: which and why; the first ones are shown.
    """
    part, allowed = rejected / plan.images, plan.options.max_rejected
    if part > allowed:
        first = "; ".join(islice(reasons, REASONS_SHOWN))
        raise InputError(
            f"{rejected} of {plan.images} images are rejected, {part:.2%}, and --max-rejected {allowed:g} allows "
            f"{allowed:.2%}: mend the source, or allow more; e.g. {first}"
        )


def check_readable(catalogue: Catalogue, rejected: Sequence[Rejection]) -> None:
    """Raise `InputError` for a class of which no image of the train split could be read."""
    reasons = {entry.source: entry.reason for entry in rejected}
    train = catalogue.split("train")
    readable = Counter(image.label for image in train if printable(image.source) not in reasons)
    for label, entry in enumerate(catalogue.classes):
        if not readable[label]:
            first = next(printable(image.source) for image in train if image.label == label)
            raise InputError(f"class {entry.id!r} has no readable image, e.g. {first}: {reasons[first]}")
