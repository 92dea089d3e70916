"""Results of comparisons that were never run, and a browser that opens their pages."""

import html
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest

from omnimix.compare.result import Result
from omnimix.compare.spec import settings
from omnimix.compare.store import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def fits_in_windows(tmp_path) -> Callable[[str], None]:
    """`fits_in_windows(page)`: a wide and a narrow window open it without errors and without scrolling sideways."""
    if BROWSER is None:
        pytest.skip("no Chromium on the PATH")
    widths = (1280, 420)

    def check(page: str) -> None:
        tell = "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth].join(), '*')</script>"
        inner = html.escape(page + tell)
        frames = "".join(f'<iframe width="{width}" height="800" srcdoc="{inner}"></iframe>' for width in widths)
        wrapper = tmp_path / "wrapper.html"
        wrapper.write_text(
            "<!DOCTYPE html><meta charset='utf-8'><style>iframe { border: 0 }</style><script>"
            "onmessage = e => { document.title += ' ' + e.data }</script>" + frames
        )
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", profile, "--enable-logging=stderr", "--v=0"]
        done = subprocess.run(
            [str(BROWSER), *options, "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr
        title = re.search(r"<title>(.*?)</title>", done.stdout)
        assert title, done.stderr
        sizes = sorted(tuple(map(int, pair.split(","))) for pair in title[1].split())
        assert [width for _, width in sizes] == sorted(widths)
        assert all(scrolled <= width for scrolled, width in sizes)

    return check


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
