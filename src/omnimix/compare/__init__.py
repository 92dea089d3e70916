"""The comparison: which method helps on these data, is it significant, what does it cost?

from omnimix.compare import compare, settings
result = compare(settings(data="airfoil", methods=("erm", "mixup")))
"""

from .protocol import PROTOCOLS, Protocol
from .result import Result
from .run import compare
from .spec import Settings, Spec, settings
from .store import Store, StoreError
from .suite import Suite, compare_suite

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "Result",
    "Settings",
    "Spec",
    "Store",
    "StoreError",
    "Suite",
    "compare",
    "compare_suite",
    "settings",
]
