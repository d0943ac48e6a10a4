"""The networks. Nothing here knows of Ray, MLflow or processes."""

from training.models.alexnet import AlexNet, to_fully_connected, to_fully_convolutional
from training.models.architecture import Architecture
from training.models.contract import Links, NetworkArchitecture
from training.models.networks import NETWORKS, architecture, build, make_network

__all__ = [
    "NETWORKS",
    "AlexNet",
    "Architecture",
    "Links",
    "NetworkArchitecture",
    "architecture",
    "build",
    "make_network",
    "to_fully_connected",
    "to_fully_convolutional",
]
