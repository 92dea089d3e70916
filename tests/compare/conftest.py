"""Results of comparisons that were never run."""

from collections.abc import Callable

import pytest

from omnimix.compare.result import Result
from omnimix.compare.spec import settings
from omnimix.compare.store import Run


@pytest.fixture
def make_result(tmp_path) -> Callable[..., Result]:
    """`make_result({"erm": (2.0, 2.2), "mixup": (3.0, 3.3)})`: the primary metric by method and seed.

    together: by method, what `versions` says of its runs.
    """

    def make(values, *, primary="rmse", name="toy", seconds=5.0, epochs=5, together=None, **more) -> Result:
        seeds = tuple(range(max(map(len, values.values()), default=1)))
        together = together or {}
        runs = [
            Run(
                f"{name}{method}{seed}", method, seed, "digest", "code", {}, {primary: value, "other": value / 10}, {},
                [{"epoch": e, "train_loss": 5 / e, "valid_loss": 4 / e} for e in range(1, epochs + 1)],
                3, seconds, 0.01 * (1 + len(method)), 10**9, "cpu",
                {"torch": "2.12"} | ({"together": together[method]} if method in together else {}),
            )
            for method, column in values.items()
            for seed, value in enumerate(column)
        ]  # fmt: skip
        facts = {
            "name": name, "rows": 100, "inputs": "3", "task": "regression", "target": "y", "domains": [],
            "random_split": True, "split": [60, 20, 20], "notes": [], "digest": "abc", "classes": [], "features": [],
        }  # fmt: skip
        budget = {"epochs": epochs, "optimizer": "adam", "momentum": 0.9, "milestones": []}
        held = {"name": "default", "source": "ours", "network": "mlp", "budget": budget}
        methods = tuple(values) or ("erm",)
        folder = tmp_path / name
        given = {"failures": [], "pending": 0, "foreign": 0, "store": tmp_path / "store.db", **more}
        return Result(
            settings(data=name, methods=methods, seeds=seeds), facts, held, {m: {} for m in methods}, primary, runs,
            folder=folder, **given,
        )  # fmt: skip

    return make
