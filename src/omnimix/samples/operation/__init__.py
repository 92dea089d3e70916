"""How two samples become one."""

from .adautomix import AdaptiveBlock, AdAutoMix
from .alignmixup import Aligned, AlignMixup, assignment
from .attentivemix import AttentiveCells, AttentiveMix, attentivemix
from .augmix import AugMix, augmix, jensen_shannon
from .automix import AutoMix, MixBlock
from .co_mixup import CoMixup, GroupDirichlet, Groups, JointBlocks, co_mixup
from .cutmix import CutBox, CutMix, cutmix
from .fmix import FMix, FourierMask, fmix
from .gridmix import GridHoles, GridMix, gridmix
from .gridmix_local import GridCells, GridMixLocal
from .guidedmixup import GuidedBlend, GuidedMixup, greedy_cycle, guidedmixup
from .manifold_mixup import ManifoldMixup, manifold_mixup
from .mixpro import MaskCells, MixPro, ProgressiveAttention, mixpro
from .mixstyle import MixStyle, OtherDomain, Statistics
from .mixup import Mixup, mixup
from .mixup_or_cutmix import MixupOrCutMix
from .mosaic import Mosaic, Tiles, mosaic
from .noisymix import NoisyInterpolate, NoisyMix
from .patchup import Patches, PatchUp
from .puzzle_mix import Puzzle, PuzzleMix, puzzle_mix
from .recursivemix import RecursiveMix
from .resizemix import PasteResized, ResizeMix, resizemix
from .saliencymix import SaliencyMix, SalientBox, saliencymix
from .samix import ContentBlock, SAMix
from .smmix import MaxMinRegions, SMMix, smmix
from .smoothmix import GaussianSpot, SmoothMix, smoothmix
from .snapmix import SemanticBox, SnapMix, snapmix
from .stylecutmix import StyleBox, StyleCutMix, style_distances
from .stylemix import ContentStyle, StyleMix
from .sumix import SUMix
from .tokenmix import TokenBlocks, TokenMix, tokenmix
from .transmix import TransMix, transmix

__all__ = [
    "AdAutoMix",
    "AdaptiveBlock",
    "AlignMixup",
    "Aligned",
    "AttentiveCells",
    "AttentiveMix",
    "AugMix",
    "AutoMix",
    "CoMixup",
    "ContentBlock",
    "ContentStyle",
    "CutBox",
    "CutMix",
    "FMix",
    "FourierMask",
    "GaussianSpot",
    "GridCells",
    "GridHoles",
    "GridMix",
    "GridMixLocal",
    "GroupDirichlet",
    "Groups",
    "GuidedBlend",
    "GuidedMixup",
    "JointBlocks",
    "ManifoldMixup",
    "MaskCells",
    "MaxMinRegions",
    "MixBlock",
    "MixPro",
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
    "ProgressiveAttention",
    "Puzzle",
    "PuzzleMix",
    "RecursiveMix",
    "ResizeMix",
    "SAMix",
    "SMMix",
    "SUMix",
    "SaliencyMix",
    "SalientBox",
    "SemanticBox",
    "SmoothMix",
    "SnapMix",
    "Statistics",
    "StyleBox",
    "StyleCutMix",
    "StyleMix",
    "Tiles",
    "TokenBlocks",
    "TokenMix",
    "TransMix",
    "assignment",
    "attentivemix",
    "augmix",
    "co_mixup",
    "cutmix",
    "fmix",
    "greedy_cycle",
    "gridmix",
    "guidedmixup",
    "jensen_shannon",
    "manifold_mixup",
    "mixpro",
    "mixup",
    "mosaic",
    "puzzle_mix",
    "resizemix",
    "saliencymix",
    "smmix",
    "smoothmix",
    "snapmix",
    "style_distances",
    "tokenmix",
    "transmix",
]
