"""Use a mixture: draw training rows by its weights, and choose documents under quotas."""

from .permute import permuted
from .sampler import DomainSampler
from .select import Selected, implicit_mixture, select_documents

__all__ = ["DomainSampler", "Selected", "implicit_mixture", "permuted", "select_documents"]
