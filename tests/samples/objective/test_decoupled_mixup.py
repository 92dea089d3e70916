import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.recipe import Recipe
from omnimix.samples.objective import Decoupled, DecoupledBCE, decoupled_loss, two_hot_target

HAND = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(lam, rows=1):
    """Row i is mixed with row i + rows of 2 * rows labels."""
    own = torch.arange(rows)
    share = torch.as_tensor(lam, dtype=torch.float32).expand(rows)
    return Recipe(torch.stack((own, own + rows), 1), torch.stack((share, 1 - share), 1))


def random_batch(rows=64, classes=7, lam=None, seed=0):
    draw = seeded(seed)
    logits = 3 * torch.randn(rows, classes, generator=draw)
    y = torch.randint(classes, (2 * rows,), generator=draw)
    return logits, y, pair(torch.rand(rows, generator=draw) if lam is None else lam, rows)


def brute_force(z, ids, shares, eta, threshold=1.0, power=0.0):
    """The definition, one row at a time with probabilities: exact enough for small logits."""
    p, lam = z.double().softmax(0), {}
    for c, s in zip(ids, shares, strict=True):
        lam[c] = lam.get(c, 0.0) + s
    loss = -sum(s * p[c].log() for c, s in lam.items())
    if len(lam) > 1:
        for c, s in lam.items():
            others = sum(p[o] for o in lam if o != c)
            weight = eta * (1.0 if s >= threshold else (s / threshold) ** power)
            loss = loss - weight * (p[c] / (1 - others)).log()
    return float(loss)


def test_hand_values():
    y, recipe = torch.tensor([0, 1]), pair(0.7)
    mce = decoupled_loss(HAND, y, recipe, eta=0.0)
    assert mce.item() == pytest.approx(0.740190, abs=1e-6)
    only_a = decoupled_loss(HAND, y, recipe, eta=1.0, select="more") - mce
    only_b = decoupled_loss(HAND, y, recipe, eta=1.0, select="less") - mce
    assert only_a.item() == pytest.approx(0.169846, abs=1e-6)
    assert only_b.item() == pytest.approx(0.407606, abs=1e-6)
    assert decoupled_loss(HAND, y, recipe).item() == pytest.approx(0.797935, abs=1e-6)


def test_eta_zero_is_the_soft_cross_entropy():
    logits, y, recipe = random_batch()
    target = om.Mixed(None, y, recipe).soft_target(7)
    expected = F.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(decoupled_loss(logits, y, recipe, eta=0.0), expected, atol=1e-5)


def test_two_classes_leave_nothing_to_decouple():
    logits, y, recipe = random_batch(classes=2)
    plain = decoupled_loss(logits, y, recipe, eta=0.0)
    assert torch.allclose(decoupled_loss(logits, y, recipe, eta=5.0), plain)


@pytest.mark.parametrize("select", ["more", "less"])
def test_each_term_is_blind_to_the_partner_class(select):
    z = HAND.clone().requires_grad_()
    y, recipe = torch.tensor([0, 1]), pair(0.7)
    term = decoupled_loss(z, y, recipe, eta=1.0, select=select) - decoupled_loss(z, y, recipe, eta=0.0)
    (full,) = torch.autograd.grad(term.sum(), z)
    (plain,) = torch.autograd.grad(decoupled_loss(z, y, recipe, eta=0.0).sum(), z)
    assert full.abs()[0, 1 if select == "more" else 0] < 1e-7
    assert plain.abs().min() > 0.01
    assert full.abs()[0, 2] > 0.01


@pytest.mark.parametrize(("power", "select"), [(0.0, "both"), (1.0, "both"), (0.5, "less"), (0.5, "more")])
def test_the_order_of_the_pair_and_of_the_batch_does_not_matter(power, select):
    logits, y, recipe = random_batch()
    options = {"eta": 0.3, "power": power, "threshold": 0.8, "select": select}
    losses = decoupled_loss(logits, y, recipe, **options)
    swapped = Recipe(recipe.partner.flip(1), recipe.share.flip(1))
    assert torch.allclose(decoupled_loss(logits, y, swapped, **options), losses, atol=1e-5)
    order = torch.randperm(64, generator=seeded(4))
    permuted = Recipe(recipe.partner[order], recipe.share[order])
    assert torch.allclose(decoupled_loss(logits[order], y, permuted, **options), losses[order], atol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize(("threshold", "power"), [(1.0, 0.0), (1.0, 1.0), (0.4, 0.5)])
def test_agrees_with_the_definition_for_any_number_of_samples(k, threshold, power):
    draw = seeded(k)
    logits, y = torch.randn(40, 6, generator=draw), torch.randint(6, (40,), generator=draw)
    partner = torch.randint(40, (40, k), generator=draw)
    share = torch.rand(40, k, generator=draw) + 0.05
    recipe = Recipe(partner, share / share.sum(1, keepdim=True))
    found = decoupled_loss(logits, y, recipe, 0.3, threshold=threshold, power=power)
    for row in range(40):
        expected = brute_force(logits[row], y[partner[row]].tolist(), recipe.share[row].tolist(), 0.3, threshold, power)
        assert found[row].item() == pytest.approx(expected, abs=1e-4)


def test_a_constant_on_all_logits_changes_nothing_and_large_logits_stay_finite():
    logits, y, recipe = random_batch()
    losses = decoupled_loss(logits, y, recipe)
    assert torch.allclose(decoupled_loss(logits + 5, y, recipe), losses, atol=1e-4)
    huge = (1e4 * logits.sign()).requires_grad_()
    found = decoupled_loss(huge, y, recipe)
    found.sum().backward()
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(huge.grad).all())


def test_rows_of_one_class_are_plain_and_count_in_the_mean():
    logits, y, recipe = random_batch()
    same = y[:64] == y[64:]
    assert 0 < same.sum() < 64
    losses = decoupled_loss(logits, y, recipe, eta=2.0)
    plain = decoupled_loss(logits, y, recipe, eta=0.0)
    assert torch.allclose(losses[same], F.cross_entropy(logits[same], y[:64][same], reduction="none"))
    assert bool((losses[~same] > plain[~same]).all())
    method = om.Mix(objective=Decoupled(2.0)).setup(torch.nn.Identity(), om.Classification(7), generator=seeded())
    recipe = method.recipe(om.Batch(logits, y[:64]))
    output, applied = method.forward(torch.nn.Identity(), om.Batch(logits, y[:64]), recipe)
    expected = decoupled_loss(output, y[:64], applied, 2.0).mean()
    assert torch.allclose(method.mixed_loss(torch.nn.Identity(), om.Batch(logits, y[:64]), recipe), expected)


def test_one_half_keeps_the_term_and_a_trace_of_a_class_does_not():
    y = torch.tensor([0, 1])
    for lam, kept in ((0.5, True), (0.998, True), (0.9995, False), (1.0, False)):
        extra = decoupled_loss(HAND, y, pair(lam)) - decoupled_loss(HAND, y, pair(lam), eta=0.0)
        assert (extra.item() > 0.05) == kept


def test_less_and_more_split_both_also_at_one_half():
    for lam in (0.2, 0.5, 0.9):
        logits, y, recipe = random_batch(lam=lam)
        plain = decoupled_loss(logits, y, recipe, eta=0.0)
        both, less, more = (decoupled_loss(logits, y, recipe, 1.0, select=s) - plain for s in ("both", "less", "more"))
        assert torch.allclose(less + more, both, atol=1e-5)


def test_only_labelled_samples_have_a_term():
    logits, y, recipe = random_batch(lam=0.8)
    labelled = torch.arange(128) < 64
    found = decoupled_loss(logits, y, recipe, 1.0, labelled=labelled)
    assert torch.allclose(found, decoupled_loss(logits, y, recipe, 1.0, select="more"))
    none = decoupled_loss(logits, y, recipe, 1.0, labelled=torch.zeros(128, dtype=torch.bool))
    assert torch.allclose(none, decoupled_loss(logits, y, recipe, 0.0))


@pytest.mark.parametrize(
    ("lam", "reference"),
    [(0.7, 4.5200605), (0.35, 3.9307077), (0.02, 3.3750324)],
)
def test_agrees_with_the_reference_code(lam, reference):
    """openmixup 37e1372, soft_mix_cross_entropy, "both", xi = 0, eta = .1, avg_factor = N, on the batch below."""
    logits = torch.sin(torch.arange(40.0)).view(8, 5) * 3
    y = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 1, 1, 0, 4, 3, 2, 1, 4])
    found = decoupled_loss(logits, y, pair(lam, 8)).mean()
    assert found.item() == pytest.approx(reference, abs=2e-6)


def test_two_hot_targets():
    y = torch.tensor([1, 3])
    assert two_hot_target(y, pair(0.3), 4, threshold=0.5, power=1.0)[0].tolist() == pytest.approx([0, 0.6, 0, 1])
    assert two_hot_target(y, pair(0.3), 4)[0].tolist() == [0, 1, 0, 1]
    assert two_hot_target(y, pair(1.0), 4)[0].tolist() == [0, 1, 0, 0]
    assert two_hot_target(y, pair(0.3), 4, power=1.0, scale=2.0)[0].tolist() == pytest.approx([0, 0.6, 0, 1])
    same = torch.tensor([2, 2])
    assert two_hot_target(same, pair(0.3), 4, power=1.0)[0].tolist() == pytest.approx([0, 0, 1, 0])


def test_binary_form_sums_over_classes_and_may_weigh_down_the_absent_ones():
    logits, y, recipe = random_batch()
    task, target = om.Classification(7), two_hot_target(y, recipe, 7, threshold=0.5, power=1.0)
    terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert torch.allclose(DecoupledBCE(0.5, 1.0)(logits, y, recipe, task), terms.sum(1))
    half = DecoupledBCE(0.5, 1.0, negative_weight=0.5)(logits, y, recipe, task)
    assert torch.allclose(half, (terms * torch.where(target > 0, 1.0, 0.5)).sum(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decoupled(eta=-1), "eta"),
        (lambda: Decoupled(threshold=0), "threshold"),
        (lambda: Decoupled(threshold=1.5), "threshold"),
        (lambda: Decoupled(power=-1), "power"),
        (lambda: Decoupled(select="a"), "select"),
        (lambda: DecoupledBCE(scale=0), "scale"),
        (lambda: DecoupledBCE(negative_weight=2), "negative_weight"),
        (lambda: decoupled_loss(HAND, torch.tensor([0.3, 0.7]), pair(0.7)), "class ids"),
        (lambda: Decoupled()(HAND, torch.eye(2, 4), pair(0.7), om.Classification(4)), "class ids"),
        (lambda: Decoupled()(HAND, torch.eye(2, 4), pair(0.7), om.MultiLabel(4)), "classification"),
        (lambda: DecoupledBCE()(HAND, torch.zeros(2), pair(0.7), om.Regression(4)), "classification"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_preset_works_with_any_operation_and_at_taps():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    x, y = torch.randn(10, 4, generator=seeded()), torch.arange(10) % 3
    for options in ({"places": ("1",)}, {"operation": om.Interpolate()}, {"per_sample": True, "select": "less"}):
        method = om.create("decoupled-mixup", **options).setup(model, om.Classification(3), generator=seeded())
        twin = om.create("decoupled-mixup", **{**options, "eta": 0.0})
        twin.setup(model, om.Classification(3), generator=seeded())
        assert method.loss(model, (x, y)) > twin.loss(model, (x, y))
