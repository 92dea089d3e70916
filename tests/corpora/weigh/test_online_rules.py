"""The rules on one batch: the gradients that they leave, against autograd and loops; domains that a batch lacks."""

import math

import pytest
import torch

from omnimix.corpora.proxy import Setting, Step
from omnimix.corpora.weigh.doge import DoGE
from omnimix.corpora.weigh.doremi import DoReMi, update
from omnimix.corpora.weigh.odm import ODM
from omnimix.corpora.weigh.r_and_b import RAndB
from omnimix.networks.language_model import IGNORED, LanguageModel, token_losses

V, K = 11, 3


def model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LanguageModel(V, width=8, layers=1, heads=2).double()
        for p in made.parameters():  # larger than the initial weights, so that gradients are no rounding
            p.data += 0.3 * torch.randn_like(p)
        return made


def batch(domains=(0, 0, 1, 2, 1), network=None, number=0, lr=0.1):
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randint(V, (len(domains), 6), generator=draw)
    targets = torch.randint(V, (len(domains), 6), generator=draw)
    targets[1, 4:] = IGNORED
    return Step(
        network or model(), inputs, targets, torch.tensor(domains), K, lr, number,
        total=lambda value: value, forward=lambda m, x: m(x),
    )  # fmt: skip


def ready(rule, k=K):
    names = tuple("abcdefgh"[:k])
    rule.setup(Setting(names, V, dict.fromkeys(names, 100), 10, 6, torch.device("cpu"), lambda: torch.ones(k).double()))
    return rule


def means(step):
    """Mean token loss of every domain, and the gradient of each, by plain autograd."""
    losses = token_losses(step.model(step.inputs), step.targets)
    parameters = list(step.model.parameters())
    found, gradients = [], []
    for domain in range(K):
        rows = step.domain == domain
        mean = losses[rows].sum() / (step.targets[rows] != IGNORED).sum()
        found.append(mean.item())
        parts = torch.autograd.grad(mean, parameters, retain_graph=True)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return torch.tensor(found), torch.stack(gradients)


def left(step):
    return torch.cat([p.grad.flatten() for p in step.model.parameters()])


def test_doremi_leaves_the_gradient_of_the_weighted_domain_means():
    step, rule = batch(), ready(DoReMi(model(5)))
    _, gradients = means(step)
    sums, tokens = rule.backward(step)
    assert tokens.tolist() == [10, 12, 6]
    torch.testing.assert_close(left(step), rule.weights @ gradients, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        own = token_losses(model(5)(step.inputs), step.targets)
        mine = token_losses(step.model(step.inputs), step.targets)
    gain = (mine - own).clamp(min=0).double().sum(1)
    lam = torch.stack([gain[step.domain == d].sum() for d in range(K)]) / tokens
    torch.testing.assert_close(rule.weights, update(torch.full((K,), 1 / 3), lam), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sums, torch.stack([mine[step.domain == d].double().sum() for d in range(K)]))


def test_the_released_doremi_weighs_tokens():
    step, rule = batch(), ready(DoReMi(model(5), reference_code=True))
    _, gradients = means(step)
    _, tokens = rule.backward(step)
    share = rule.weights * tokens
    torch.testing.assert_close(left(step), share / share.sum() @ gradients, rtol=1e-5, atol=1e-6)


def test_doremi_keeps_the_score_of_a_domain_that_a_batch_lacks():
    rule = ready(DoReMi(model(5)))
    rule.backward(batch((0, 0, 1, 1, 1)))
    assert rule.lam[2].item() == pytest.approx(math.log(V))
    rule.backward(batch((2, 0, 1, 1, 1)))
    seen = rule.lam[2].item()
    rule.backward(batch((0, 0, 1, 1, 1)))
    assert rule.lam[2].item() == seen != pytest.approx(math.log(V))
    rule = ready(DoReMi(model(5), absent="zero"))
    rule.backward(batch((0, 0, 1, 1, 1)))
    assert rule.lam[2].item() == 0


def test_the_mean_has_the_initial_weights_only_as_released():
    for released, first in ((False, []), (True, [torch.full((K,), 1 / 3).double()])):
        rule, seen = ready(DoReMi(model(5), reference_code=released)), list(first)
        for _ in range(3):
            rule.backward(batch())
            rule.note()
            seen.append(rule.weights)
        torch.testing.assert_close(rule.result(), torch.stack(seen).mean(0))


def test_doremi_with_one_domain_is_plain_training_bit_for_bit():
    step, plain = batch((0,) * 5), batch((0,) * 5)
    step.k = 1
    rule = ready(DoReMi(model(5)), k=1)
    rule.backward(step)
    plain.k = 1
    plain.backward(plain.losses(), 1 / plain.tokens())
    assert torch.equal(left(step), left(plain))


def test_doge_leaves_the_weighted_sum_of_domain_gradients():
    step = batch()
    _, gradients = means(step)
    rule = ready(DoGE(max_norm=None))
    rule.backward(step)
    torch.testing.assert_close(left(step), rule.weights @ gradients, rtol=1e-4, atol=1e-5)
    score = 0.1 * (gradients @ gradients.T).sum(1) / (gradients.norm(dim=1).mean() + 1e-6)
    wanted = torch.softmax(score.clamp(0, 0.5) / 0.01, 0)
    torch.testing.assert_close(rule.weights, wanted, rtol=1e-4, atol=1e-6)


def test_doge_does_not_train_on_a_held_out_target():
    step = batch()
    _, gradients = means(step)
    rule = ready(DoGE(["b"], held_out=True, max_norm=None, cap=None))
    rule.backward(step)
    assert rule.weights[1] == 0
    assert rule.weights.sum().item() == pytest.approx(1)
    gain = gradients[[0, 2]] @ gradients[1]
    assert (rule.weights[0] > rule.weights[2]) == (gain[0] > gain[1])
    torch.testing.assert_close(left(step), rule.weights @ gradients, rtol=1e-4, atol=1e-5)


def test_doge_and_a_domain_that_a_batch_lacks():
    lacking = (0, 0, 1, 1, 1)
    with pytest.raises(ValueError, match="a batch lacks c: set absent"):
        ready(DoGE()).backward(batch(lacking))
    step = batch(lacking)
    rule = ready(DoGE(absent="zero", max_norm=None, include_self=False, cap=None))
    rule.backward(step)
    assert torch.isfinite(left(step)).all()
    stale = ready(DoGE(absent="last", max_norm=None))
    stale.backward(batch())
    before = stale.last[2].clone()
    stale.backward(batch(lacking))
    assert torch.equal(stale.last[2], before)


def test_doge_may_look_at_some_modules_only():
    step = batch()
    _, gradients = means(step)
    rule = ready(DoGE(modules=["embed"], max_norm=None, cap=None))
    rule.backward(step)
    some = gradients[:, : step.model.embed.weight.numel()]
    score = 0.1 * (some @ some.T).sum(1) / (some.norm(dim=1).mean() + 1e-6)
    torch.testing.assert_close(rule.weights, torch.softmax(score / 0.01, 0), rtol=1e-4, atol=1e-6)
    few = ready(DoGE(modules="least-cancelling:1"))
    few.backward(batch())
    with pytest.raises(ValueError, match="chooses none of embed"):
        ready(DoGE(modules=["nothing"])).backward(batch())


@pytest.mark.parametrize("tied", [True, False])
def test_r_and_b_sums_are_those_of_backward_passes_sample_by_sample(tied):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LanguageModel(V, width=8, layers=1, heads=2, tied=tied).double()
    step, rule = batch(network=network), ready(RAndB(every=5))
    rule.backward(step)
    wanted = torch.zeros(K, *network.head.weight.shape, dtype=torch.float64)
    for row in range(5):
        weight = network.head.weight.detach().clone().requires_grad_()
        logits = network.features(step.inputs[row : row + 1]).detach() @ weight.T
        token_losses(logits, step.targets[row : row + 1]).sum().backward()
        wanted[step.domain[row]] += weight.grad
    torch.testing.assert_close(rule.sums.double(), wanted, rtol=1e-4, atol=1e-6)
    assert rule.counts.tolist() == [2, 2, 1]


def test_what_is_padded_adds_nothing_to_r_and_b():
    def sums(inputs_of_padding, dropped=0):
        rule, step = ready(RAndB(every=5)), batch()
        step.inputs[1, 4:] = inputs_of_padding
        step.targets[:, 6 - dropped :] = IGNORED
        rule.backward(step)
        return rule.sums

    torch.testing.assert_close(sums(0), sums(3))
    rule, short = ready(RAndB(every=5)), batch()
    short.inputs, short.targets = short.inputs[:, :4], short.targets[:, :4]
    rule.backward(short)
    torch.testing.assert_close(sums(0, dropped=2), rule.sums)


def test_r_and_b_rounds():
    rule = ready(RAndB({"a": 1.0}, every=2))
    rule.backward(batch(number=0))
    assert rule.weights.tolist() == pytest.approx([1 / 3] * 3)
    rule.backward(batch(number=1))
    assert rule.weights.argmax() == 0  # its own gradient agrees with itself most
    assert rule.sums is None
    v = rule.v.clone()
    for number in (2, 3):
        rule.backward(batch((0, 0, 1, 1, 1), number=number))
    assert rule.v[2] == v[2]
    assert torch.isfinite(rule.weights).all()
    assert (rule.weights > 0).all()


def test_r_and_b_targets_are_checked():
    with pytest.raises(ValueError, match="target must be one of 'a', 'b', 'c'"):
        ready(RAndB({"z": 1.0}))
    with pytest.raises(ValueError, match="some share of target must be > 0"):
        ready(RAndB({"a": 0.0}))


def test_odm_rewards_the_domains_of_the_batch_only():
    rule = ready(ODM(alpha=0.9))
    sums, tokens = rule.backward(batch((0, 0, 1, 1, 1)))
    assert rule.reward[2] == 0
    torch.testing.assert_close(rule.reward[:2], 0.1 * 3 * (sums / tokens.clamp(min=1))[:2])
    assert rule.weights.tolist() == pytest.approx([1 / 3] * 3)  # eps_1 = 1/k: all exploration
    for number in range(1, 30):
        rule.backward(batch((0, 0, 1, 1, 1), number=number))
    assert rule.weights[2] < 1 / 3
    rule.backward(batch((2, 0, 1, 1, 1), number=30))
    seen = rule.reward[2].item()
    rule.backward(batch((0, 0, 1, 1, 1), number=31))
    assert rule.reward[2].item() == seen > 0
    released = ready(ODM(accumulate=True))
    sums, tokens = released.backward(batch((0, 0, 1, 1, 1)))
    torch.testing.assert_close(released.reward[0], 3 * sums[0] / tokens[0] / 10)
