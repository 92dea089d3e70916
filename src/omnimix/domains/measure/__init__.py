"""What a model or its features are worth across domains."""

from .flatness import r0, r1, sphere_flatness
from .gradients import domain_gradients, mean_pairwise_cosine
from .groups import group_means, worst_group
from .memorization import Memorization
from .open_set import h_score, oscr
from .separability import domain_purity, linear_domain_accuracy, proxy_a_distance
from .shift import colour_histograms, icv, idd, idd_floor, idd_interval

__all__ = [
    "Memorization",
    "colour_histograms",
    "domain_gradients",
    "domain_purity",
    "group_means",
    "h_score",
    "icv",
    "idd",
    "idd_floor",
    "idd_interval",
    "linear_domain_accuracy",
    "mean_pairwise_cosine",
    "oscr",
    "proxy_a_distance",
    "r0",
    "r1",
    "sphere_flatness",
    "worst_group",
]
