import math

import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.recipe import Recipe
from omnimix.samples.ratio import learned_features, midpoint_mixup


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(rows=9, classes=4):
    draw = seeded(5)
    return torch.randn(rows, 3, 5, 7, generator=draw), torch.randint(classes, (rows,), generator=draw)


def test_logit_gradient_is_softmax_minus_the_mean_of_the_two_labels():
    x, y = batch()
    mixed = midpoint_mixup(x, y, generator=seeded())
    logits = torch.randn(9, 4, generator=seeded(1), requires_grad=True)
    mixed.loss(F.cross_entropy, logits).backward()
    partner = mixed.recipe.partner[:, 1]
    expected = logits.detach().softmax(1) - (F.one_hot(y, 4) + F.one_hot(y[partner], 4)) / 2
    assert torch.allclose(logits.grad, expected / 9, atol=1e-7)


def test_loss_of_two_classes_is_at_least_log_two_and_touches_it_at_one_half_each():
    recipe = Recipe(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    mixed = om.Mixed(None, torch.tensor([2, 0]), recipe)
    for logits in 3 * torch.randn(200, 1, 4, generator=seeded()):
        assert mixed.loss(F.cross_entropy, logits) > math.log(2)
    sure = torch.tensor([[50.0, -50.0, 50.0, -50.0]])
    assert mixed.loss(F.cross_entropy, sure).item() == pytest.approx(math.log(2), abs=1e-6)


def test_itself_or_its_own_class_as_partner_gives_plain_cross_entropy_at_the_mixed_input():
    x, _ = batch()
    y = torch.full((9,), 2)
    logits = torch.randn(9, 4, generator=seeded(1))
    mixed = midpoint_mixup(x, y, generator=seeded())
    assert torch.allclose(mixed.loss(F.cross_entropy, logits), F.cross_entropy(logits, y))
    alone = midpoint_mixup(x, y, partner=torch.arange(9))
    assert torch.equal(alone.x, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_midpoint_does_not_depend_on_the_order_of_the_pair_bit_for_bit(dtype):
    x = torch.randn(2, 50_000, generator=seeded()).to(dtype)
    mixed = midpoint_mixup(x, torch.tensor([0, 1]), partner=torch.tensor([1, 0]))
    assert torch.equal(mixed.x[0], mixed.x[1])
    assert torch.allclose(mixed.x[0].float(), (x[0].float() + x[1].float()) / 2, atol=1e-2)


def test_every_batch_has_share_one_half_and_a_permutation_as_partners():
    x, y = batch()
    generator = seeded()
    for _ in range(5):
        recipe = midpoint_mixup(x, y, generator=generator).recipe
        assert bool((recipe.share == 0.5).all())
        assert sorted(recipe.partner[:, 1].tolist()) == list(range(9))


def test_method_and_function_agree_and_regression_targets_meet_half_way():
    x, y = batch()
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(105, 4))
    method = om.create("midpoint-mixup").setup(head, om.Classification(4), generator=seeded(3))
    mixed = midpoint_mixup(x, y, generator=seeded(3))
    assert torch.allclose(method.loss(head, (x, y)), mixed.loss(F.cross_entropy, head(mixed.x)))
    real = midpoint_mixup(x, torch.tensor([0.0, 2.0, *[0.0] * 7]), partner=torch.tensor([1, 0, *range(2, 9)]))
    assert real.soft_target()[:2].tolist() == [1.0, 1.0]


def test_integer_inputs_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        midpoint_mixup(torch.zeros(2, 3, dtype=torch.uint8), torch.tensor([0, 1]))


def test_learned_features_counts_positive_alignment_of_the_classes_own_filters():
    features = torch.eye(4).view(2, 2, 4)
    weight = torch.zeros(2, 2, 4)
    weight[0, 0] = torch.tensor([2.0, 0.15, 0.0, 0.0])
    weight[0, 1] = torch.tensor([-9.0, 0.10, 7.0, 0.0])  # negative and foreign alignments count for nothing
    weight[1, 0] = torch.tensor([0.0, 0.0, 1.0, 0.05])
    strength, learned = learned_features(weight, features)
    assert torch.allclose(strength, torch.tensor([[2.0, 0.25], [1.0, 0.05]]))
    assert learned.tolist() == [[True, True], [True, False]]
    assert not learned_features(torch.zeros(2, 2, 4), features)[1].any()


def test_learned_features_refuses_shapes_that_do_not_meet():
    with pytest.raises(ValueError, match="weight must be"):
        learned_features(torch.zeros(3, 2, 4), torch.zeros(2, 2, 4))
