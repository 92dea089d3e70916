"""Training and scoring: `fit` a model with a method under a budget, `evaluate` it."""

from .budget import Budget
from .checkpoint import CheckpointError
from .evaluate import evaluate
from .loop import Fit, TrainingError, fit
from .parts import Data, Part, table

__all__ = ["Budget", "CheckpointError", "Data", "Fit", "Part", "TrainingError", "evaluate", "fit", "table"]
