"""Who is mixed with whom."""

from .c_mixup import CMixup, c_mixup
from .controls import PairsWithoutMixing, Resampled, ResamplingOnly, controls
from .derangement import Derangement
from .effective import Effective, effective_distribution, entropy, report
from .label_kernel import BatchLabelKernel, LabelKernel, label_kernel_probabilities
from .neighbours import Neighbours
from .regmix_regression import RegMix
from .selective_mixup import Criterion, Either, Lisa, SelectiveMixup

__all__ = [
    "BatchLabelKernel",
    "CMixup",
    "Criterion",
    "Derangement",
    "Effective",
    "Either",
    "LabelKernel",
    "Lisa",
    "Neighbours",
    "PairsWithoutMixing",
    "RegMix",
    "Resampled",
    "ResamplingOnly",
    "SelectiveMixup",
    "c_mixup",
    "controls",
    "effective_distribution",
    "entropy",
    "label_kernel_probabilities",
    "report",
]
