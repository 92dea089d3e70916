"""What a mixed batch is trained for."""

from .decoupled_mixup import Decoupled, DecoupledBCE, DecoupledMixup, decoupled_loss, two_hot_target
from .erm import ERM
from .regmixup import RegMixup, regmixup

__all__ = [
    "ERM",
    "Decoupled",
    "DecoupledBCE",
    "DecoupledMixup",
    "RegMixup",
    "decoupled_loss",
    "regmixup",
    "two_hot_target",
]
