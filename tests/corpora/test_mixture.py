"""The mixture: weights that sum to 1, phases, units, caps, and a JSON round trip."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnimix.corpora import Mixture

EARLY = {"large cc": 34.35, "small cc": 36.70, "domain": 7.17, "code": 21.78}
LATE = {"large cc": 0, "small cc": 30, "domain": 35, "code": 35}


def test_weights_are_normalised():
    mixture = Mixture({"a": 3, "b": 1, "c": 0})
    assert mixture.weights == {"a": 0.75, "b": 0.25, "c": 0.0}
    assert mixture.domains == ("a", "b", "c")
    assert mixture.vector(["c", "a", "b"]).tolist() == [0.0, 0.75, 0.25]


def test_equal_whatever_the_order():
    one, other = Mixture({"a": 3, "b": 1}), Mixture({"b": 1, "a": 3})
    assert one == other
    assert hash(one) == hash(other)
    assert one != Mixture({"a": 3, "b": 1}, unit="documents")


def test_phases_switch_at_their_start():
    mixture = Mixture([(0.0, EARLY), (0.8, LATE)])
    assert mixture.at(0.0)["large cc"] == pytest.approx(0.3435)
    assert mixture.at(np.nextafter(0.8, 0))["domain"] == pytest.approx(0.0717)
    assert mixture.at(0.8) == mixture.at(1.0) == {"large cc": 0.0, "small cc": 0.3, "domain": 0.35, "code": 0.35}
    with pytest.raises(ValueError, match="2 phases"):
        _ = mixture.weights


def test_overall_consumption_of_the_domain_upsampling_paper():
    mixture = Mixture([(0.0, EARLY), (0.8, LATE)])
    drawn = mixture.consumption(100)
    expected = {"large cc": 27.48, "small cc": 35.36, "domain": 12.736, "code": 24.424}
    assert drawn == pytest.approx(expected, abs=1e-12)
    assert mixture.overall().weights == pytest.approx({d: v / 100 for d, v in expected.items()}, abs=1e-12)


def test_epochs_are_counted_and_capped():
    assert Mixture({"a": 1, "b": 1}).epochs(70, {"a": 10, "b": 100}) == {"a": 3.5, "b": 0.35}
    with pytest.raises(ValueError, match=r"3\.5 times through 'a'.*max_epochs is 2: lower its weight to 0\.2857"):
        Mixture({"a": 1, "b": 1}).epochs(70, {"a": 10, "b": 100}, max_epochs=2)
    with pytest.raises(ValueError, match="sizes must give 'b'"):
        Mixture({"a": 1, "b": 1}).epochs(70, {"a": 10})


def test_without_keeps_ratios():
    mixture = Mixture([(0.0, EARLY), (0.9, LATE)]).without("domain")
    assert mixture.at(1.0) == pytest.approx({"large cc": 0, "small cc": 6 / 13, "code": 7 / 13})
    with pytest.raises(ValueError, match=r"nothing is left from 0\.9"):
        Mixture([(0.0, EARLY), (0.9, LATE)]).without("small cc", "domain", "code")


def test_tokens_to_documents():
    tokens = Mixture({"short": 0.5, "long": 0.5})
    documents = tokens.to_unit("documents", {"short": 100, "long": 300})
    assert documents.weights == pytest.approx({"short": 0.75, "long": 0.25})
    assert documents.unit == "documents"
    assert documents.to_unit("tokens", {"short": 100, "long": 300}).weights == pytest.approx(tokens.weights)
    with pytest.raises(ValueError, match="to tokens first"):
        documents.to_unit("sequences", {"short": 100, "long": 300})


def test_the_start_of_a_phase_moves_with_the_unit():
    mixture = Mixture([(0.0, {"short": 1}), (0.5, {"long": 1})])
    documents = mixture.to_unit("documents", {"short": 100, "long": 300})
    # 300 tokens of each: 3 short documents, then 1 long
    assert documents.phases[1].start == pytest.approx(0.75)
    assert documents.at(0.9) == {"short": 0.0, "long": 1.0}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6),
    st.lists(st.floats(0.01, 0.99), max_size=3, unique=True),
    st.sampled_from(["tokens", "sequences", "documents"]),
)
def test_json_round_trip_keeps_every_bit(weights, starts, unit):
    phases = [(s, {f"d{i}": w * (1 + i * s) for i, w in enumerate(weights)}) for s in [0.0, *sorted(starts)]]
    mixture = Mixture(phases, unit=unit, provenance={"method": "by hand"})
    again = Mixture.from_dict(json.loads(json.dumps(mixture.to_dict())))
    assert again == mixture
    assert hash(again) == hash(mixture)
    assert pickle.loads(pickle.dumps(mixture)) == mixture
    for phase in mixture.phases:
        assert sum(phase.weights.values()) == pytest.approx(1, abs=1e-12)


def test_files(tmp_path):
    mixture = Mixture({"a": 0.2, "b": 0.8}, caps={"b": 0.9}, provenance={"method": "by hand"})
    mixture.save(tmp_path / "m.json")
    assert Mixture.load(tmp_path / "m.json") == mixture
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"bad\.json: a mixture is an object"):
        Mixture.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"a": -1},), "'a' must be a finite number >= 0, got -1"),
        (({"a": float("nan")},), "'a' must be a finite"),
        (({"a": "x"},), "'a' must be a number, got 'x'"),
        (({"a": 0.0},), "some weight must be > 0"),
        (([],), "begin at 0"),
        (([(0.1, {"a": 1})],), "begin at 0"),
        (([(0.0, {"a": 1}), (0.0, {"a": 1})],), "increase"),
        (([(0.0, {"a": 1}), (1.0, {"a": 1})],), "increase, below 1"),
        (([(0.0, {"a": 1}), (1.5, {"a": 1})],), r"start must be a number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixture(*arguments)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="unit must be one of"):
        Mixture({"a": 1}, unit="bytes")
    with pytest.raises(ValueError, match=r"cap of 'a' is 0.5, but its weight from 0 .* is 0.75"):
        Mixture({"a": 3, "b": 1}, caps={"a": 0.5})
    with pytest.raises(ValueError, match="provenance must be what JSON can hold"):
        Mixture({"a": 1}, provenance={"x": object()})
    with pytest.raises(ValueError, match=r"\['b'\] missing, \['c'\] unknown"):
        Mixture({"a": 1, "b": 1}).vector(["a", "c"])
    with pytest.raises(AttributeError, match="does not change"):
        Mixture({"a": 1}).unit = "documents"


def test_published_weights(real_data):
    folder = real_data("domain-weights") / "doremi"
    given = json.loads((folder / "pile_doremi_280M_256kvocab_paper.json").read_text())["train_domain_weights"]
    mixture = Mixture(given, provenance={"method": "doremi"})
    assert len(mixture.domains) == 22
    assert sum(given.values()) != 1
    assert sum(mixture.weights.values()) == pytest.approx(1, abs=1e-12)
    assert mixture.weights["Pile-CC"] == pytest.approx(0.6057 / sum(given.values()))
    other = json.loads((folder / "pile_uniform.json").read_text())["train_domain_weights"]
    # another order of the same names: by name, never by position
    assert Mixture(other).vector(mixture.domains) == pytest.approx([1 / 22] * 22)
