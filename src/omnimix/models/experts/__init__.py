"""Experts: models whose feed-forward networks are several, chosen by domain, by token or by sequence."""

from .base import FeedForward, Route, Routing, Slot, feed_forwards, replace, slots, thaw, train_only

__all__ = [
    "FeedForward",
    "Route",
    "Routing",
    "Slot",
    "feed_forwards",
    "replace",
    "slots",
    "thaw",
    "train_only",
]
