"""Mix corpora: find domains, rate documents, solve for domain weights, and draw by them."""

from .mixture import Mixture, Phase

__all__ = ["Mixture", "Phase"]
