"""Merge models that share an architecture: each operator a function on tensors and a class for whole state dicts."""

from .base import Merger
from .dare import DareLinear, DareTies, dare
from .fisher import Fisher, fisher, fisher_information
from .linear import Linear, linear
from .model_stock import ModelStock, model_stock
from .regmean import RegMean, gram_matrices, regmean
from .slerp import Slerp, slerp
from .soup import UniformSoup, greedy_soup
from .task_arithmetic import TaskArithmetic, task_arithmetic
from .ties import Ties, ties

__all__ = [
    "DareLinear",
    "DareTies",
    "Fisher",
    "Linear",
    "Merger",
    "ModelStock",
    "RegMean",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "UniformSoup",
    "dare",
    "fisher",
    "fisher_information",
    "gram_matrices",
    "greedy_soup",
    "linear",
    "model_stock",
    "regmean",
    "slerp",
    "task_arithmetic",
    "ties",
]
