"""What share of the label each sample gets."""

from .attention import AttentionLabels, attention_share
from .ratio import LabelRatio

__all__ = ["AttentionLabels", "LabelRatio", "attention_share"]
