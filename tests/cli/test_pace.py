import io

import pytest
from rich.console import Console

from omnimix.cli.console import progress
from omnimix.cli.pace import Pace, Work


def test_before_a_run_has_ended_the_declared_cost_decides():
    pace = Pace([Work("erm", 4, 10, 1.0), Work("dear", 4, 10, 3.0)])
    assert pace.left([0, 0], 5.0) is None
    assert pace.done([1, 0]) == pytest.approx(1 / 4)
    assert pace.left([1, 0], 5.0) == pytest.approx(15.0)


def test_ended_runs_of_the_same_method_decide_and_scale_what_is_declared_of_others():
    pace = Pace([Work("erm", 1, 10, 1.0), Work("dear", 1, 10, 2.0), Work("dearer", 1, 10, 4.0)])
    pace.ended("erm", 10, 1.0)
    assert pace.left([1, 0, 0], 1.0) == pytest.approx(2.0 + 4.0)
    pace.ended("dear", 10, 20.0)  # ten times what it declares: a second an epoch at cost 1, on average 0.55
    assert pace.left([1, 1, 0], 21.0) == pytest.approx(4 * 10 * (0.1 + 1.0) / 2)


def test_epochs_and_many_processes_count():
    pace = Pace([Work("erm", 1, 10, 1.0), Work("erm", 1, 30, 1.0)])
    assert pace.left([1, 0], 1.0) == pytest.approx(3.0)
    four = Pace([Work("erm", 1, 10, 1.0)] * 8)
    four.ended("erm", 10, 6.0)
    assert four.left([1, 1, 1, 1, 0, 0, 0, 0], 6.0) == pytest.approx(6.0)
    assert four.left([1] * 8, 12.0) == 0


def test_a_live_bar_shows_what_is_left():
    out = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress(lambda: 1.0, 4, out, left=lambda: 3725.0) as tell:
        tell("erm, seed 0")
    assert "1:02:05" in out.file.getvalue()
