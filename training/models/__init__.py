"""The networks. `build` is the only way in; nothing here knows of Ray, MLflow or processes."""

from training.models.alexnet import NETWORKS, AlexNet, Architecture, build
from training.models.links import Links

__all__ = ["NETWORKS", "AlexNet", "Architecture", "Links", "build"]
