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
from .samples.objective import ERM, Decoupled, DecoupledMixup, RegMixup, decoupled_loss, regmixup
from .samples.operation import (
    CutBox,
    CutMix,
    FMix,
    FourierMask,
    ManifoldMixup,
    Mixup,
    cutmix,
    fmix,
    manifold_mixup,
    mixup,
)
from .samples.pairing import CMixup, Criterion, LabelKernel, SelectiveMixup, c_mixup, controls
from .samples.ratio import EarlyStopped, MidpointMixup, midpoint_mixup

__version__ = "0.1.0"

__all__ = [
    "ERM",
    "Alternate",
    "Batch",
    "Beta",
    "CMixup",
    "Choose",
    "Classification",
    "Constant",
    "Criterion",
    "CutBox",
    "CutMix",
    "Decoupled",
    "DecoupledMixup",
    "EarlyStopped",
    "FMix",
    "FourierMask",
    "Interpolate",
    "LabelKernel",
    "ManifoldMixup",
    "Method",
    "MidpointMixup",
    "Mix",
    "Mixed",
    "MixedLoss",
    "Mixup",
    "MultiLabel",
    "RandomPairing",
    "Recipe",
    "RegMixup",
    "Regression",
    "SelectiveMixup",
    "Split",
    "Table",
    "Task",
    "Until",
    "c_mixup",
    "collate",
    "controls",
    "create",
    "cutmix",
    "decoupled_loss",
    "fmix",
    "manifold_mixup",
    "methods",
    "midpoint_mixup",
    "mixup",
    "partner_loader",
    "register",
    "regmixup",
    "split",
]
