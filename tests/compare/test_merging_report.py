"""The page of an evaluation of merges, and what its numbers are."""

import re

import pytest

from omnimix.compare.merging import Score, ranked, spread
from omnimix.compare.merging_report import page, sweeps, write
from omnimix.compare.statistics import estimate
from omnimix.models.checkpoint import Recipe


def merge(values, **options):
    own = tuple({"weight": w} for w in options.pop("weight", ()))
    recipe = Recipe("ties", ("a", "b"), "z", options, own)
    shown = {**options, **({"weight": [one["weight"] for one in own]} if own else {})}
    return Score("ties", shown, tuple(values), 1.0, recipe)


SCORES = [
    Score("models/<a> & $b$", {}, (1.0, 0.0, 1.0, 0.0), 0.2, None),
    Score("b", {}, (0.0, 0.0, 1.0, 0.0), 0.2, None),
    merge((1.0, 1.0, 1.0, 0.0)),
    merge((1.0, 0.0, 0.0, 0.0), density=0.3, weight=(0.2, 0.7)),
    merge((1.0, 1.0, 1.0, 1.0), density=0.6, weight=(0.4, 0.5)),
]


def test_scores_intervals_and_differences_by_example():
    assert [score.value for score in ranked(SCORES, lower=False)] == [1.0, 0.75, 0.5, 0.25, 0.25]
    assert SCORES[2].interval == estimate((1.0, 1.0, 1.0, 0.0)).ci95
    gap = SCORES[4].minus(SCORES[0])
    assert (gap.mean, gap.ci95) == (0.5, estimate((0.0, 1.0, 0.0, 1.0)).ci95)
    assert SCORES[4].minus(Score("c", {}, (1.0,), 0.0, None)) is None
    many = [0.0, 1.0] * 500
    found = spread(many)
    assert (found.mean, found.ci95) == (0.5, pytest.approx((0.5 - 0.03101, 0.5 + 0.03101), abs=1e-4))
    assert Score("c", {}, (0.3,), 0.0, None).interval is None


def test_sweeps_are_by_operator_and_coefficient():
    found = sweeps(SCORES)
    assert found == {
        "ties": {
            "density": [(0.3, 0.25), (0.6, 1.0)],
            "weight of model 1": [(0.2, 0.25), (0.4, 1.0)],
            "weight of model 2": [(0.7, 0.25), (0.5, 1.0)],
        }
    }


def test_the_page_says_what_was_found(tmp_path):
    text = write(SCORES, tmp_path, judge="judge.py:accuracy", lower=False, store=tmp_path / "s").read_text()
    assert text.count("<svg") == 3
    rows = [re.sub(r"\s*<[^>]*>\s*", "|", row) for row in re.findall(r"<tr>.*?</tr>", text, flags=re.DOTALL)]
    assert "|ties||density 0.6, weight (0.4, 0.5)||1||1 to 1||+0.5|" in rows[1].replace("||||", "||")
    assert "models/&lt;a&gt; &amp; $b$" in rows[3]
    assert "higher is better" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    single = [Score("a", {}, (0.5,), 0.1, None), Score("linear", {}, (0.4,), 0.1, Recipe("linear", ("a", "b")))]
    alone = page(single, judge="j.py:f", lower=True, store=tmp_path)
    assert "there are no intervals" in alone
    assert "<svg" not in alone


def test_a_browser_opens_it_wide_and_narrow_without_errors(tmp_path, fits_in_windows):
    fits_in_windows(page(SCORES, judge="judge.py:" + "f" * 60, lower=False, store=tmp_path))
