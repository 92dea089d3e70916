"""DoReMi as a whole: references and proxies in rounds, stopping, resuming; noise gets little weight."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from omnimix.corpora import Mixture
from omnimix.corpora.proxy import Rule, Training
from omnimix.corpora.weigh import doremi as module
from omnimix.corpora.weigh.doremi import doremi

TINY = Training(steps=4, batch=6, context=16, width=16, layers=1, heads=2, lr=1e-2)


def test_each_round_starts_from_what_the_last_one_found(packed):
    mixture, rounds = doremi(packed, TINY, rounds=3, tolerance=1e-9)
    assert len(rounds) == 3
    assert rounds[0].start.weights == Mixture(packed.tokens()).weights
    for before, after in pairwise(rounds):
        assert after.start.weights == pytest.approx(before.proxy.weights)
    assert mixture.weights == pytest.approx(rounds[-1].proxy.weights)
    assert mixture.provenance["rounds"] == 3


def test_rounds_end_when_nothing_moves(packed):
    uniform = Mixture(dict.fromkeys(packed.domains, 1.0))
    _, rounds = doremi(packed, TINY, start=uniform, rounds=5, eta=0.0, smoothing=0.0)
    assert len(rounds) == 1
    assert rounds[0].change == pytest.approx(0, abs=1e-12)


def test_an_interrupted_search_keeps_its_reference(packed, tmp_path, monkeypatch):
    whole, _ = doremi(packed, TINY)
    real, trained = module.train, []

    def counting(packed, rule, *arguments, **more):
        trained.append(type(rule).__name__)
        if trained == ["Follow", "DoReMi"]:
            raise KeyboardInterrupt
        return real(packed, rule, *arguments, **more)

    monkeypatch.setattr(module, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        doremi(packed, TINY, folder=tmp_path)
    found, _ = doremi(packed, TINY, folder=tmp_path)
    assert trained == ["Follow", "DoReMi", "DoReMi"]
    assert found.weights == whole.weights
    with pytest.raises(ValueError, match="is the reference of another run"):
        doremi(packed, replace(TINY, lr=2e-2), folder=tmp_path)


class RawLoss(Rule):
    """Group DRO on the losses themselves: what DoReMi's reference is there to avoid."""

    average = True

    def backward(self, step):
        losses, tokens = step.losses(), step.tokens()
        sums = step.by_domain(losses)
        self.weights = module.update(self.weights, sums / tokens)
        step.backward(losses, self.weights / tokens)
        return sums, tokens


@pytest.mark.slow
def test_noise_has_nothing_to_gain_and_gets_little_weight(tmp_path):
    """Domains: random letters (nothing to learn beyond their frequency), one repeated word (learned at once), and pairs
    of words (something to gain for long). The excess loss leaves the noise alone; the loss itself gives it everything.
    """
    import json

    import numpy as np

    from omnimix.corpora.proxy import pack, train

    random, file = np.random.default_rng(0), tmp_path / "d.jsonl"
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(random.choice(letters, size=4)) for _ in range(12)]
    make = {
        "noise": lambda: "".join(random.choice(letters, size=120)),
        "easy": lambda: "ab" * 60,
        "words": lambda: " ".join(random.choice(words, size=24)),
    }
    with open(file, "w") as out:
        for name, text in make.items():
            for number in range(60):
                out.write(json.dumps({"domain": name, "text": f"{text()}{number}"}) + "\n")
    packed = pack(file, tmp_path / "p")
    training = Training(steps=400, batch=12, context=32, width=32, layers=2, heads=4, lr=5e-3)
    mixture, _ = doremi(packed, training)
    raw = train(packed, RawLoss(), training, seed=0)
    assert raw.weights["noise"] > 0.8
    assert mixture.weights["noise"] < 0.5 * raw.weights["noise"]
    assert mixture.weights["easy"] < 0.2
    assert torch.isfinite(torch.tensor(list(mixture.weights.values()))).all()
