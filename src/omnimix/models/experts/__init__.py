"""Experts: models whose feed-forward networks are several, chosen by domain, by token or by sequence."""

from .base import FeedForward, Route, Routing, Slot, feed_forwards, replace, slots, thaw, train_only
from .btx import BTX
from .demix import DEMix, Removal
from .domain_mixture import DomainMixture, domain_posterior
from .mergeme import Body, HeterogeneousMixture, Mixture, gate, gate_weights, log_likelihoods, mixture
from .mixtral import to_mixtral
from .router import balance

__all__ = [
    "BTX",
    "Body",
    "DEMix",
    "DomainMixture",
    "FeedForward",
    "HeterogeneousMixture",
    "Mixture",
    "Removal",
    "Route",
    "Routing",
    "Slot",
    "balance",
    "domain_posterior",
    "feed_forwards",
    "gate",
    "gate_weights",
    "log_likelihoods",
    "mixture",
    "replace",
    "slots",
    "thaw",
    "to_mixtral",
    "train_only",
]
