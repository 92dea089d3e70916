import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.operation import Interpolate, Operation
from omnimix.core.ratio import Constant
from omnimix.samples.objective import RegMixup, regmixup


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(rows=10):
    return torch.randn(rows, 4, generator=seeded(5)), torch.arange(rows) % 3


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(4, 3)


PARTNER = torch.tensor([3, 1, 0, 2, 9, 8, 4, 5, 6, 7])


def parts(model, lam):
    x, y = batch()
    output = model(lam * x + (1 - lam) * x[PARTNER])
    mixed = lam * F.cross_entropy(output, y) + (1 - lam) * F.cross_entropy(output, y[PARTNER])
    return F.cross_entropy(model(x), y), mixed


@pytest.mark.parametrize("lam", [0.0, 0.31, 0.5, 1.0])
def test_the_mean_over_2n_rows_is_half_the_sum_of_both_losses(lam):
    model, (x, y) = linear(), batch()
    clean, mix = parts(model, lam)
    mixed = regmixup(x, y, lam=lam, partner=PARTNER)
    assert mixed.x.shape == (20, 4)
    assert torch.equal(mixed.x[:10], x)
    assert torch.allclose(mixed.loss(F.cross_entropy, model(mixed.x)), (clean + mix) / 2, atol=1e-6)


def drawn(model, **options):
    """The loss of the method, and the clean and mixed parts for the same draws."""
    method = RegMixup(**options).setup(model, om.Classification(3), generator=seeded(1))
    x, y = batch()
    loss = method.loss(model, (x, y))
    twin = om.Mix(ratio=om.Beta(options.get("alpha", 20.0))).setup(model, om.Classification(3), generator=seeded(1))
    return loss, twin.plain_loss(model, om.Batch(x, y)), twin.loss(model, (x, y))


def test_reductions_and_eta():
    loss, clean, mix = drawn(linear())
    assert torch.allclose(loss, (clean + mix) / 2)
    assert torch.allclose(drawn(linear(), reduction="sum")[0], 2 * loss)
    assert torch.allclose(drawn(linear(), eta=0.5)[0], (clean + 0.5 * mix) / 1.5)
    assert torch.allclose(drawn(linear(), eta=0.5, reduction="sum")[0], clean + 0.5 * mix)
    for reduction in ("mean2n", "sum"):
        assert torch.allclose(drawn(linear(), eta=0.0, reduction=reduction)[0], clean)
    assert torch.allclose(drawn(linear(), alpha=0.0)[0], clean)


def test_lam_one_is_clean_and_lam_one_half_symmetric():
    model, (x, y) = linear(), batch()
    mixed = regmixup(x, y, lam=1.0, partner=PARTNER)
    assert torch.allclose(mixed.loss(F.cross_entropy, model(mixed.x)), F.cross_entropy(model(x), y))
    half = regmixup(x, y, lam=0.5, partner=PARTNER)
    assert torch.allclose(half.x[10:], (x + x[PARTNER]) / 2)
    own, other = half.recipe.partner[10:], half.recipe.partner[10:].flip(1)
    logits = torch.randn(10, 3, generator=seeded(2))
    losses = [
        om.Mixed(half.x[10:], y, om.Recipe(rows, half.recipe.share[10:])).loss(F.cross_entropy, logits)
        for rows in (own, other)
    ]
    assert torch.equal(losses[0], losses[1])


def test_the_gradient_at_the_clean_logits_does_not_depend_on_lam():
    x, y = batch()
    gradients = []
    for lam in (0.5, 0.9):
        logits = torch.randn(20, 3, generator=seeded(2)).requires_grad_()
        regmixup(x, y, lam=lam, partner=PARTNER).loss(F.cross_entropy, logits).backward()
        gradients.append(logits.grad)
    assert torch.equal(gradients[0][:10], gradients[1][:10])
    assert not torch.allclose(gradients[0][10:], gradients[1][10:])


def test_batch_norm_sees_clean_and_mixed_rows_in_one_forward_pass():
    model, (x, y) = torch.nn.Sequential(torch.nn.BatchNorm1d(4, affine=False), linear()), batch()
    method = RegMixup().setup(model, om.Classification(3), generator=seeded(1))
    loss = method.loss(model, (x, y))
    assert model[0].num_batches_tracked == 1
    mixed = regmixup(x, y, generator=seeded(1))
    together = mixed.loss(F.cross_entropy, model(mixed.x))
    apart = mixed.loss(F.cross_entropy, torch.cat((model(mixed.x[:10]), model(mixed.x[10:]))))
    assert torch.allclose(loss, together)
    assert not torch.allclose(loss, apart, atol=1e-4)


def test_shares_have_the_variance_of_the_beta_distribution():
    draws = om.Beta(20.0, per_sample=True)(100_000, 2, seeded())[:, 0].double()
    assert draws.var().item() == pytest.approx(1 / (4 * 41), rel=0.03)
    recipe = regmixup(*batch(), generator=seeded()).recipe
    assert len(recipe.share[10:, 0].unique()) == 1  # one lam a batch


class LeftHalf(Operation):
    """Takes the first half of the entries from the sample itself."""

    def __call__(self, x, recipe, context):
        mask = (torch.arange(x.shape[-1]) < x.shape[-1] // 2).float().view(1, 1, -1)
        mixed = mask[0] * x[recipe.partner[:, 0]] + (1 - mask[0]) * x[recipe.partner[:, 1]]
        return mixed, recipe.with_share(torch.full_like(recipe.share, 0.5), mask)


def test_works_with_masking_operations():
    x, y = batch()
    mixed = regmixup(x, y, operation=LeftHalf(), partner=PARTNER)
    assert torch.equal(mixed.x[10:, :2], x[:, :2])
    assert torch.equal(mixed.x[10:, 2:], x[PARTNER][:, 2:])
    assert mixed.recipe.mask.shape == (20, 1, 4)
    assert mixed.recipe.mask[:10].min() == 1
    assert torch.equal(mixed.recipe.mask[10:].mean(dim=(1, 2)), mixed.recipe.share[10:, 0])
    model = linear()
    method = RegMixup(operation=LeftHalf()).setup(model, om.Classification(3), generator=seeded(1))
    functional = regmixup(x, y, operation=LeftHalf(), generator=seeded(1))
    expected = functional.loss(F.cross_entropy, model(functional.x))
    assert torch.allclose(method.loss(model, (x, y)), expected)


def test_regression_multilabel_and_trees():
    x, _ = batch()
    for task, y in (
        (om.Regression(3), torch.randn(10, 3, generator=seeded(7))),
        (om.MultiLabel(3), torch.randint(2, (10, 3), generator=seeded(7)).float()),
    ):
        model = linear()
        loss = RegMixup().setup(model, task, generator=seeded(1)).loss(model, (x, y))
        mixup = om.Mix(ratio=om.Beta(20.0)).setup(model, task, generator=seeded(1)).loss(model, (x, y))
        assert torch.allclose(loss, (task.losses(model(x), y).mean() + mixup) / 2, atol=1e-6)
    tree = regmixup({"a": x, "b": [x[:, :2]]}, torch.arange(10) % 3, generator=seeded(1))
    assert tree.x["b"][0].shape == (20, 2)
    assert torch.equal(tree.x["a"][:, :2], tree.x["b"][0])


def test_partners_may_be_guests():
    class Next(om.RandomPairing):
        def __call__(self, batch, generator):
            return torch.stack((torch.arange(5), torch.arange(5, 10)), 1)

    x, y = batch()
    model = linear()
    method = RegMixup(pairing=Next()).setup(model, om.Classification(3), generator=seeded(1))
    method.ratio = Constant(0.25)
    output = model(0.25 * x[:5] + 0.75 * x[5:])
    mix = 0.25 * F.cross_entropy(output, y[:5]) + 0.75 * F.cross_entropy(output, y[5:])
    expected = (F.cross_entropy(model(x[:5]), y[:5]) + mix) / 2
    assert torch.allclose(method.loss(model, om.Batch(x, y, anchors=5)), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("eta", -0.1), ("reduction", "mean")])
def test_refusals(name, value):
    with pytest.raises(ValueError, match=name):
        RegMixup(**{name: value})


@pytest.mark.parametrize(("reduction", "times"), [("mean2n", 1.0), ("sum", 3.0)])
def test_alpha_zero_is_the_plain_loss_or_a_multiple_of_it(reduction, times):
    model, (x, y) = linear(), batch()
    method = RegMixup(0, eta=2.0, reduction=reduction).setup(model, om.Classification(3), generator=seeded())
    torch.testing.assert_close(method.loss(model, (x, y)), times * F.cross_entropy(model(x), y))


def test_scalars_that_an_operation_leaves_join_the_loss_once():
    class Costly(Interpolate):
        def __call__(self, x, recipe, context):
            context.extra.append(torch.tensor(2.5))
            return super().__call__(x, recipe, context)

    model, task = linear(), om.Classification(3)
    plain, costly = (RegMixup(operation=o).setup(model, task, generator=seeded()) for o in (Interpolate(), Costly()))
    for _ in range(2):
        torch.testing.assert_close(costly.loss(model, batch()), plain.loss(model, batch()) + 2.5)
