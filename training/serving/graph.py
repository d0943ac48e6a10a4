"""The graph of a trained network, free of its code."""

from __future__ import annotations

import torch
from torch import Tensor

from training.load_model import LoadedModel


def example_batch(trained: LoadedModel) -> Tensor:
    """Return images to trace a network with, float32 2,3,crop,crop: of one, the exporter would fix the batch size."""
    return torch.zeros(2, 3, trained.config.image_size, trained.config.image_size)


def export_program(trained: LoadedModel) -> torch.export.ExportedProgram:
    """Return the graph of a network on the CPU in eval mode, for batches of any size, float32 N,3,crop,crop."""
    # Of channels_last weights torch 2.15 warns that it finds "no complete tensor" when they are saved.
    network = trained.network.to(memory_format=torch.contiguous_format)
    return torch.export.export(network, (example_batch(trained),), dynamic_shapes=[{0: torch.export.Dim("batch")}])
