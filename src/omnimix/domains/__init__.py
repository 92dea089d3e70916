"""Bridge domains: training that generalises to domains nobody has seen."""

from . import generalize

__all__ = ["generalize"]
