"""What share of the label each sample gets."""

from .ratio import LabelRatio

__all__ = ["LabelRatio"]
