"""Where the runs of a comparison are computed. A unit is one run, or several that train together; what a run gives is
the same on every engine.
"""

from __future__ import annotations

from .base import shared_fractions
from .local import run

__all__ = ["run", "shared_fractions"]
