"""omnimix: make models generalise better by mixing samples, domains, corpora and models."""

from . import samples  # noqa: F401  (registers the methods)
from .core.batch import Batch
from .core.combine import Alternate, Choose, Until
from .core.loader import partner_loader
from .core.method import Method, Mix
from .core.objective import MixedLoss
from .core.operation import Interpolate
from .core.pairing import RandomPairing
from .core.ratio import Beta, Constant
from .core.recipe import Mixed, Recipe
from .core.registry import create, methods, register
from .core.split import Split, split
from .core.table import Table
from .core.task import Classification, MultiLabel, Regression, Task
from .integrations.collate import collate
from .samples.objective import ERM
from .samples.operation import Mixup, mixup

__version__ = "0.1.0"

__all__ = [
    "ERM",
    "Alternate",
    "Batch",
    "Beta",
    "Choose",
    "Classification",
    "Constant",
    "Interpolate",
    "Method",
    "Mix",
    "Mixed",
    "MixedLoss",
    "Mixup",
    "MultiLabel",
    "RandomPairing",
    "Recipe",
    "Regression",
    "Split",
    "Table",
    "Task",
    "Until",
    "collate",
    "create",
    "methods",
    "mixup",
    "partner_loader",
    "register",
    "split",
]
