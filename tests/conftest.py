"""Shared fixtures."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A comparison with one worker computes here, where patches are seen and nothing has to start."""
    monkeypatch.setattr("omnimix.compare.engine.local.IN_PROCESS", True)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data("mnist")` is the path of a real data set, in OMNIMIX_DATA or ../shared/data; skips where absent."""
    root = Path(os.environ.get("OMNIMIX_DATA") or Path(__file__).parents[2] / "shared" / "data")

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data {name!r} not found in {root}; set OMNIMIX_DATA to the folder that holds it")
        return root / name

    return find
