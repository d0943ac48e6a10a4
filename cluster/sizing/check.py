"""Measured training speeds against their estimates."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.sizing.constants import Constants, Row
from cluster.sizing.estimate import Job, choose_layout, estimate
from cluster.sizing.networks import NETWORKS

ACCEPTED_ERROR = 0.25
"""Part of the measured step by which an estimate may be off without a reason."""


@dataclass(frozen=True)
class Comparison:
    """A measured step and its estimate."""

    row: Row
    predicted: float
    """Seconds of a step, with the limit of decoding."""
    measured: float
    """Seconds of a step."""

    @property
    def error(self) -> float:
        """Part of the measured step by which the predicted one is longer."""
        return self.predicted / self.measured - 1

    @property
    def is_accepted(self) -> bool:
        """True up to `ACCEPTED_ERROR`."""
        return abs(self.error) <= ACCEPTED_ERROR


def compare(constants: Constants) -> list[Comparison]:
    """Return all measured rows with their estimates, in the order of `constants.json`."""
    return [_compare(row, constants) for row in constants.rows]


def _compare(row: Row, constants: Constants) -> Comparison:
    job = Job(
        network=NETWORKS[row.network],
        device=constants.devices[row.gpu],
        gpus=row.gpus,
        batch=row.batch,
        precision=row.precision,
        compiled=row.compiled,
        nodes=row.nodes,
        network_gbps=row.network_gbps,
        cores=row.cores,
        decoded_per_core=row.decoded_per_core,
    )
    found = estimate(job, choose_layout(job, row.layout), constants, fed=row.fed)
    return Comparison(row, row.batch / found.images_per_second, row.batch / row.images_per_second)


def format_comparisons(comparisons: list[Comparison]) -> str:
    """Return the table of steps, predicted and measured, and the reasons of the errors that are too large."""
    width = max(len(one.row.what) for one in comparisons)
    lines = [f"{'step of':{width}}  {'predicted':>10}  {'measured':>10}  {'error':>6}  origin"]
    for one in comparisons:
        use = ", a constant is chosen to meet it" if one.row.calibration else ""
        lines.append(
            f"{one.row.what:{width}}  {one.predicted * 1e3:7.2f} ms  {one.measured * 1e3:7.2f} ms  {one.error:+6.0%}  "
            f"{one.row.origin}{use}"
        )
    off = [one for one in comparisons if not one.is_accepted]
    if off:
        lines += ["", f"off by more than {ACCEPTED_ERROR:.0%}:"]
        lines += [f"  {one.row.what} ({one.error:+.0%}): {one.row.reason}" for one in off]
    return "\n".join(lines)
