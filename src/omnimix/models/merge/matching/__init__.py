"""Which units of two networks belong together, and which axes move with them."""

from .activation_matching import activation_matching
from .permutation import Axis, Group, PermutationSpec, transformer
from .trace import permutation_spec
from .weight_matching import weight_matching

__all__ = [
    "Axis",
    "Group",
    "PermutationSpec",
    "activation_matching",
    "permutation_spec",
    "transformer",
    "weight_matching",
]
