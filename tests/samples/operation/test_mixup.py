import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import omnimix as om
from omnimix.core.operation import blend

X = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
LOGITS = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
Y = torch.tensor([0, 2])
SWAP = torch.tensor([1, 0])


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shares_of_one_and_zero_are_exact():
    x, y, partner = torch.randn(7, 3, 5, generator=draw()), torch.arange(7) % 3, torch.randperm(7, generator=draw(1))
    logits = torch.randn(7, 3, generator=draw(2))
    own, other = om.mixup(x, y, lam=1.0, partner=partner), om.mixup(x, y, lam=0.0, partner=partner)
    assert torch.equal(own.x, x)
    assert torch.equal(other.x, x[partner])
    torch.testing.assert_close(own.loss(F.cross_entropy, logits), F.cross_entropy(logits, y))
    torch.testing.assert_close(other.loss(F.cross_entropy, logits), F.cross_entropy(logits, y[partner]))


def test_hand_computed_inputs():
    mixed = om.mixup(X, Y, lam=0.25, partner=SWAP)
    assert mixed.x.tolist() == [[2.5, 5.0], [1.5, 3.0]]


def test_hand_computed_losses():
    mixed = om.mixup(X, Y, lam=0.25, partner=SWAP)
    parts = [F.cross_entropy(LOGITS, y, reduction="none") for y in (Y, Y[SWAP])]
    torch.testing.assert_close(torch.stack(parts), torch.tensor([[1.407606, 0.551445], [2.407606, 1.551445]]))
    for target in ("two-part", "soft"):
        assert mixed.loss(F.cross_entropy, LOGITS, target).item() == pytest.approx(1.729525, abs=1e-6)


def test_squared_error_of_two_parts_exceeds_the_soft_one_by_the_identity():
    y = torch.randn(9, 2, generator=draw())
    mixed = om.mixup(torch.randn(9, 4, generator=draw(1)), y, lam=0.3, generator=draw(2))
    output = torch.randn(9, 2, generator=draw(3))
    gap = mixed.loss(F.mse_loss, output, "two-part") - mixed.loss(F.mse_loss, output, "soft")
    partner = mixed.recipe.partner[:, 1]
    torch.testing.assert_close(gap, 0.3 * 0.7 * (y - y[partner]).square().mean())
    torch.testing.assert_close(mixed.loss(F.mse_loss, output), mixed.loss(torch.nn.MSELoss(), output, "soft"))


def test_batch_mean_is_kept_and_labels_sum_to_one():
    x, y = torch.randn(16, 3, 4, 4, generator=draw()), torch.arange(16) % 5
    mixed = om.mixup(x, y, alpha=0.7, generator=draw(1))
    torch.testing.assert_close(mixed.x.mean(dim=0), x.mean(dim=0))
    torch.testing.assert_close(mixed.soft_target(5).sum(dim=1), torch.ones(16))
    torch.testing.assert_close(mixed.recipe.share.sum(dim=1), torch.ones(16))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_lam_is_beta_distributed(alpha):
    lam = om.mixup(torch.zeros(4000, 1), torch.zeros(4000), alpha, per_sample=True, generator=draw()).recipe.lam
    assert stats.kstest(lam.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_lam_of_extreme_alpha():
    def lams(alpha):
        return om.mixup(torch.zeros(500, 1), torch.zeros(500), alpha, per_sample=True, generator=draw()).recipe.lam

    assert ((lams(1e-3) - 0.5).abs() > 0.49).float().mean() > 0.95
    assert torch.equal(lams(0.0), torch.ones(500))
    assert (lams(1e6) - 0.5).abs().max() < 0.01
    assert torch.equal(lams(float("inf")), torch.full((500,), 0.5))


def test_one_lam_a_batch_or_one_a_sample():
    x, y = torch.randn(50, 2, generator=draw()), torch.zeros(50)
    assert om.mixup(x, y, generator=draw()).recipe.lam.unique().numel() == 1
    assert om.mixup(x, y, per_sample=True, generator=draw()).recipe.lam.unique().numel() == 50


def test_the_permutation_is_uniform_and_may_have_fixed_points():
    found = [
        tuple(om.mixup(X[[0, 1, 1]], Y[[0, 1, 1]], generator=g).recipe.partner[:, 1].tolist()) for g in [draw(3)] * 1200
    ]
    counts = [found.count(p) for p in sorted(set(found))]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 0.01


def test_numbers_of_the_reference_code():
    # mixup_data and mixup_criterion of facebookresearch/mixup-cifar10 on these draws
    x, y = (torch.arange(15.0).reshape(5, 3) ** 2) / 50, torch.tensor([0, 2, 1, 2, 0])
    mixed = om.mixup(x, y, lam=0.34029683942911143, partner=torch.tensor([1, 0, 3, 4, 2]))
    expected = [
        [0.118747, 0.217911, 0.357075],
        [0.061253, 0.122089, 0.222925],
        [1.313733, 1.652897, 2.032062],
        [2.451226, 2.910390, 3.409555],
        [1.455041, 1.796712, 2.178384],
    ]
    torch.testing.assert_close(mixed.x, torch.tensor(expected))
    logits = mixed.x @ torch.arange(9.0).reshape(3, 3).sin()
    assert mixed.loss(F.cross_entropy, logits).item() == pytest.approx(1.4361035823822021, rel=1e-6)


def test_gradient_to_lam():
    x, y = torch.randn(6, 4, generator=draw()), torch.arange(6) % 3
    partner, weight = torch.randperm(6, generator=draw(1)), torch.randn(4, 3, generator=draw(2))

    def loss(lam):
        mixed = om.mixup(x, y, lam=lam, partner=partner)
        return mixed.loss(F.cross_entropy, mixed.x @ weight), mixed.x

    lam = torch.tensor(0.4, requires_grad=True)
    value, mixed_x = loss(lam)
    by_lam, by_x = torch.autograd.grad(value, (lam, mixed_x))
    logits = mixed_x @ weight
    by_hand = F.cross_entropy(logits, y) - F.cross_entropy(logits, y[partner]) + (by_x * (x - x[partner])).sum()
    torch.testing.assert_close(by_lam, by_hand)
    differences = (loss(0.41)[0] - loss(0.39)[0]) / 0.02
    torch.testing.assert_close(by_lam, differences, rtol=1e-2, atol=1e-3)


def test_gradient_reaches_both_partners():
    x = torch.randn(5, 3, 2, generator=draw(), dtype=torch.float64, requires_grad=True)
    partner, weight = torch.tensor([3, 0, 2, 1, 1]), torch.rand(5, 1, 1, generator=draw(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t, w: blend(t, partner, w), (x, weight.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x = torch.randn(8, 3, 4, 4, generator=draw())
    half = om.mixup(x.to(dtype), torch.arange(8), generator=draw(1))
    full = om.mixup(x, torch.arange(8), generator=draw(1))
    assert half.x.dtype == dtype
    torch.testing.assert_close(half.x.float(), full.x, atol=0.03, rtol=0.03)


def test_channels_last_is_kept():
    x = torch.randn(6, 3, 5, 7, generator=draw())
    plain, last = (
        om.mixup(t, torch.arange(6), generator=draw(1)).x for t in (x, x.to(memory_format=torch.channels_last))
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_every_tensor_of_a_tree_gets_the_same_mix():
    x = {"image": torch.randn(5, 3, 2, 2, generator=draw()), "meta": [torch.randn(5, generator=draw(1))]}
    mixed = om.mixup(x, torch.arange(5), per_sample=True, generator=draw(2))
    lam, partner = mixed.recipe.lam, mixed.recipe.partner[:, 1]
    meta = x["meta"][0]
    torch.testing.assert_close(mixed.x["meta"][0], lam * meta + (1 - lam) * meta[partner])
    own, guest = x["image"].flatten(1), x["image"].flatten(1)[partner]
    torch.testing.assert_close(mixed.x["image"].flatten(1), lam[:, None] * own + (1 - lam[:, None]) * guest)


def test_three_samples_mixed_into_one():
    x, y = torch.randn(6, 4, generator=draw()), torch.arange(6) % 3
    mixed = om.mixup(x, y, k=3, per_sample=True, generator=draw(1))
    recipe = mixed.recipe
    assert recipe.partner.shape == (6, 3)
    torch.testing.assert_close(recipe.share.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(mixed.x, (recipe.share.unsqueeze(2) * x[recipe.partner]).sum(dim=1))
    expected = (recipe.share.unsqueeze(2) * F.one_hot(y, 3)[recipe.partner]).sum(dim=1)
    torch.testing.assert_close(mixed.soft_target(3), expected)


def test_soft_multi_label_and_real_targets():
    x, output = torch.randn(6, 4, generator=draw()), torch.randn(6, 3, generator=draw(1))
    ids = torch.arange(6) % 3
    hard, soft = (om.mixup(x, y, lam=0.3, generator=draw(2)) for y in (ids, F.one_hot(ids, 3).float()))
    torch.testing.assert_close(hard.loss(F.cross_entropy, output), soft.loss(F.cross_entropy, output))
    labels = (torch.rand(6, 3, generator=draw(3)) > 0.5).float()
    many = om.mixup(x, labels, lam=0.3, generator=draw(2))
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(many.loss(bce, output), bce(output, many.soft_target()))
    torch.testing.assert_close(many.loss(bce, output, "two-part"), many.loss(bce, output, "soft"))
    real = om.mixup(x, output[:, 0], lam=0.3, generator=draw(2))
    partner = real.recipe.partner[:, 1]
    torch.testing.assert_close(real.soft_target(), 0.3 * output[:, 0] + 0.7 * output[partner, 0])


def test_a_batch_of_one_mixes_with_itself():
    x = torch.randn(1, 3, generator=draw())
    mixed = om.mixup(x, torch.tensor([2]), generator=draw())
    assert torch.equal(mixed.x, x)


def test_inputs_and_global_randomness_stay_as_they_are():
    x, y = torch.randn(6, 3), torch.arange(6)
    kept = x.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    om.mixup(x, y)
    assert torch.equal(x, kept)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()


def test_weighted_cross_entropy():
    criterion = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5]))
    logits, y = torch.randn(6, 3, generator=draw()), torch.arange(6) % 3
    alone = om.mixup(logits, y, lam=1.0, generator=draw(1))
    torch.testing.assert_close(alone.loss(criterion, logits), criterion(logits, y))
    mixed = om.mixup(logits, y, lam=0.3, generator=draw(1))
    other = y[mixed.recipe.partner[:, 1]]
    weight, plain = criterion.weight, torch.nn.CrossEntropyLoss(reduction="none")
    top = 0.3 * weight[y] * plain(logits, y) + 0.7 * weight[other] * plain(logits, other)
    expected = top.sum() / (0.3 * weight[y] + 0.7 * weight[other]).sum()
    torch.testing.assert_close(mixed.loss(criterion, logits), expected)


def test_dense_labels():
    logits, y = torch.randn(4, 3, 5, 6, generator=draw()), torch.randint(3, (4, 5, 6), generator=draw(1))
    mixed = om.mixup(torch.randn(4, 1, 5, 6), y, lam=0.3, generator=draw(2))
    other = y[mixed.recipe.partner[:, 1]]
    expected = 0.3 * F.cross_entropy(logits, y) + 0.7 * F.cross_entropy(logits, other)
    torch.testing.assert_close(mixed.loss(F.cross_entropy, logits), expected)
    torch.testing.assert_close(mixed.loss(F.cross_entropy, logits, "soft"), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 2, dtype=torch.uint8)}, "floating point"),
        ({"alpha": -1.0}, "alpha"),
        ({"lam": 1.5}, "lam"),
        ({"lam": torch.tensor([0.1, 0.2, 0.3])}, "lam"),
        ({"partner": torch.tensor([0, 2])}, "partner"),
        ({"partner": torch.tensor([0])}, "partner"),
        ({"k": 1}, "k"),
        ({"y": torch.tensor([0])}, "rows"),
        ({"x": torch.zeros(0, 2), "y": torch.zeros(0)}, "empty"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        om.mixup(**{"x": X, "y": Y, **arguments})


def test_the_method_is_the_function_on_the_same_draws():
    x, y, model = torch.randn(6, 4, generator=draw()), torch.arange(6) % 3, torch.nn.Linear(4, 3)
    method = om.create("mixup", alpha=0.4).setup(model, om.Classification(3), generator=draw(1))
    mixed = om.mixup(x, y, alpha=0.4, generator=draw(1))
    torch.testing.assert_close(method.loss(model, (x, y)), mixed.loss(F.cross_entropy, model(mixed.x)))


@pytest.mark.parametrize("function", [om.mixup, om.cutmix])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("side", [8, 160])  # small boxes by a mask, large ones one by one
def test_in_place_gives_the_same_in_the_callers_own_tensor(function, per_sample, side):
    x, y = torch.rand(6, 3, side, side), torch.arange(6)
    apart = function(x.clone(), y, per_sample=per_sample, generator=torch.Generator().manual_seed(3))
    kept = x.clone()
    mixed = function(kept, y, per_sample=per_sample, generator=torch.Generator().manual_seed(3), inplace=True)
    assert mixed.x is kept
    assert not torch.equal(kept, x)
    torch.testing.assert_close(kept, apart.x)
    torch.testing.assert_close(mixed.recipe.share, apart.recipe.share)


def test_in_place_is_refused_where_the_inputs_are_needed():
    x, y = torch.rand(4, 3, 8, 8, requires_grad=True), torch.arange(4)
    for function in (om.mixup, om.cutmix):
        with pytest.raises(ValueError, match="inplace"):
            function(x, y, inplace=True)
    with pytest.raises(ValueError, match="k = 3"):
        om.mixup(x.detach(), y, k=3, inplace=True)
