"""How two samples become one."""

from .cutmix import CutBox, CutMix, cutmix
from .fmix import FMix, FourierMask, fmix
from .manifold_mixup import ManifoldMixup, manifold_mixup
from .mixup import Mixup, mixup

__all__ = [
    "CutBox",
    "CutMix",
    "FMix",
    "FourierMask",
    "ManifoldMixup",
    "Mixup",
    "cutmix",
    "fmix",
    "manifold_mixup",
    "mixup",
]
