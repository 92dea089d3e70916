"""Training on several domains that generalises to another."""

from .base import ByDomain
from .fish import IDGM, Fish, gradient_products
from .group_dro import GroupDRO
from .irm import IRM, irm_penalty
from .match import CORAL, MMD, coral_distance, mmd_distance
from .vrex import VREx

__all__ = [
    "CORAL",
    "IDGM",
    "IRM",
    "MMD",
    "ByDomain",
    "Fish",
    "GroupDRO",
    "VREx",
    "coral_distance",
    "gradient_products",
    "irm_penalty",
    "mmd_distance",
]
