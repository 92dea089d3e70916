"""Who is mixed with whom."""

from .controls import PairsWithoutMixing, Resampled, ResamplingOnly, controls
from .effective import Effective, effective_distribution, entropy, report
from .selective_mixup import Criterion, Either, Lisa, SelectiveMixup
