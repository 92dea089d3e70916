import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.operation import Context
from omnimix.core.recipe import Recipe
from omnimix.samples.label import LabelRatio

CONTEXT = Context(torch.Generator().manual_seed(0))


def recipe(*lam):
    share = torch.tensor(lam)
    return Recipe(
        torch.stack((torch.arange(len(lam)), torch.arange(len(lam)).flip(0)), 1), torch.stack((share, 1 - share), 1)
    )


def own(policy, *lam):
    return policy(recipe(*lam), CONTEXT).label_share[:, 0]


def test_same_leaves_the_recipe_alone():
    given = recipe(0.3, 0.7)
    assert LabelRatio()(given, CONTEXT) is given


def test_constant_ratio_goes_to_the_dominant_sample():
    assert torch.allclose(own(LabelRatio(0.9), 0.7, 0.5, 0.3), torch.tensor([0.9, 0.9, 0.1]))


def test_constant_ratio_whatever_lam_without_the_same_side_rule():
    mixed = om.Mixed(None, torch.tensor([0, 1, 2]), LabelRatio(0.9, same_side=False)(recipe(0.7, 0.5, 0.3), CONTEXT))
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    y = mixed.y
    expected = 0.9 * F.cross_entropy(logits, y) + 0.1 * F.cross_entropy(logits, y.flip(0))
    assert torch.allclose(mixed.loss(F.cross_entropy, logits), expected)


def test_function_of_the_input_share():
    square = own(LabelRatio(lambda lam: lam**2), 0.9, 0.6, 0.2)
    assert torch.allclose(square, torch.tensor([0.81, 0.64, 0.04]))  # .36 is reflected to .64


def test_independent_draw_is_on_the_same_side_and_differs_from_lam():
    lam = torch.rand(500, generator=torch.Generator().manual_seed(2))
    found = own(LabelRatio(om.Beta(1.0, per_sample=True)), *lam.tolist())
    assert bool(((found >= 0.5) == (lam >= 0.5)).all())
    assert abs(torch.corrcoef(torch.stack((found[lam >= 0.5], lam[lam >= 0.5])))[0, 1]) < 0.2


def test_gradient_of_a_two_class_linear_model_uses_the_label_ratio():
    logits = torch.tensor([[0.4, -0.2], [0.1, 0.3]], requires_grad=True)
    mixed = om.Mixed(None, torch.tensor([0, 1]), LabelRatio(0.9)(recipe(0.7, 0.7), CONTEXT))
    mixed.loss(F.cross_entropy, logits).backward()
    expected = logits.detach().softmax(1) - torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert torch.allclose(logits.grad * 2, expected, atol=1e-6)


@pytest.mark.parametrize("bad", [1.5, "other", lambda lam: lam * 2, lambda lam: 0.7])
def test_bad_ratios_are_refused(bad):
    with pytest.raises(ValueError, match="label_ratio"):
        LabelRatio(bad)


def test_only_pairs():
    three = Recipe(torch.tensor([[0, 1, 2]] * 3), torch.full((3, 3), 1 / 3))
    with pytest.raises(ValueError, match="pairs"):
        LabelRatio(0.9)(three, CONTEXT)
