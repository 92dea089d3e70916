import json
import re
import sys

import pytest

import omnimix
from omnimix.cli import main
from omnimix.cli.methods import span
from omnimix.core.search import Choice, Log, Uniform


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["omnimix", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def test_the_list_holds_every_method_with_its_parameters(call):
    code, out, _ = call("methods", "--json")
    assert code == 0
    cards = {card["name"]: card for card in json.loads(out)}
    assert list(cards) == omnimix.methods()
    assert cards["mixup"]["parameters"]["alpha"] == 1.0
    assert "ICLR 2018" in cards["mixup"]["paper"]
    assert cards["erm"]["package"] == "omnimix"
    assert all(card["paper"] and card["cost"] > 0 for card in cards.values())
    assert cards["mixup"]["needs"] == []
    assert cards["cutmix"]["needs"] == ["images"]
    assert cards["c-mixup"]["needs"] == ["all training labels"]
    assert cards["lisa"]["needs"] == ["all training labels", "a domain column"]


def test_search_ranges_are_listed(call):
    cards = {card["name"]: card for card in json.loads(call("methods", "--json")[1])}
    assert cards["mixup"]["search"]["alpha"] == {"kind": "log-uniform", "low": 0.1, "high": 32, "unit": None}
    assert cards["c-mixup"]["search"]["bandwidth"]["unit"] == "label_sd"
    assert cards["erm"]["search"] == {}
    out = " ".join(call("methods", "--task", "regression")[1].replace("│", " ").split())
    assert "tuned: alpha 0.1 to" in out
    assert "log-uniform" in out


def test_ranges_in_words():
    assert span(Log(0.1, 8)) == "0.1 to 8, log-uniform"
    assert span(Uniform(0, 0.5, "label_sd")) == "0 to 0.5 standard deviations of the training labels, uniform"
    assert span(Choice("input", None, 1 / 3)) == "one of input, none, 0.3333"


def test_no_default_has_more_digits_than_anyone_reads(call):
    out = call("methods")[1]
    assert "share=0.1224" in out
    assert not re.search(r"\d\.\d{6,}", out)


def test_filters(call):
    listed = [card["name"] for card in json.loads(call("methods", "--task", "regression", "--json")[1])]
    assert listed == omnimix.methods(task="regression")
    assert json.loads(call("methods", "--level", "models", "--json")[1]) == []
    assert "no such method" in call("methods", "--level", "models")[1]
    code, out, err = call("methods", "--task", "clustering")
    assert (code, out) == (2, "")
    assert "task must be one of" in err


def test_the_table_is_plain_where_there_is_no_terminal(call):
    code, out, _ = call("methods", "--task", "classification")
    assert code == 0
    assert "mixup" in out
    assert "alpha=1" in out
    assert "a domain column" in out
    assert "2 ×" in out
    assert "\x1b" not in out


def test_version_and_help(call):
    assert call("--version")[:2] == (0, f"omnimix {omnimix.__version__}\n")
    code, out, _ = call("compare", "--help")
    assert code == 0
    for option in ("--data", "--methods", "--seeds", "--target", "--label-noise", "--noise-seed", "--json", "--jobs"):
        assert option in out


def test_a_missing_extra_is_said_in_one_line_with_the_remedy(call, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("omnimix.cli.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "typer", None)
    code, _, _ = call("methods")
    assert code == 'omnimix: the command line needs typer: pip install "omnimix[compare]"'
