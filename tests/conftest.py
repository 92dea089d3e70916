"""Shared fixtures."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data("mnist")` is the path of a real data set, in OMNIMIX_DATA or ../shared/data; skips where absent."""
    root = Path(os.environ.get("OMNIMIX_DATA") or Path(__file__).parents[2] / "shared" / "data")

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data {name!r} not found in {root}; set OMNIMIX_DATA to the folder that holds it")
        return root / name

    return find
