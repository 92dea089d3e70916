"""Bridge domains: training that generalises to domains nobody has seen."""

from . import generalize, measure

__all__ = ["generalize", "measure"]
