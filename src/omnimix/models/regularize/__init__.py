"""Regularise in weight space: pull weights to where they started, average them, place norms by depth."""

from .averaging import ema
from .depth import angular_distances, block_influence, deletion_costs, gradient_norms
from .mix_ln import MixLanguageModel, NormBlock, placements
from .mixout import Mixout, mixout, mixout_mask, mixout_penalty
from .start_decay import StartDecay

__all__ = [
    "MixLanguageModel",
    "Mixout",
    "NormBlock",
    "StartDecay",
    "angular_distances",
    "block_influence",
    "deletion_costs",
    "ema",
    "gradient_norms",
    "mixout",
    "mixout_mask",
    "mixout_penalty",
    "placements",
]
