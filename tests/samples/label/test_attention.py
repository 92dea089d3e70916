import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.objective import LabelPolicy
from omnimix.core.operation import Context
from omnimix.networks import create
from omnimix.samples.label import AttentionLabels, attention_share
from omnimix.samples.saliency import watch_attention


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Given:
    def __init__(self, maps):
        self.found = maps

    def maps(self, rows, size):
        return self.found


def vit(shape=(2, 8, 12), outputs=4, **options):
    return create("vit", shape, outputs, seed=0, **({"width": 16, "depth": 2} | options))


def test_share_by_hand():
    attention = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    mask = torch.ones(1, 1, 4, 4)
    mask[..., 1:4, 0:2] = 0  # the first cells of the patches: all but the lower left one are the sample's
    torch.testing.assert_close(attention_share(attention, mask), torch.tensor([7 / 10, 3 / 4]))
    own = torch.stack((mask[0], 1 - mask[0]))
    torch.testing.assert_close(attention_share(attention, own), torch.tensor([7 / 10, 1 / 4]))


@pytest.mark.parametrize("size", [(12,), (8, 12), (4, 4, 8)])
def test_uniform_attention_gives_the_area(size):
    x, grid = torch.rand(5, 1, *size, generator=draw()), [side // 2 for side in size]
    recipe = om.cutmix(x, torch.arange(5), per_sample=True, generator=draw(1)).recipe
    coarse = F.interpolate(recipe.mask, grid, mode="nearest").flatten(1).mean(dim=1)
    torch.testing.assert_close(
        attention_share(torch.rand(5, 1, *[1] * len(size)) + 1, torch.ones(5, 1, *size)), coarse**0
    )
    torch.testing.assert_close(attention_share(torch.full((5, 1, *grid), 0.3), recipe.mask), coarse)
    torch.testing.assert_close(attention_share(torch.ones(5, 1, *size), recipe.mask), recipe.lam)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_between_area_and_attention(weight):
    x, maps = torch.rand(4, 1, 8, 12, generator=draw()), torch.rand(4, 1, 4, 6, generator=draw(2))
    recipe = om.cutmix(x, torch.arange(4), lam=0.6, generator=draw(1)).recipe
    found = AttentionLabels(weight)(recipe, Context(draw(), torch.arange(4), seen=Given(maps)))
    own = (1 - weight) * recipe.lam + weight * attention_share(maps, recipe.mask)
    torch.testing.assert_close(found.label_share, torch.stack((own, 1 - own), dim=1))
    assert torch.equal(found.share, recipe.share)


def test_it_reads_the_training_pass_on_the_mixed_inputs():
    model, x, y = vit(), torch.randn(6, 2, 8, 12, generator=draw()), torch.arange(6) % 4
    labels = AttentionLabels(1.0)
    method = om.Mix(operation=om.FMix().operation, labels=labels).setup(model, om.Classification(4), generator=draw(1))
    batch = om.Batch(x, y)
    recipe = method.recipe(batch)
    state = method.generator.get_state()
    output, applied = method.forward(model, batch, recipe)
    method.generator.set_state(state)
    mixed = method.mix(batch, recipe)
    assert torch.equal(mixed.recipe.label_share, mixed.recipe.share)  # not before the pass
    with watch_attention(model) as seen:
        assert torch.equal(model(mixed.x), output)
    own = attention_share(seen.maps(6, (8, 12)), mixed.recipe.mask)
    torch.testing.assert_close(applied.label_share[:, 0], own)
    assert (own - mixed.recipe.lam).abs().max() > 1e-3
    method.generator.set_state(draw(1).get_state())
    loss = method.loss(model, batch)
    expected = method.objective.mean(output, y, applied, method.task)
    torch.testing.assert_close(loss, expected)


def test_policies_after_the_pass_get_what_they_watch_and_the_output():
    class Look(LabelPolicy):
        after = True

        def __call__(self, recipe, context):
            seen.append(context)
            return recipe

    seen = []
    model = vit()
    method = om.Mix(labels=Look()).setup(model, om.Classification(4), generator=draw())
    assert not method.by_row
    method.loss(model, (torch.randn(3, 2, 8, 12, generator=draw()), torch.arange(3)))
    assert len(seen) == 1
    assert seen[0].output.shape == (3, 4)
    assert seen[0].seen is None
    assert seen[0].task is method.task
    with pytest.raises(ValueError, match="at 'input' only"):
        om.Mix(labels=Look(), places=("block1",)).setup(model, om.Classification(4))


def test_rows_without_a_mask_keep_their_shares():
    model, x = vit(), torch.randn(4, 2, 8, 12, generator=draw())
    plain, method = om.Mixup(), om.Mix(labels=AttentionLabels(1.0))
    losses = [
        m.setup(model, om.Classification(4), generator=draw(1)).loss(model, (x, torch.arange(4)))
        for m in (plain, method)
    ]
    assert torch.equal(*losses)


def test_refusals():
    x = torch.randn(4, 2, 8, 12, generator=draw())
    method = om.Mix(operation=om.CutBox(), labels=AttentionLabels())
    net = create("small-cnn", (2, 8, 12), 4)
    with pytest.raises(ValueError, match="no attention between the patches"):
        method.setup(net, om.Classification(4), generator=draw()).loss(net, (x, torch.arange(4)))
    dense = torch.randint(4, (4, 8, 12), generator=draw())
    recipe = om.cutmix(x, dense, lam=0.5, generator=draw()).recipe
    with pytest.raises(ValueError, match="label maps"):
        AttentionLabels()(recipe, Context(draw(), dense))
    three = om.Recipe(torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), 1 / 3), mask=torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match="mixes 3 samples"):
        AttentionLabels()(three, Context(draw()))
    with pytest.raises(ValueError, match="weight"):
        AttentionLabels(1.5)


def test_transforms_that_mix_without_a_network_refuse():
    pytest.importorskip("torchvision")
    from omnimix.integrations.torchvision import Mix

    with pytest.raises(ValueError, match="more than a mixing of images"):
        Mix("transmix")
