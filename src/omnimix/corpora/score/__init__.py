"""Rate documents: quality from anywhere, and SampleMix's weights from quality and diversity."""

from .base import RUBRIC, QualityColumns, qualities
from .ordinal import OrdinalQuality
from .samplemix import SampleMix
from .sampling import Ratings, Sampling, diversity, drawn, expected_copies, measure, round_copies

__all__ = [
    "OrdinalQuality",
    "QualityColumns",
    "RUBRIC",
    "Ratings",
    "SampleMix",
    "Sampling",
    "diversity",
    "drawn",
    "expected_copies",
    "measure",
    "qualities",
    "round_copies",
]
