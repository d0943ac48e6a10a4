"""A check that torch can use the GPUs that Ray counts, before a training starts."""

from __future__ import annotations

import os

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from errors import InputError

ANSWER_SECONDS = 120.0


def check_gpus() -> None:
    """Raise `InputError` if there is a node with GPUs on which torch cannot use them, such as by an old driver."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    answers = [
        # It takes no GPU, since they may all be in use.
        _cuda_problem.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        try:
            problem = ray.get(answer, timeout=ANSWER_SECONDS)
        except GetTimeoutError:
            problem = f"no answer within {ANSWER_SECONDS:.0f} s"
        if problem is not None:
            raise InputError(
                f"device is cuda: torch cannot use the GPUs of {node['NodeManagerHostname']}: {problem}; "
                "use --device cpu, or a driver and a torch that fit each other"
            )


@ray.remote(num_cpus=0)
def _cuda_problem() -> str | None:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from tasks that take none
    import torch

    try:
        torch.cuda.init()
    except Exception as error:  # each version of torch has another one
        return str(error).partition("\n")[0].rstrip(".")
    return None
