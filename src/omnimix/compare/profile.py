"""Profiles: how much a comparison over domains spends where the user does not say; what is said goes before.

full     as in DomainBed's protocol: 20 draws of hyperparameters, 3 trials
quick    minutes on two cores for a few methods: images of 32 x 32, 300 rows a domain, 8 epochs of a narrow CNN,
         3 trials, no tuning
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.checks import one_of
from ..data.load import DOMAINS

PROFILES: dict[str, dict[str, Any]] = {
    "full": {"protocol": "domains", "tune": 20, "seeds": (0, 1, 2)},
    "quick": {
        "protocol": "domains",
        "seeds": (0, 1, 2),
        "rows": 300,
        "size": 32,
        "epochs": 8,
        "batch": 48,
        "net": "small-cnn:stride=2:width=16",
        "lr": 3e-3,
    },
}
DOMAIN_PROTOCOLS = {"leave-one-out": "domains", "official": "domains-official"}
"""Names of the command line, and those of the protocols."""


def with_profile(name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `given`, completed by those of the profile; a setting of None counts as not given."""
    said = {key: value for key, value in given.items() if value is not None}
    if name is None:
        return said
    profile = dict(PROFILES[one_of("profile", name, tuple(PROFILES))])
    if given["data"].partition(":")[0] not in (*DOMAINS, "images"):
        profile.pop("size", None)  # of other data it is what it is
    if said.get("protocol", profile["protocol"]).startswith("domains") is False:
        raise ValueError(f"profile = {name!r} is of comparisons over domains, not of the protocol {said['protocol']!r}")
    return {**profile, **said}
