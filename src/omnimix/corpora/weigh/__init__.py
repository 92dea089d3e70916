"""Solve for domain weights: from runs (regressors, laws), from sizes alone, or while a model trains."""

from .autoscale import autoscale
from .base import Mean, Regressor
from .bimix import BiMix, conditional_entropy, entropy_mixture, shannon_entropy
from .design import MixtureDesign
from .dmo import AtBudget, TransferLaw, optimal, optimal_range, perturbations
from .domain2vec import Alignment, align, domain2vec, domain2vec_regmix
from .domain_upsampling import branch_point, branches, domain_upsampling, grouped
from .kl_search import kl_search
from .linear import OLS, Ridge
from .mixing_laws import MixingLaw, nested
from .power_law import PowerLaws
from .propose import convex, simulate, slsqp
from .regmix import LightGBM
from .run_table import RunTable
from .scores import Score, domain_ranking, flops, learning_curve, score, spearman
from .study import How, Study, study
from .temperature import proportional, temperature, uniform
from .unimax import unimax

__all__ = [
    "Alignment",
    "AtBudget",
    "BiMix",
    "How",
    "LightGBM",
    "Mean",
    "MixingLaw",
    "MixtureDesign",
    "OLS",
    "PowerLaws",
    "Regressor",
    "Ridge",
    "RunTable",
    "Score",
    "Study",
    "TransferLaw",
    "align",
    "autoscale",
    "branch_point",
    "branches",
    "conditional_entropy",
    "convex",
    "domain2vec",
    "domain2vec_regmix",
    "domain_ranking",
    "domain_upsampling",
    "entropy_mixture",
    "flops",
    "grouped",
    "kl_search",
    "learning_curve",
    "nested",
    "optimal",
    "optimal_range",
    "perturbations",
    "proportional",
    "score",
    "shannon_entropy",
    "simulate",
    "slsqp",
    "spearman",
    "study",
    "temperature",
    "uniform",
    "unimax",
]
