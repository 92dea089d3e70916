"""How two samples become one."""

from .alignmixup import Aligned, AlignMixup, assignment
from .attentivemix import AttentiveCells, AttentiveMix, attentivemix
from .augmix import AugMix, augmix, jensen_shannon
from .co_mixup import CoMixup, GroupDirichlet, Groups, JointBlocks, co_mixup
from .cutmix import CutBox, CutMix, cutmix
from .fmix import FMix, FourierMask, fmix
from .gridmix import GridHoles, GridMix, gridmix
from .gridmix_local import GridCells, GridMixLocal
from .manifold_mixup import ManifoldMixup, manifold_mixup
from .mixstyle import MixStyle, OtherDomain, Statistics
from .mixup import Mixup, mixup
from .mixup_or_cutmix import MixupOrCutMix
from .mosaic import FourTiles, Mosaic, mosaic
from .noisymix import NoisyInterpolate, NoisyMix
from .patchup import Patches, PatchUp
from .puzzle_mix import Puzzle, PuzzleMix, puzzle_mix
from .recursivemix import RecursiveMix
from .resizemix import PasteResized, ResizeMix, resizemix
from .saliencymix import SaliencyMix, SalientBox, saliencymix
from .smoothmix import GaussianSpot, SmoothMix, smoothmix
from .snapmix import SemanticBox, SnapMix, snapmix
from .stylemix import ContentStyle, StyleMix, adain

__all__ = [
    "AlignMixup",
    "Aligned",
    "AttentiveCells",
    "AttentiveMix",
    "AugMix",
    "CoMixup",
    "ContentStyle",
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
    "MixStyle",
    "Mixup",
    "MixupOrCutMix",
    "Mosaic",
    "NoisyInterpolate",
    "NoisyMix",
    "OtherDomain",
    "PasteResized",
    "PatchUp",
    "Patches",
    "Puzzle",
    "PuzzleMix",
    "RecursiveMix",
    "ResizeMix",
    "SaliencyMix",
    "SalientBox",
    "SemanticBox",
    "SmoothMix",
    "SnapMix",
    "Statistics",
    "StyleMix",
    "adain",
    "assignment",
    "attentivemix",
    "augmix",
    "co_mixup",
    "cutmix",
    "fmix",
    "gridmix",
    "jensen_shannon",
    "manifold_mixup",
    "mixup",
    "mosaic",
    "puzzle_mix",
    "resizemix",
    "saliencymix",
    "smoothmix",
    "snapmix",
]
