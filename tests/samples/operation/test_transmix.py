import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.networks import create
from omnimix.samples.operation import transmix
from omnimix.samples.saliency import watch_attention


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def vit(shape=(2, 16, 24), outputs=3):
    return create("vit", shape, outputs, seed=0, width=16, depth=2)


def test_labels_by_hand():
    mask, share = torch.ones(1, 1, 8, 8), torch.tensor([[0.75, 0.25]]).expand(2, 2)
    mask[..., 2:6, 2:6] = 0
    recipe = om.Recipe(torch.tensor([[0, 1], [1, 0]]), share, mask=mask)
    mixed = om.Mixed(torch.rand(2, 1, 8, 8, generator=draw()), torch.tensor([0, 1]), recipe)
    attention = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]).expand(2, 1, 4, 4)
    own = 1 - (6 + 7 + 10 + 11) / 136
    found = transmix(mixed, attention)
    torch.testing.assert_close(found.recipe.label_share[0], torch.tensor([(0.75 + own) / 2, 1 - (0.75 + own) / 2]))
    torch.testing.assert_close(transmix(mixed, attention, 1.0).recipe.label_share[:, 0], torch.full((2,), own))
    torch.testing.assert_close(transmix(mixed, attention, 0.0).recipe.label_share, mixed.recipe.share)
    each = transmix(mixed, attention, torch.tensor([0.0, 1.0])).recipe.label_share[:, 0]
    torch.testing.assert_close(each, torch.tensor([0.75, own]))
    assert found.x is mixed.x


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_method_is_cutmix_with_other_labels(per_sample):
    model, x, y = vit(outputs=5), torch.randn(5, 2, 16, 24, generator=draw()), torch.arange(5)
    method = om.create("transmix", per_sample=per_sample).setup(model, om.Classification(5), generator=draw(3))
    mixed = om.cutmix(x, y, per_sample=per_sample, generator=draw(3))
    with watch_attention(model) as seen:
        output = model(mixed.x)
    found = transmix(mixed, seen.maps(5, (16, 24)))
    torch.testing.assert_close(method.loss(model, (x, y)), found.loss(F.cross_entropy, output))
    plain = mixed.loss(F.cross_entropy, output)
    assert (found.loss(F.cross_entropy, output) - plain).abs() > 1e-5


def test_without_weight_it_is_cutmix():
    model, batch = vit(), (torch.randn(5, 2, 16, 24, generator=draw()), torch.arange(5) % 3)
    losses = [
        om.create(name, **options).setup(model, om.Classification(3), generator=draw(1)).loss(model, batch)
        for name, options in (("cutmix", {}), ("transmix", {"weight": 0.0}))
    ]
    torch.testing.assert_close(*losses)


def test_the_gradient_is_that_of_fixed_labels():
    model, x, y = vit(), torch.randn(4, 2, 16, 24, generator=draw()), torch.arange(4) % 3
    om.create("transmix").setup(model, om.Classification(3), generator=draw(1)).loss(model, (x, y)).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    mixed = om.cutmix(x, y, generator=draw(1))
    with watch_attention(model) as seen:
        output = model(mixed.x)
    transmix(mixed, seen.maps(4, (16, 24))).loss(F.cross_entropy, output).backward()
    for grad, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_every_other_batch_by_mixup():
    model, x = vit(), torch.randn(4, 2, 16, 24, generator=draw())
    method = om.Choose([om.Mixup(0.8), om.create("transmix")]).setup(model, om.Classification(3), generator=draw())
    assert all(method.loss(model, (x, torch.arange(4) % 3)).isfinite() for _ in range(6))


def test_only_what_a_mask_mixed():
    mixed = om.mixup(torch.rand(3, 1, 4, 4), torch.arange(3))
    with pytest.raises(ValueError, match="by a mask"):
        transmix(mixed, torch.ones(3, 1, 2, 2))
