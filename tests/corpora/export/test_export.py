import json

import pytest
import yaml

from omnimix.corpora import Mixture
from omnimix.corpora.export import EXPORTERS, export
from omnimix.corpora.export.finetuning import Axolotl
from omnimix.corpora.export.megatron import parse_blend

WEIGHTS = {"web": 0.5, "code": 0.3, "books": 0.2, "mail": 0.0}
KEPT = {"/data/web": 0.5, "/data/code": 0.3, "/data/books": 0.2}
PATHS = {name: f"/data/{name}" for name in WEIGHTS}
LENGTHS = {"web": 100.0, "code": 300.0, "books": 1000.0, "mail": 10.0}
SIZES = {
    path: size for name, size in (("web", 1000), ("code", 200), ("books", 800)) for path in (name, f"/data/{name}")
}


def made(name):
    return Axolotl(SIZES) if name == "axolotl" else EXPORTERS[name]()


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_is_written_is_read_as_the_same_mixture(name):
    exporter = made(name)
    mixture = Mixture(WEIGHTS, unit=exporter.unit or "tokens")
    found = export(exporter, mixture, paths=PATHS)
    assert exporter.read(found.text) == pytest.approx(KEPT, abs=1e-9)
    assert found.dropped == ("mail",)
    assert "mail" not in found.text
    assert found.unit == (exporter.unit or "tokens")


@pytest.mark.parametrize("name", [name for name, kind in EXPORTERS.items() if kind.unit == "documents"])
def test_shares_of_tokens_become_shares_of_documents(name):
    exporter = made(name)
    with pytest.raises(ValueError, match="mean tokens"):
        export(exporter, Mixture(WEIGHTS), paths=PATHS)
    mixture = Mixture({"web": 0.5, "code": 0.5})
    found = exporter.read(export(exporter, mixture, paths=PATHS, tokens=LENGTHS).text)
    assert found == pytest.approx({"/data/web": 0.75, "/data/code": 0.25})  # the card's: lengths 100 and 300


def test_documents_become_sequences_for_megatron():
    mixture = Mixture({"web": 0.75, "code": 0.25}, unit="documents")
    found = EXPORTERS["megatron"]().read(export(EXPORTERS["megatron"](), mixture, tokens=LENGTHS).text)
    assert found == pytest.approx({"web": 0.5, "code": 0.5})


def test_megatron_reads_weights_and_prefixes_in_turn():
    words = export(EXPORTERS["megatron"](), Mixture(WEIGHTS), paths=PATHS).text.split()
    assert len(words) == 6
    assert [float(word) for word in words[::2]] == pytest.approx([0.5, 0.3, 0.2])
    assert words[1::2] == ["/data/web", "/data/code", "/data/books"]
    assert parse_blend(["30", "a", "70", "b"]) == {"a": 0.3, "b": 0.7}
    for broken in (["30", "a", "70"], ["a", "30", "b", "70"], ["0", "a", "1", "b"]):
        with pytest.raises(ValueError, match="weights and prefixes"):
            parse_blend(broken)


def test_axolotl_keeps_fractions_of_the_data_sets():
    mixture = Mixture({"web": 0.5, "code": 0.3, "books": 0.2}, unit="documents")
    rows = yaml.safe_load(export(Axolotl(SIZES), mixture).text)["datasets"]
    assert [row["weight"] for row in rows] == pytest.approx([1 / 3, 1, 1 / 6])  # the card's
    with pytest.raises(ValueError, match="sizes="):
        export(Axolotl(), mixture)


def test_the_shapes_that_readers_ask_for():
    by = {
        name: export(made(name), Mixture(WEIGHTS, unit="documents"), paths=PATHS, tokens=LENGTHS) for name in EXPORTERS
    }
    assert json.loads(by["nemo"].text)["paths"][1::2] == list(KEPT)
    assert json.loads(by["hf"].text)["interleave_datasets"]["stopping_strategy"] == "all_exhausted"
    assert json.loads(by["litdata"].text)["iterate_over_all"] is False
    assert {frozenset(one) for one in json.loads(by["streaming"].text)["streams"]} == {
        frozenset({"local", "proportion"})
    }
    assert yaml.safe_load(by["llama-factory"].text)["dataset"] == ",".join(KEPT)
    assert set(json.loads(by["doremi"].text)) == {"train_domain_weights", "eval_domain_weights"}
    assert yaml.safe_load(by["regmix"].text)["train"] == pytest.approx(KEPT)
    assert [row["domain"] for row in json.loads(by["weborganizer"].text)] == list(KEPT)


def test_what_a_format_cannot_say_is_refused():
    schedule = Mixture([(0, {"web": 1.0}), (0.8, {"code": 1.0})])
    with pytest.raises(ValueError, match="2 phases"):
        export(EXPORTERS["megatron"](), schedule)
    assert export(EXPORTERS["megatron"](), schedule, phase=1).text.split()[1] == "code"
    with pytest.raises(ValueError, match="phase must lie"):
        export(EXPORTERS["megatron"](), schedule, phase=2)
    with pytest.raises(ValueError, match="cannot read the path"):
        export(EXPORTERS["megatron"](), Mixture({"a": 1.0}), paths={"a": "my data"})
    with pytest.raises(ValueError, match="cannot read the path"):
        export(EXPORTERS["llama-factory"](), Mixture({"a": 1.0}, unit="documents"), paths={"a": "x,y"})
    with pytest.raises(ValueError, match="the same path"):
        export(EXPORTERS["hf"](), Mixture({"a": 0.5, "b": 0.5}, unit="documents"), paths={"a": "x", "b": "x"})


def test_hugging_face_draws_by_what_was_written():
    datasets = pytest.importorskip("datasets")
    mixture = Mixture({"web": 0.75, "code": 0.25}, unit="documents")
    told = json.loads(export(EXPORTERS["hf"](), mixture).text)
    parts = [datasets.Dataset.from_dict({"of": [name] * 4000}) for name in told["files"]]
    rows = datasets.interleave_datasets(parts, **told["interleave_datasets"])["of"][:4000]
    assert abs(list(rows).count("web") / 4000 - 0.75) < 0.03
