"""Solvers of the discrete problems behind saliency-guided mixing; they work on whole batches, on any device."""

from .min_cut import convex_labels, min_cut
from .sinkhorn import sinkhorn
from .transport import block_transport, distances

__all__ = ["block_transport", "convex_labels", "distances", "min_cut", "sinkhorn"]
