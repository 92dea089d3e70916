import itertools
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from omnimix.compare.ranks import Ranks, diagram, picture, rank, svg

# The ranks of Demsar's table 6: C4.5 with its defaults, with tuned m, with tuned cf, with both, on 14 data sets.
DEMSAR = [
    (4, 3, 2, 1), (1, 2, 3, 4), (4, 1, 2, 3), (4, 1, 3, 2), (4, 2, 3, 1), (1, 2.5, 4, 2.5), (3, 2, 4, 1),
    (2.5, 2.5, 4, 1), (4, 3, 2, 1), (2.5, 2.5, 2.5, 2.5), (4, 2.5, 1, 2.5), (3, 2, 4, 1), (4, 1, 2, 3), (3, 1, 4, 2),
]  # fmt: skip


def draw(sets, methods, seed=0, slope=0.0):
    scores = np.random.default_rng(seed).normal(size=(sets, methods)) + slope * np.arange(methods)
    return [f"m{place}" for place in range(methods)], scores


def test_demsars_worked_example():
    found = rank(["C4.5", "m", "cf", "m+cf"], DEMSAR)
    assert list(found.average) == ["m+cf", "m", "cf", "C4.5"]
    assert list(found.average.values()) == pytest.approx([1.964, 2.000, 2.893, 3.143], abs=5e-4)
    ties = 3 * (2**3 - 2) + (4**3 - 4)  # three pairs and one data set on which all four tie
    correction = 1 - ties / (14 * (4**3 - 4))
    assert found.chi2 * correction == pytest.approx(9.28, abs=0.005)  # Demsar does not correct for ties
    f = 13 * found.chi2 * correction / (14 * 3 - found.chi2 * correction)
    assert f == pytest.approx(3.69, abs=0.005)
    assert found.f > f
    assert found.p_f < 0.05  # the critical value of F(3, 39) is 2.85
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    assert found.groups == (("m+cf", "m", "cf", "C4.5"),)  # 3.143 - 1.964 = 1.18


def test_friedman_against_scipy():
    for methods in (3, 7):
        names, scores = draw(12, methods, slope=0.2)
        found, theirs = rank(names, scores), friedmanchisquare(*scores.T)
        assert found.chi2 == pytest.approx(theirs.statistic)
        assert found.p_chi2 == pytest.approx(theirs.pvalue)


def test_ties_are_corrected_as_in_scipy_and_by_hand():
    names, scores = draw(12, 5, slope=0.4)
    scores = np.round(scores)
    found, theirs = rank(names, scores), friedmanchisquare(*scores.T)
    assert found.chi2 == pytest.approx(theirs.statistic)
    assert found.p_chi2 == pytest.approx(theirs.pvalue)
    alike = rank(["a", "b", "c"], [[1, 1, 2]] * 3)  # one of 3 orders, three times
    assert alike.f is None
    assert alike.chi2 == pytest.approx(6)
    assert alike.p_f == pytest.approx(1 / 9)
    level = rank(["a", "b"], [[1, 1]] * 3)
    assert (level.chi2, level.p_chi2, level.p_f) == (0, 1, 1)


def test_critical_differences_of_demsars_table():
    for methods, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        found = rank(*draw(9, methods))
        assert found.critical_difference == pytest.approx(q * math.sqrt(methods * (methods + 1) / 54), rel=1e-3)


def test_ranks_are_about_order_only_and_ties_share():
    names, scores = draw(5, 4)
    found = rank(names, scores)
    assert rank(names, np.exp(scores) * np.arange(1, 6)[:, None]) == found
    tied = rank(["a", "b", "c"], [[1, 1, 2], [1, 1, 0]])
    assert tied.average == {"c": 2.0, "a": 2.0, "b": 2.0}
    assert sum(found.average.values()) == pytest.approx(10)


def test_when_all_data_sets_agree_p_is_the_chance_of_that():
    found = rank(["a", "b", "c"], [[1, 2, 3]] * 4)
    assert found.chi2 == pytest.approx(8)
    assert found.f is None
    assert found.p_f == pytest.approx(1 / 6**3)
    json.dumps(found.to_json(), allow_nan=False)


def test_groups_are_the_longest_stretches_that_are_not_told_apart():
    names, scores = draw(25, 8, slope=0.5)
    found = rank(names, scores)
    assert len(found.groups) > 1
    ordered = list(found.average)
    for first, last in itertools.combinations(range(8), 2):
        near = found.average[ordered[last]] - found.average[ordered[first]] < found.critical_difference
        assert near == any({ordered[first], ordered[last]} <= set(group) for group in found.groups)
    assert not any(set(a) < set(b) for a, b in itertools.permutations(found.groups, 2))
    apart = rank(["a", "b"], [[1, 2]] * 30)
    assert apart.groups == ()


def test_the_verdict_reads_no_critical_difference_where_friedman_finds_nothing():
    assert "is not to be read" in rank(["a", "b"], [[1, 2], [2, 1]]).verdict
    assert "by 0.36 (Nemenyi's critical difference) or more" in rank(["a", "b"], [[1, 2]] * 30).verdict


def test_what_cannot_be_ranked_is_refused():
    for methods, scores in ((["a"], [[1], [2]]), (["a", "b"], [[1, 2]]), (["a", "b"], [[1, 2], [1, math.nan]])):
        with pytest.raises(ValueError, match="scores must be finite"):
            rank(methods, scores)


def overlaps(ranks: Ranks) -> list:
    """Texts of the diagram that overlap each other or leave it."""
    figure = diagram(ranks)
    figure.canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent()) for t in figure.axes[0].texts]
    width, height = figure.get_size_inches() * figure.dpi
    out = [said for said, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]
    return out + [(a, b) for (a, p), (b, q) in itertools.combinations(boxes, 2) if p.overlaps(q)]


@pytest.mark.parametrize("methods", [2, 3, 8, 20])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_no_text_of_the_diagram_overlaps(methods, slope):
    names, scores = draw(6, methods, slope=slope)
    names[0] = "c-mixup:alpha=2:bandwidth=1.75:place=block1:per_sample=true"
    names[1] = "mixup:" + "x" * 45
    assert overlaps(rank(names, scores)) == []
    assert overlaps(rank(names, np.zeros_like(scores))) == []


def test_the_svg_fits_into_a_page(tmp_path):
    found = rank(["erm", "a<b>&$\\frac$", "c"], draw(6, 3)[1])
    drawn = svg(found)
    ET.fromstring(drawn.replace("xlink:href", "href"))
    assert "a&lt;b&gt;&amp;$\\frac$" in drawn
    assert "#1b1b1b" not in drawn
    assert "http" not in drawn.replace("http://www.w3.org/", "")
    picture(found, tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes()[:4] == b"\x89PNG"
