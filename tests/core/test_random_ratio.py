import random

import numpy as np
import pytest
import torch
from scipy import stats

from omnimix.core.random import default_generator, dirichlet, permutation
from omnimix.core.ratio import Beta, Constant, as_share


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_beta_draws_follow_the_beta_distribution(alpha):
    lam = dirichlet(alpha, 20_000, 2, generator())[:, 0].numpy()
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_dirichlet_marginals_for_three_samples():
    share = dirichlet(0.7, 20_000, 3, generator(1))
    assert torch.allclose(share.sum(dim=1), torch.ones(20_000, dtype=torch.float64))
    for k in range(3):
        assert stats.kstest(share[:, k].numpy(), stats.beta(0.7, 1.4).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
def test_tiny_alpha_gives_zeros_and_ones_not_nan(alpha):
    lam = dirichlet(alpha, 5_000, 2, generator())[:, 0]
    assert ((lam - 0.5).abs() > 0.49).double().mean() > 0.98
    assert 0.45 < lam.mean() < 0.55


def test_large_and_infinite_alpha_is_the_midpoint():
    assert (dirichlet(1e8, 100, 2, generator()) - 0.5).abs().max() < 1e-3
    assert (dirichlet(float("inf"), 3, 2, generator()) == 0.5).all()


def test_alpha_zero_is_no_mixing():
    assert (Beta(0)(4, 2, generator()) == torch.tensor([1.0, 0.0])).all()


def test_per_batch_is_one_draw_and_shares_are_complementary():
    share = Beta(1.0)(6, 2, generator())
    assert (share == share[0]).all()
    assert (share[:, 1] == 1 - share[:, 0]).all()
    assert Beta(1.0, per_sample=True)(6, 2, generator())[:, 0].unique().numel() == 6


def test_fold_gives_the_sample_itself_the_larger_share():
    assert (Beta(0.5, per_sample=True, fold=True)(1_000, 2, generator())[:, 0] >= 0.5).all()


def test_constant_splits_the_rest_equally():
    assert torch.allclose(Constant(0.4)(2, 4, generator()), torch.tensor([[0.4, 0.2, 0.2, 0.2]] * 2))


@pytest.mark.parametrize("value", [-1, float("nan"), "a", True])
def test_bad_alpha_is_refused_by_name_and_value(value):
    with pytest.raises(ValueError, match=r"alpha must be a number >= 0, got"):
        Beta(value)


def test_given_lam_is_checked():
    assert torch.equal(as_share(0.25, 2, torch.device("cpu")), torch.tensor([[0.25, 0.75]] * 2))
    with pytest.raises(ValueError, match=r"lam must lie in \[0, 1\], got 1.5"):
        as_share(1.5, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="one value per sample"):
        as_share(torch.rand(3), 2, torch.device("cpu"))


def test_default_generator_follows_manual_seed_and_leaves_global_streams_alone():
    with torch.random.fork_rng():
        torch.manual_seed(918_273)
        before, numpy_before, python_before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        first = permutation(50, default_generator())
        assert torch.equal(before, torch.get_rng_state())
        assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002
        assert python_before == random.getstate()
        with torch.random.fork_rng():
            torch.manual_seed(918_274)
            other = permutation(50, default_generator())
        second = permutation(50, default_generator())
    own = torch.Generator().manual_seed(918_273)
    assert torch.equal(first, torch.randperm(50, generator=own))
    assert not torch.equal(first, other)
    assert torch.equal(second, torch.randperm(50, generator=own))  # a seed set in between does not restart the stream
