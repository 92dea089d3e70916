"""How two samples become one."""

from .mixup import Mixup, mixup

__all__ = ["Mixup", "mixup"]
