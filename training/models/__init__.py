"""The networks. `build` is the only way in; nothing here knows of Ray, MLflow or processes."""

from training.models.alexnet import AlexNet
from training.models.architecture import Architecture
from training.models.conversion import to_fully_connected, to_fully_convolutional
from training.models.lenet import LeNet5
from training.models.links import Links
from training.models.networks import NETWORKS, architecture, build

__all__ = [
    "NETWORKS",
    "AlexNet",
    "Architecture",
    "LeNet5",
    "Links",
    "architecture",
    "build",
    "to_fully_connected",
    "to_fully_convolutional",
]
