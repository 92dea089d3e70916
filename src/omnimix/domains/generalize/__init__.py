"""Training on several domains that generalises to another."""

from .base import ByDomain
from .group_dro import GroupDRO
from .irm import IRM, irm_penalty
from .match import CORAL, MMD, coral_distance, mmd_distance
from .vrex import VREx

__all__ = [
    "CORAL",
    "IRM",
    "MMD",
    "ByDomain",
    "GroupDRO",
    "VREx",
    "coral_distance",
    "irm_penalty",
    "mmd_distance",
]
