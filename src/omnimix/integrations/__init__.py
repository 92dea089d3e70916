"""omnimix inside other people's training code."""

from .collate import Collate, collate

__all__ = ["Collate", "collate"]
