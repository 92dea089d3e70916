"""How two samples become one."""

from .attentivemix import AttentiveCells, AttentiveMix, attentivemix
from .cutmix import CutBox, CutMix, cutmix
from .fmix import FMix, FourierMask, fmix
from .gridmix import GridCells, GridHoles, GridMix, gridmix
from .manifold_mixup import ManifoldMixup, manifold_mixup
from .mixup import Mixup, mixup
from .mixup_or_cutmix import MixupOrCutMix
from .mosaic import FourTiles, Mosaic, mosaic
from .resizemix import PasteResized, ResizeMix, resizemix
from .saliencymix import SaliencyMix, SalientBox, saliencymix
from .smoothmix import GaussianSpot, SmoothMix, smoothmix
from .snapmix import SemanticBox, SnapMix, snapmix

__all__ = [
    "AttentiveCells",
    "AttentiveMix",
    "CutBox",
    "CutMix",
    "FMix",
    "FourTiles",
    "FourierMask",
    "GaussianSpot",
    "GridCells",
    "GridHoles",
    "GridMix",
    "ManifoldMixup",
    "Mixup",
    "MixupOrCutMix",
    "Mosaic",
    "PasteResized",
    "ResizeMix",
    "SaliencyMix",
    "SalientBox",
    "SemanticBox",
    "SmoothMix",
    "SnapMix",
    "attentivemix",
    "cutmix",
    "fmix",
    "gridmix",
    "manifold_mixup",
    "mixup",
    "mosaic",
    "resizemix",
    "saliencymix",
    "smoothmix",
    "snapmix",
]
