import json

import pytest

ERM = (2.0, 2.2, 2.1, 2.3, 2.15, 2.05, 2.25)
CLEAR = tuple(value + 1 + 0.03 * place for place, value in enumerate(ERM))
NOISE = tuple(value + 0.05 * (-1) ** place for place, value in enumerate(ERM))


def test_p_of_the_summary_is_corrected_and_the_others_say_what_they_are(make_result):
    told = make_result({"erm": ERM, "a": CLEAR, "b": NOISE}).to_json()
    erm, a, _ = told["summary"]
    found = a["diff"]["rmse"]
    assert a["p"] == found["p_holm"] == pytest.approx(2 * found["p_uncorrected"])
    assert found["p_wilcoxon_uncorrected"] == 2 / 2**7
    assert found["p_wilcoxon_holm"] == pytest.approx(4 / 2**7)
    assert "p" not in found
    assert erm["power"] == erm["diff"] == {}
    assert "signed-rank" in told["tests"]
    json.dumps(told, allow_nan=False)


def test_what_is_not_told_apart_says_how_many_seeds_it_needs(make_result):
    made = make_result({"erm": ERM, "b": NOISE})
    summary = made.summaries[1]
    power = made.to_json()["summary"][1]["power"]["rmse"]
    assert power["level"] == 0.05
    assert power["sd"] == pytest.approx(summary.difference["rmse"].sd)
    said = made.verdict(summary)
    assert f"to resolve a difference of 0.01, {power['seeds']} seeds are needed; 7 seeds resolve 0.07" in said
    clear = make_result({"erm": ERM, "a": CLEAR})
    assert "are needed" not in clear.verdict(clear.summaries[1])
    same = make_result({"erm": ERM, "a": ERM})
    assert "are needed" not in same.verdict(same.summaries[1])
    assert same.to_json()["summary"][1]["power"] == {"rmse": None, "other": None}
    nearly = make_result({"erm": (0.0,) * 4, "a": (1.0, -1.0, 1.0, -0.999)})
    said = nearly.verdict(nearly.summaries[1])
    assert "are needed" not in said
    assert "4 seeds resolve" in said


def test_the_rank_test_speaks_where_it_can(make_result):
    few = make_result({"erm": ERM[:5], "a": CLEAR[:5]})
    assert "Wilcoxon" not in few.verdict(few.summaries[1])
    assert "never below 0.062" in few.tests
    many = make_result({"erm": ERM, "a": CLEAR})
    assert "(Wilcoxon 0.016)" in many.verdict(many.summaries[1])
    assert many.warnings == []
    differences = (1.4, 1.5, 1.6, 1.7, -0.3, 1.4, -0.2)
    odd = make_result({"erm": (0.0,) * 7, "a": differences})
    assert odd.summaries[1].holm < 0.05 < odd.summaries[1].difference["rmse"].p_wilcoxon_holm
    assert "a: the t-test finds a difference, the rank test (Wilcoxon) does not" in " ".join(odd.warnings)


def test_step_times_of_short_runs_are_not_compared(make_result):
    values = {"erm": ERM, "mixup": NOISE}
    assert make_result(values).summaries[1].cost == pytest.approx(6 / 4)
    for short in ({"seconds": 0.4}, {"epochs": 2}):
        made = make_result(values, **short)
        assert [summary.cost for summary in made.summaries] == [None, None]
        assert "step times are not compared: the runs are too short" in " ".join(made.warnings)
    assert make_result({"erm": ERM}, epochs=2).warnings == []


def test_step_times_of_runs_made_differently_are_not_compared(make_result):
    values = {"erm": ERM, "a": NOISE, "b": NOISE}
    made = make_result(values, together={"erm": "7", "a": "7"})
    assert [summary.cost is None for summary in made.summaries] == [False, False, True]
    assert "the step times of b and erm are not compared" in " ".join(made.warnings)


def test_the_mean_is_over_the_seeds_that_all_have(make_result):
    made = make_result({"erm": (1.0, 1.0, 9.0), "mixup": (2.0, 2.0)})
    assert (made.mean("erm"), made.mean("mixup")) == (1.0, 2.0)
