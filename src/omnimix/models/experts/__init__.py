"""Experts: models whose feed-forward networks are several, chosen by domain, by token or by sequence."""

from .base import FeedForward, Route, Routing, Slot, feed_forwards, replace, slots, thaw, train_only
from .btx import BTX
from .demix import DEMix, Removal
from .domain_mixture import DomainMixture, domain_posterior

__all__ = [
    "BTX",
    "DEMix",
    "DomainMixture",
    "FeedForward",
    "Removal",
    "Route",
    "Routing",
    "Slot",
    "domain_posterior",
    "feed_forwards",
    "replace",
    "slots",
    "thaw",
    "train_only",
]
