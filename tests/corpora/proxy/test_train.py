"""Training: plain steps by hand, rules against brute force, exact resume, several ranks equal to one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnimix.corpora import Mixture
from omnimix.corpora.draw import DomainSampler
from omnimix.corpora.proxy import Follow, Rule, Training, network, train
from omnimix.corpora.weigh.doge import DoGE
from omnimix.corpora.weigh.doremi import DoReMi
from omnimix.corpora.weigh.group_dro_online import GroupDROOnline
from omnimix.corpora.weigh.odm import ODM
from omnimix.corpora.weigh.r_and_b import RAndB

TINY = Training(steps=8, batch=6, context=16, width=16, layers=1, heads=2, lr=1e-2)
EVEN = Mixture({"a": 1, "b": 1, "c": 1})


def reference(packed):
    return network(packed, TINY, seed=7)


RULES = {
    "follow": lambda packed: Follow(Mixture([(0, {"a": 1, "b": 0}), (0.5, {"a": 0.2, "b": 0.5, "c": 0.3})])),
    "doremi": lambda packed: DoReMi(reference(packed)),
    "doremi, released": lambda packed: DoReMi(reference(packed), reference_code=True),
    "doge": lambda packed: DoGE(),
    "doge, target": lambda packed: DoGE(["b"], held_out=True, absent="last"),
    "r-and-b": lambda packed: RAndB({"a": 1, "b": 3}, every=3),
    "odm": lambda packed: ODM(),
    "group-dro": lambda packed: GroupDROOnline(every=2),
}


def same(one, two, **tolerance):
    assert one.weights == pytest.approx(two.weights, **tolerance)
    assert one.losses["valid"] == pytest.approx(two.losses["valid"], **tolerance, nan_ok=True)
    for name, value in one.model.items():
        torch.testing.assert_close(value, two.model[name], rtol=tolerance.get("rel", 0), atol=tolerance.get("rel", 0))


def drawn(packed, found):
    """Sequences of every domain."""
    sizes = packed.sequences("train", 16)
    return [round(found.epochs[name] * size) for name, size in zip(packed.domains, sizes, strict=True)]


def test_training_learns_the_letters(packed):
    found = train(packed, Follow(EVEN), replace(TINY, steps=60), seed=0)
    assert set(found.losses["valid"]) == set(packed.domains)
    assert found.losses["valid"]["a"] < 2.5 < math.log(packed.vocabulary)
    assert sum(
        found.epochs[name] * n for name, n in zip(packed.domains, packed.sequences("train", 16), strict=True)
    ) == (pytest.approx(360))


def test_the_first_step_is_that_of_adamw_on_the_mean_loss(packed):
    training = replace(TINY, steps=1, warmup=0, clip=0)
    found = train(packed, Follow(Mixture({"a": 1, "b": 0, "c": 0})), training, seed=3)
    model = network(packed, training, 3)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1]},
              {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    sizes = dict(zip(packed.domains, packed.sequences("train", 16).tolist(), strict=True))
    rows = DomainSampler(sizes, {"a": 1}, batch_size=6, steps=1, seed=3, counts="random").draw()
    inputs, targets = packed.read("train", np.zeros(6, dtype=int), rows, 16)
    torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.model[name], value, rtol=1e-4, atol=1e-6)


def test_a_schedule_switches_at_its_step_and_draws_only_what_has_weight(packed):
    schedule = Mixture([(0.0, {"a": 1, "b": 0}), (0.75, {"a": 0, "b": 1})])
    found = train(packed, Follow(schedule), TINY, seed=0)
    drawn = {
        name: found.epochs[name] * n for name, n in zip(packed.domains, packed.sequences("train", 16), strict=True)
    }
    assert drawn == pytest.approx({"a": 36, "b": 12, "c": 0})
    constant = train(packed, Follow(Mixture([(0.0, {"a": 1}), (0.5, {"a": 1})])), TINY, seed=0)
    same(constant, train(packed, Follow(Mixture({"a": 1})), TINY, seed=0), rel=0)


@pytest.mark.parametrize("name", RULES)
def test_an_interrupted_run_continues_exactly(name, packed, tmp_path):
    class Stop(Exception):
        pass

    def stop(share):
        if share > 0.6:
            raise Stop

    whole = train(packed, RULES[name](packed), TINY, seed=1)
    file = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        train(packed, RULES[name](packed), TINY, seed=1, checkpoint=file, every=0, progress=stop)
    assert file.exists()
    resumed = train(packed, RULES[name](packed), TINY, seed=1, checkpoint=file, every=0)
    same(whole, resumed, rel=0, abs=0)
    assert whole.path == resumed.path
    assert not file.exists()


def test_a_checkpoint_of_another_run_is_refused(packed, tmp_path):
    def stop(share):
        raise KeyboardInterrupt

    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):  # the file is written after the step that is told of
        train(packed, Follow(EVEN), TINY, seed=1, checkpoint=file, every=0, progress=lambda s: s > 0.3 and stop(s))
    for rule, seed in ((Follow(Mixture({"a": 1, "b": 2, "c": 1})), 1), (Follow(EVEN), 2), (ODM(), 1)):
        with pytest.raises(ValueError, match="is of another run"):
            train(packed, rule, TINY, seed=seed, checkpoint=file)


@pytest.mark.parametrize("name", RULES)
def test_weights_stay_a_mixture_and_a_seed_repeats(name, packed):
    one, two = (train(packed, RULES[name](packed), TINY, seed=4) for _ in range(2))
    same(one, two, rel=0, abs=0)
    for _, weights in [*one.path, (None, one.weights)]:
        assert min(weights.values()) >= 0
        assert sum(weights.values()) == pytest.approx(1)


def test_doremi_on_its_own_reference_keeps_uniform_weights(packed):
    """Before the first step proxy and reference are equal, so that nothing is in excess."""
    training = replace(TINY, steps=1)
    found = train(packed, DoReMi(network(packed, training, 0)), training, seed=0)
    assert list(found.weights.values()) == pytest.approx([1 / 3] * 3, abs=1e-15)


def test_doge_without_pull_is_plain_training_on_domain_means(packed):
    """mu = infinity freezes uniform weights: sum_j g_j / k."""

    class Means(Rule):
        def backward(self, step):
            losses, tokens = step.losses(), step.tokens()
            step.backward(losses, 1 / (step.k * tokens))
            return step.by_domain(losses), tokens

    one = train(packed, DoGE(mu=1e15, max_norm=None), TINY, seed=0)
    two = train(packed, Means(), TINY, seed=0)
    same(one, two, rel=2e-4)


def test_r_and_b_collects_without_changing_gradients(packed):
    """lam = 0 keeps uniform weights: plain training, bit for bit."""
    one = train(packed, RAndB(lam=0.0, every=2), TINY, seed=0)
    two = train(packed, Follow(EVEN), TINY, seed=0)
    for name, value in one.model.items():
        assert torch.equal(value, two.model[name])


def test_group_dro_asks_for_what_is_farthest_from_its_target(packed):
    targets = {"a": 0.0, "b": 99.0, "c": 99.0}
    found = train(packed, GroupDROOnline(targets, every=1, eta=1.0), TINY, seed=0)
    assert found.weights["a"] > 0.9
    with pytest.raises(ValueError, match="targets must name all of a, b, c"):
        train(packed, GroupDROOnline({"a": 1.0}), TINY, seed=0)


def test_one_domain_batches(packed):
    found = train(packed, Follow(EVEN), replace(TINY, steps=5, one_domain=True), seed=0)
    assert all(count % 6 == 0 for count in drawn(packed, found))


def test_bad_arguments_are_refused(packed):
    for arguments, message in (
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"lr": 0.0}, "lr must be a number > 0"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"batch": 5, "devices": 2}, "multiple of devices"),
    ):
        with pytest.raises(ValueError, match=message):
            Training(**arguments)
    with pytest.raises(ValueError, match="the mixture names"):
        train(packed, Follow(Mixture({"z": 1})), TINY, seed=0)
    with pytest.raises(ValueError, match="multiple of 3"):
        train(packed, DoGE(), replace(TINY, batch=2), seed=0)
    with pytest.raises(ValueError, match="held_out needs targets"):
        DoGE(held_out=True)
    with pytest.raises(ValueError, match="parts must be one of"):
        train(packed, Follow(EVEN), TINY, seed=0, parts=("dev",))


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_two_ranks_are_one(name, packed):
    """gloo, two processes; only the order of sums differs."""
    one = train(packed, RULES[name](packed), TINY, seed=2)
    two = train(packed, RULES[name](packed), replace(TINY, devices=2), seed=2)
    assert two.weights == pytest.approx(one.weights, rel=1e-4)
    assert two.losses["valid"] == pytest.approx(one.losses["valid"], rel=1e-4, nan_ok=True)
    assert two.epochs == one.epochs
    assert two.tokens == one.tokens
