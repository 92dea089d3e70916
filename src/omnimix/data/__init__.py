"""Built-in data sets and loaders for users' files."""

from .augment import crop_and_flip
from .builtin import BUILTIN
from .decode import ImageFiles
from .load import load
from .noise import flip_labels
from .scale import Scaler
from .source import DataError, Source
from .synthetic import friedman, two_moons

__all__ = [
    "BUILTIN",
    "DataError",
    "ImageFiles",
    "Scaler",
    "Source",
    "crop_and_flip",
    "flip_labels",
    "friedman",
    "load",
    "two_moons",
]
