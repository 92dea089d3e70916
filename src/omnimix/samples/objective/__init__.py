"""What a mixed batch is trained for."""

from .erm import ERM

__all__ = ["ERM"]
