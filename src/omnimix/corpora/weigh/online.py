"""The rules that change weights while a model trains, by name."""

from __future__ import annotations

from collections.abc import Callable

from ..proxy import Rule
from .doge import DoGE
from .group_dro_online import GroupDROOnline
from .odm import ODM
from .r_and_b import RAndB

RULES: dict[str, Callable[..., Rule]] = {"doge": DoGE, "r-and-b": RAndB, "odm": ODM, "group-dro": GroupDROOnline}
"""DoReMi, which needs a reference run first, is `doremi.doremi`."""
