"""Merge models that share an architecture: each operator a function on tensors and a class for whole state dicts."""

from .base import Merger
from .dare import DareLinear, DareTies, dare
from .fisher import Fisher, fisher, fisher_information
from .linear import Linear, linear
from .lora import LowRank, concatenate, extract, merge_adapters, truncate
from .lora import adapter as low_rank_adapter
from .matching import PermutationSpec, activation_matching, permutation_spec, transformer, weight_matching
from .matching.recalibrate import recalibrate
from .model_stock import ModelStock, model_stock
from .pleas import pleas, ratios_for
from .regmean import RegMean, gram_matrices, regmean
from .repair import repair
from .select_and_merge import SelectAndMerge
from .slerp import Slerp, slerp
from .soup import UniformSoup, greedy_soup
from .task_arithmetic import TaskArithmetic, task_arithmetic
from .ties import Ties, ties
from .zipit import zipit

__all__ = [
    "DareLinear",
    "DareTies",
    "Fisher",
    "Linear",
    "LowRank",
    "Merger",
    "ModelStock",
    "PermutationSpec",
    "RegMean",
    "SelectAndMerge",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "UniformSoup",
    "activation_matching",
    "concatenate",
    "dare",
    "extract",
    "fisher",
    "fisher_information",
    "gram_matrices",
    "greedy_soup",
    "linear",
    "low_rank_adapter",
    "merge_adapters",
    "model_stock",
    "permutation_spec",
    "pleas",
    "ratios_for",
    "recalibrate",
    "regmean",
    "repair",
    "slerp",
    "task_arithmetic",
    "ties",
    "transformer",
    "truncate",
    "weight_matching",
    "zipit",
]
