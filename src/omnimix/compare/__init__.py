"""The comparison: which method helps on these data, is it significant, what does it cost?

from omnimix.compare import compare, settings
result = compare(settings(data="airfoil", methods=("erm", "mixup")))
"""

from .protocol import PROTOCOLS, Protocol
from .result import Result
from .run import compare
from .spec import Settings, Spec, settings
from .store import Store, StoreError

__all__ = ["PROTOCOLS", "Protocol", "Result", "Settings", "Spec", "Store", "StoreError", "compare", "settings"]
