"""How much each sample contributes."""

from .early_stopped_mixup import EarlyStopped
from .midpoint_mixup import MidpointMixup, learned_features, midpoint_mixup

__all__ = ["EarlyStopped", "MidpointMixup", "learned_features", "midpoint_mixup"]
