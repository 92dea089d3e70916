"""How two samples become one."""

from .attentivemix import AttentiveCells, AttentiveMix, attentivemix
from .co_mixup import CoMixup, GroupDirichlet, Groups, JointBlocks, co_mixup
from .cutmix import CutBox, CutMix, cutmix
from .fmix import FMix, FourierMask, fmix
from .gridmix import GridHoles, GridMix, gridmix
from .gridmix_local import GridCells, GridMixLocal
from .manifold_mixup import ManifoldMixup, manifold_mixup
from .mixup import Mixup, mixup
from .mixup_or_cutmix import MixupOrCutMix
from .mosaic import FourTiles, Mosaic, mosaic
from .puzzle_mix import Puzzle, PuzzleMix, puzzle_mix
from .resizemix import PasteResized, ResizeMix, resizemix
from .saliencymix import SaliencyMix, SalientBox, saliencymix
from .smoothmix import GaussianSpot, SmoothMix, smoothmix
from .snapmix import SemanticBox, SnapMix, snapmix

__all__ = [
    "AttentiveCells",
    "AttentiveMix",
    "CoMixup",
    "CutBox",
    "CutMix",
    "FMix",
    "FourTiles",
    "FourierMask",
    "GaussianSpot",
    "GridCells",
    "GridHoles",
    "GridMix",
    "GridMixLocal",
    "GroupDirichlet",
    "Groups",
    "JointBlocks",
    "ManifoldMixup",
    "Mixup",
    "MixupOrCutMix",
    "Mosaic",
    "PasteResized",
    "Puzzle",
    "PuzzleMix",
    "ResizeMix",
    "SaliencyMix",
    "SalientBox",
    "SemanticBox",
    "SmoothMix",
    "SnapMix",
    "attentivemix",
    "co_mixup",
    "cutmix",
    "fmix",
    "gridmix",
    "manifold_mixup",
    "mixup",
    "mosaic",
    "puzzle_mix",
    "resizemix",
    "saliencymix",
    "smoothmix",
    "snapmix",
]
