"""Training on several domains that generalises to another."""

from .base import ByDomain
from .bss import BSS, exchange_amplitudes, view_contrast
from .bss_prototypes import MSN, PrototypeBSS, SwAV, masked_match, sinkhorn_codes, swapped_prediction
from .ccfp import CCFP
from .dann import CDANN, DANN
from .domain_specific_masks import DMG, soft_overlap
from .domaindrop import DomainDrop
from .drm import DRM
from .fish import IDGM, Fish, gradient_products
from .group_dro import GroupDRO
from .inq import INQ, powers_of_two
from .inter_domain_mixup import InterDomainMixup, NextDomain
from .irm import IRM, irm_penalty
from .match import CORAL, MMD, coral_distance, mmd_distance
from .mode import MODEA, MODEF, explore, mix_of_amplitudes, mix_styles
from .online_drm import OnlineDRM
from .qt_dog import MeanOutput, QTDoG, lsq, lsq_levels
from .ridg import RIDG, rationale_distances
from .sam import SAM
from .smos import SMOS, variance_bound
from .swad import SWAD, LossValley
from .tss import TSS
from .udim import UDIM, inconsistency
from .vrex import VREx
from .xded import XDED, ensemble_distillation

__all__ = [
    "BSS",
    "CCFP",
    "CDANN",
    "CORAL",
    "DANN",
    "DMG",
    "DRM",
    "IDGM",
    "IRM",
    "MMD",
    "MODEA",
    "MODEF",
    "RIDG",
    "SAM",
    "SWAD",
    "TSS",
    "XDED",
    "ByDomain",
    "DomainDrop",
    "Fish",
    "GroupDRO",
    "InterDomainMixup",
    "LossValley",
    "MeanOutput",
    "NextDomain",
    "OnlineDRM",
    "QTDoG",
    "VREx",
    "coral_distance",
    "ensemble_distillation",
    "exchange_amplitudes",
    "explore",
    "gradient_products",
    "irm_penalty",
    "lsq",
    "lsq_levels",
    "mix_of_amplitudes",
    "mix_styles",
    "mmd_distance",
    "rationale_distances",
    "soft_overlap",
    "view_contrast",
    "SMOS",
    "variance_bound",
    "UDIM",
    "inconsistency",
    "INQ",
    "powers_of_two",
    "MSN",
    "PrototypeBSS",
    "SwAV",
    "masked_match",
    "sinkhorn_codes",
    "swapped_prediction",
]
