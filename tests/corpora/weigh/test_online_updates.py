"""The update rules as functions: hand values of the equations, limiting cases, and float64 numpy over 1,000 steps."""

import math

import numpy as np
import pytest
import torch

from omnimix.corpora.weigh import doge, doremi, group_dro_online, odm, r_and_b


def random_simplex(k, seed):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(k)))


def close(found, wanted, atol=1e-6):
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=atol)


def test_doremi_update_by_hand():
    alpha, lam = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.0, 0.1])
    close(doremi.update(alpha, lam, 1.0, 1e-3), [0.588493, 0.236886, 0.174621])
    close(doremi.update(alpha, lam, 1.0, 1e-2), [0.586194, 0.237755, 0.176051])


def test_excess_is_cut_token_by_token():
    losses, reference = torch.tensor([2.0, 1.0, 3.0, 0.5]), torch.tensor([1.5, 1.4, 3.0, 0.2])
    assert doremi.excess(losses, reference).mean().item() == pytest.approx(0.2)
    assert max(float((losses - reference).mean()), 0) == pytest.approx(0.1)  # what cutting the mean would give


def test_doremi_limits():
    alpha, lam = random_simplex(5, 0), torch.rand(5, dtype=torch.float64)
    close(doremi.update(alpha, lam, 1.0, 1.0), [0.2] * 5, 1e-12)
    torch.testing.assert_close(doremi.update(alpha, lam, 0.0, 0.0), alpha, rtol=0, atol=1e-15)
    torch.testing.assert_close(doremi.update(alpha, lam + 7), doremi.update(alpha, lam), rtol=0, atol=1e-12)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(doremi.update(alpha[order], lam[order]), doremi.update(alpha, lam)[order])
    assert doremi.update(alpha, 1000 * lam, 1.0, 1e-2).min() >= 1e-2 / 5 - 1e-15


def test_doremi_over_a_thousand_steps_is_the_formula_in_numpy():
    lams = np.random.default_rng(1).gamma(1.0, 0.3, size=(1000, 6))
    alpha, mine = np.full(6, 1 / 6), torch.full((6,), 1 / 6, dtype=torch.float64)
    for lam in lams:
        raw = alpha * np.exp(0.7 * lam)
        alpha = (1 - 1e-3) * raw / raw.sum() + 1e-3 / 6
        mine = doremi.update(mine, torch.from_numpy(lam), 0.7, 1e-3)
    np.testing.assert_allclose(mine.numpy(), alpha, rtol=1e-9)


G = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])


def test_doge_scores_and_update_by_hand():
    score = doge.scores(G, G, 5e-4)
    close(score, [0.0, 0.002039, 0.001019])
    close(doge.update(torch.full((3,), 1 / 3), score, 0.01), [0.299987, 0.367832, 0.332182], 2e-6)
    plain = doge.scores(G, G, 1.0, normalize=False, cap=None)
    close(plain, [0.0, 6.0, 3.0])
    alone = doge.scores(G, G, 1.0, normalize=False, cap=None, itself=torch.eye(3, dtype=torch.bool))
    close(alone, [-1.0, 2.0, 1.0])


def test_doge_limits():
    orthogonal, uniform = torch.eye(4) * 3, torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(doge.update(uniform, doge.scores(orthogonal, orthogonal, 0.1), 0.01), uniform)
    assert doge.update(torch.ones(1), doge.scores(G[:1], G[:1], 0.1), 0.01).item() == 1
    start = random_simplex(3, 2)
    torch.testing.assert_close(doge.update(start, doge.scores(G, G, 0.1), 1e12), start)
    score = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    torch.testing.assert_close(doge.update(start, score + 5, 0.1), doge.update(start, score, 0.1))
    against = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert doge.scores(against, against[:1], 0.1)[1] == 0  # harm counts as no effect ...
    assert doge.scores(against, against[:1], 0.1, cap=None)[1] < 0  # ... unless asked otherwise
    assert doge.scores(10 * G, 1000 * G, 0.1).max().item() == pytest.approx(0.5)


def test_a_target_prefers_the_domain_with_its_gradient():
    gradients = torch.nn.functional.normalize(torch.randn(5, 20, generator=torch.Generator().manual_seed(0)), dim=1)
    assert doge.scores(gradients, gradients[3:4], 0.1, cap=None).argmax() == 3


def test_doge_over_a_thousand_steps_is_the_formula_in_numpy():
    random = np.random.default_rng(3)
    alpha, mine = np.full(4, 0.25), torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(1000):
        g = random.normal(size=(4, 7)) + 0.3
        lr = random.uniform(1e-4, 5e-4)
        score = lr * (g @ g.T).sum(1) / (np.linalg.norm(g, axis=1).mean() + 1e-6)
        raw = alpha * np.exp(np.clip(score, 0, 5 * lr) / 0.05)
        alpha = raw / raw.sum()
        mine = doge.update(mine, doge.scores(torch.from_numpy(g), torch.from_numpy(g), lr), 0.05)
    np.testing.assert_allclose(mine.numpy(), alpha, rtol=1e-9)


def test_the_gain_is_the_slope_of_the_look_ahead():
    """d/d alpha_j of sum_i l_i(theta - lr sum_j alpha_j g_j) = -lr W_j, for quadratics with their own optima."""
    optima = torch.randn(3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    theta, lr, alpha = torch.zeros(5, dtype=torch.float64), 1e-5, torch.full((3,), 1 / 3, dtype=torch.float64)
    g = theta - optima

    def ahead(alpha):
        return 0.5 * (theta - lr * alpha @ g - optima).square().sum()

    slope = torch.autograd.functional.jacobian(ahead, alpha)
    torch.testing.assert_close(slope, -doge.scores(g, g, lr, normalize=False, cap=None), rtol=1e-3, atol=0)


def test_cut_and_cancellation():
    norms = doge.cut(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.5]))
    assert doge.cancellation(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == 1
    assert doge.cancellation(torch.tensor([[1.0, 1.0], [2.0, 2.0]])).item() == pytest.approx(0, abs=1e-6)


def test_r_and_b_by_hand():
    gram = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
    v = gram @ torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    close(v, [2.25, 0.75, 0.0])
    close(r_and_b.balance(v, 3.0), [0.827790, 0.124138, 0.048072], 1e-5)


def test_gram_is_of_means_and_a_domain_without_samples_is_no_nan():
    sums = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 0.0]])
    found = r_and_b.gram(sums, torch.tensor([2, 3, 0]))
    close(found, [[1.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


def test_balance_limits():
    v = torch.randn(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.testing.assert_close(r_and_b.balance(v, 0.0), torch.full((6,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(r_and_b.balance(17 * v), r_and_b.balance(v))
    torch.testing.assert_close(r_and_b.balance(v.flip(0)), r_and_b.balance(v).flip(0))
    torch.testing.assert_close(r_and_b.balance(0 * v), torch.full((6,), 1 / 6, dtype=torch.float64))
    assert r_and_b.balance(v).max() / r_and_b.balance(v).min() <= math.exp(6) + 1e-9


def test_clusters_with_the_same_data_get_the_same_weight_and_a_cluster_under_two_ids_splits():
    draw = torch.Generator().manual_seed(3)
    sums, counts = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64), torch.tensor([6, 4, 2])
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    same = torch.stack([sums[0], sums[0], sums[2]])
    w = r_and_b.balance(r_and_b.gram(same, torch.tensor([6, 6, 2])) @ q)
    assert w[0] == pytest.approx(w[1].item(), abs=1e-12)
    # a third of the samples of the first cluster under another id: its gradient sum and its share of q split likewise
    two = torch.cat([sums[:1] * 2 / 3, sums[:1] / 3, sums[1:]])
    v = r_and_b.gram(two, torch.tensor([4, 2, 4, 2])) @ torch.tensor([1 / 3, 1 / 6, 0.3, 0.2], dtype=torch.float64)
    torch.testing.assert_close(v[[0, 2, 3]], r_and_b.gram(sums, counts) @ q)
    assert v[0] == pytest.approx(v[1].item(), abs=1e-12)


def test_odm_policy_by_hand():
    """k = 2, t = 3: eps_3 = sqrt(ln 2 / 6) = .339889, eps_2 = sqrt(ln 2 / 4) = .416277; R = (1, 3)."""
    assert odm.exploration(3, 2) == pytest.approx(0.339889, abs=1e-6)
    assert odm.exploration(1, 24) == pytest.approx(1 / 24)  # 1/k is the largest
    share = 1 / (1 + math.exp(0.416277 * 2))
    found = odm.policy(torch.tensor([1.0, 3.0]), odm.exploration(3, 2), odm.exploration(2, 2))
    close(found, [(1 - 2 * 0.339889) * share + 0.339889, (1 - 2 * 0.339889) * (1 - share) + 0.339889], 1e-5)
    assert odm.policy(torch.zeros(5), 0.1, 0.2).tolist() == pytest.approx([0.2] * 5)


def test_group_dro_gaps_and_update_by_hand():
    losses, targets = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 2.5, 1.0])
    assert group_dro_online.excess_gap(losses, targets).tolist() == [1.0, 0.0, 0.0]
    initial = torch.tensor([6.0, 4.0, 5.0])
    assert group_dro_online.velocity_gap(losses, targets, initial).tolist() == [0.25, 0.0, 0.0]
    e = math.exp(0.5)
    close(
        group_dro_online.update(torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, 0.0, 0.0]), 0.5),
        [0.2 * e / (0.2 * e + 0.8), 0.3 / (0.2 * e + 0.8), 0.5 / (0.2 * e + 0.8)], 1e-7,
    )  # fmt: skip


def steps(k):
    """The update of every method as (weights, signal) -> weights."""
    return {
        "doremi": lambda w, s: doremi.update(w, s),
        "doge": lambda w, s: doge.update(w, s, 0.5),
        "group-dro": lambda w, s: group_dro_online.update(w, s, 1.0, 1e-3),
        "r-and-b": lambda w, s: r_and_b.balance(s),
        "odm": lambda w, s: odm.policy(s, 0.5 / k, 0.3),
    }


@pytest.mark.parametrize("name", steps(4))
def test_equal_signals_keep_uniform_weights_and_one_larger_raises_that_domain_only(name):
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    step = steps(4)[name]
    torch.testing.assert_close(step(uniform, torch.full((4,), 0.7)), uniform)
    moved = step(uniform, torch.tensor([0.7, 0.7, 1.0, 0.7]))
    assert moved.argmax() == 2
    assert moved[0] == moved[1] == moved[3] < 0.25 < moved[2]


@pytest.mark.parametrize("name", steps(4))
def test_weights_stay_in_the_simplex_over_ten_thousand_random_updates(name):
    step, weights = steps(4)[name], torch.full((4,), 0.25, dtype=torch.float64)
    signals = torch.rand(10_000, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for signal in signals:
        weights = step(weights, signal)
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
