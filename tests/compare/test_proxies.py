"""Proxy runs on the engines: processes and Ray give what one process gives; rows are those of exactly these runs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from omnimix.compare.proxies import make_jobs, run_proxies
from omnimix.corpora import Mixture
from omnimix.corpora.proxy import Training, pack

TINY = Training(steps=3, batch=6, context=16, width=16, layers=1, heads=2)
MIXTURES = [Mixture({"a": 1, "b": 1}), Mixture({"a": 1, "b": 0})]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("documents")
    with open(folder / "d.jsonl", "w") as out:
        for name, letters in {"a": "abcd ", "b": "efgh "}.items():
            for _ in range(60):
                text = "".join(random.choice(list(letters), size=40))
                out.write(json.dumps({"domain": name, "text": text}) + "\n")
    return pack(folder / "d.jsonl", folder / "p")


def losses(packed, out, **how):
    jobs, runs, failed = run_proxies(packed, MIXTURES, TINY, out, seeds=(0, 1), parts=("valid", "test"), **how)
    assert not failed
    return [runs[job.key].domains for job in jobs]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"workers": 2}, {"workers": 2, "engine": "ray"}])
def test_other_engines_give_the_same(how, packed, tmp_path):
    if how.get("engine") == "ray":
        pytest.importorskip("ray")
    assert losses(packed, tmp_path / "a", workers=1) == losses(packed, tmp_path / "b", **how)


def test_a_key_is_of_all_that_decides_a_run(packed):
    (base,) = make_jobs(packed, MIXTURES[:1], TINY, [0], ("valid",))
    again, other = make_jobs(packed, [Mixture({"a": 2, "b": 2}), MIXTURES[1]], TINY, [0], ("valid",))
    assert base.key == again.key != other.key
    changed = [
        make_jobs(packed, MIXTURES[:1], replace(TINY, lr=1e-2), [0], ("valid",)),
        make_jobs(packed, MIXTURES[:1], TINY, [1], ("valid",)),
        make_jobs(packed, MIXTURES[:1], TINY, [0], ("test",)),
        make_jobs(packed, [Mixture([(0, {"a": 1, "b": 1}), (0.5, {"a": 1})])], TINY, [0], ("valid",)),
    ]
    assert len({base.key, *(job.key for (job,) in changed)}) == 5


def test_rows_hold_every_part_and_what_the_run_took(packed, tmp_path):
    jobs, runs, _ = run_proxies(packed, MIXTURES[1:], TINY, tmp_path, parts=("valid", "test"), workers=1)
    run = runs[jobs[0].key]
    assert set(run.domains) == {"a", "b"}
    assert run.metrics["test"] == pytest.approx((run.domains["a"]["test"] + run.domains["b"]["test"]) / 2)
    assert run.extras["epochs"]["b"] == 0 < run.extras["epochs"]["a"]
    assert run.extras["tokens"] <= 3 * 6 * 16
    assert run.extras["flops"] > 6 * 3 * 6 * 16 * 16
    assert not list((tmp_path / "checkpoints").glob("*")) if (tmp_path / "checkpoints").exists() else True


def test_what_does_not_fit_is_refused_before_anything_runs(packed, tmp_path):
    for arguments, message in (
        (([], TINY), "there is nothing to run"),
        ((MIXTURES, replace(TINY, devices=2)), "devices must be 1"),
        (([Mixture({"z": 1})], TINY), r"name \['z'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run_proxies(packed, *arguments, tmp_path, workers=1)
    with pytest.raises(ValueError, match="jobs must be an integer >= 1"):
        run_proxies(packed, MIXTURES, TINY, tmp_path, workers=0)
