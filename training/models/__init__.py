"""The networks. `build` is the only way in; nothing here knows of Ray, MLflow or processes."""

from training.models.alexnet import NETWORKS, AlexNet, Architecture, architecture, build, check_division
from training.models.links import Links

__all__ = ["NETWORKS", "AlexNet", "Architecture", "Links", "architecture", "build", "check_division"]
