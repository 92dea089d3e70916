"""Checkpoints on disk: read block by block, compared, merged into new ones."""

from .agreement import Difference, Disagreement, differences
from .reader import Checkpoint
from .recipe import METHODS, Recipe, read_recipe
from .stream import Plan, check_values, merge_checkpoints, plan_merge

__all__ = [
    "METHODS",
    "Checkpoint",
    "Difference",
    "Disagreement",
    "Plan",
    "Recipe",
    "check_values",
    "differences",
    "merge_checkpoints",
    "plan_merge",
    "read_recipe",
]
