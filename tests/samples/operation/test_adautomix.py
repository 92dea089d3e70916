import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.recipe import Recipe
from omnimix.samples.operation.adautomix import AdaptiveBlock, AdAutoMix, Normalised, similarity

from .test_learned import Net, data, draw, ready


def sources(k, rows=5):
    partner = torch.stack([torch.arange(rows), *(torch.randperm(rows, generator=draw(i)) for i in range(1, k))], dim=1)
    share = torch.tensor([0.5, 0.3, 0.2][:k])
    return Recipe(partner, (share / share.sum()).expand(rows, k))


def test_zero_weights_share_equally():
    block = AdaptiveBlock(6, draw())
    for p in block.parameters():
        nn.init.zeros_(p)
    masks = block(torch.randn(5, 6, 3, 4, generator=draw()), sources(3)).softmax(dim=1)
    torch.testing.assert_close(masks, torch.full((5, 3, 12), 1 / 3))


@pytest.mark.parametrize("ratio_channel", [False, True])
@pytest.mark.parametrize("k", [2, 3])
def test_sources_are_treated_alike(k, ratio_channel):
    block, z, recipe = AdaptiveBlock(4, draw(), ratio_channel), torch.randn(5, 4, 6, generator=draw()), sources(k)
    for p in block.parameters():
        nn.init.normal_(p, generator=draw(3))
    turned = Recipe(recipe.partner.roll(1, dims=1), recipe.share.roll(1, dims=1))
    torch.testing.assert_close(block(z, turned), block(z, recipe).roll(1, dims=1), atol=1e-5, rtol=1e-5)


def test_the_logits_by_hand():
    block, z, recipe = AdaptiveBlock(4, draw()), torch.randn(5, 4, 6, generator=draw()), sources(3)
    for p in block.parameters():
        nn.init.normal_(p, generator=draw(3))
    maps = [z[recipe.partner[:, i]].transpose(1, 2) for i in range(3)]
    for i in range(3):
        query = block.query(maps[i]).relu()
        scores = sum(query @ block.key(maps[j]).relu().transpose(1, 2) for j in range(3) if j != i) / 2**0.5
        expected = (scores.softmax(dim=2) @ block.value(maps[i])).squeeze(2)
        torch.testing.assert_close(block(z, recipe)[:, i], expected, atol=1e-4, rtol=1e-4)


def test_shares_are_draws_over_their_sum():
    share = Normalised()(2000, 3, draw())
    assert torch.equal(share[0], share[-1])
    many = torch.stack([Normalised(1.0)(1, 3, draw(seed))[0] for seed in range(400)])
    torch.testing.assert_close(many.sum(dim=1), torch.ones(400))
    draws = torch.rand(20000, 3, generator=draw(), dtype=torch.float64)
    expected = (draws / draws.sum(dim=1, keepdim=True)).std(dim=0).mean()
    assert float(many.std()) == pytest.approx(float(expected), rel=0.1)  # .19, where a flat Dirichlet has .24
    pair = Normalised(0.5)(4, 2, draw())
    assert torch.equal(pair.sum(dim=1), torch.ones(4))
    with pytest.raises(ValueError, match="alpha"):
        Normalised(0)


def test_similarity():
    u = torch.randn(4, 6, generator=draw())
    share = torch.tensor([[0.2, 0.8]]).expand(4, 2)
    assert float(similarity(u, torch.stack((u, 3 * u), dim=1), share)) == pytest.approx(1)
    assert float(similarity(u, torch.stack((u, -u), dim=1), share)) == pytest.approx(-0.6)


def test_the_loss_of_certain_shares_is_that_of_the_label():
    method, y = ready("adautomix", Net()), torch.tensor([0, 1, 2, 3, 0])
    u, share = torch.randn(5, 4, generator=draw()), torch.tensor([[1.0, 0.0, 0.0]]).expand(5, 3)
    method.steps_done = 1
    torch.testing.assert_close(method.judge(u, y, Recipe(sources(3).partner, share), u, u), F.cross_entropy(u, y))


@pytest.mark.parametrize("k", [2, 3])
def test_beta_one_turns_the_blocks_gradient_around_and_leaves_the_student_alone(k):
    found = []
    for step in (0, 1):
        model = Net(norm=lambda channels: nn.Identity())
        method = ready("adautomix", model, k=k, beta=1.0)
        method.steps_done = step
        method.loss(model, data()).backward()
        found.append([[p.grad for p in part.parameters()] for part in (method._block, model)])
    for first, second in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(first, -second)
    assert any(bool(grad.any()) for grad in found[0][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_beta_zero_is_similarity_alone_and_the_reference_lowers_it():
    method = ready("adautomix", Net(), beta=0.0)
    other = ready("adautomix", Net(), beta=0.0, reference=True)
    recipe, y = sources(3), torch.tensor([0, 1, 2, 3, 0])
    u, clean = torch.randn(5, 4, generator=draw()), torch.randn(5, 4, generator=draw(1))
    expected = similarity(u, clean[recipe.partner], recipe.share)
    assert float(method.judge(u, y, recipe, u, clean)) == pytest.approx(-float(expected))
    assert float(other.judge(u, y, recipe, u, clean)) == pytest.approx(float(expected))


def test_every_other_step_is_adversarial_also_after_loading():
    model = Net()
    method, found = ready("adautomix", model), []
    for step in range(5):
        found.append(method.adversarial)
        method.loss(model, data(step)).backward()
        method.after_step()
    assert found == [True, False, True, False, True]
    resumed = ready("adautomix", model)
    resumed.load_state_dict(method.state_dict())
    assert resumed.adversarial is method.adversarial is False
    third = ready("adautomix", model, every=3)
    third.steps_done = 3
    assert third.adversarial


def test_the_student_sees_three_kinds_of_images():
    model, batch = Net(), om.Batch(*data())
    method, seen = ready("adautomix", model), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]) if _ is model else None)
    state = method.generator.get_state()
    method.loss(model, batch)
    method.generator.set_state(state)
    clean, plain, masked = seen[-3:]
    seen.clear()
    method.make_block(8)  # draws what the first loss drew
    method.generator.set_state(state)
    judged, shown = method.draw(batch)
    assert torch.equal(judged.share, shown.share)
    assert not torch.equal(judged.partner, shown.partner)
    assert torch.equal(clean, batch.x)
    expected = sum(shown.share[0, i] * batch.x[shown.partner[:, i]] for i in range(3))
    torch.testing.assert_close(plain, expected)
    third = sum(batch.x[shown.partner[:, i]] for i in range(3)) / 3
    assert float((masked - third).abs().max()) < 0.1  # an untrained block shares about equally


def test_two_images_have_shares_of_their_own():
    method = AdAutoMix(k=2).setup(Net(), om.Classification(4), generator=draw())
    judged, shown = method.draw(om.Batch(*data()))
    assert not torch.equal(judged.share, shown.share)
    assert method.cost == 3


def test_of_several_numbers_of_images_each_batch_draws_one():
    model = Net()
    method, optimizer = ready("adautomix", model, k=(2, 3)), torch.optim.SGD(model.parameters(), 0.01)
    seen = [[recipe.share.shape[1] for recipe in method.draw(om.Batch(*data()))] for _ in range(20)]
    assert {tuple(pair) for pair in seen} == {(2, 2), (3, 3)}
    for step in range(4):
        assert torch.isfinite(method.step(model, om.Batch(*data(step)), optimizer))
        method.after_step()
    assert method.cost == 3.5


@pytest.mark.parametrize(
    ("option", "value"),
    [("k", 1), ("k", ()), ("k", (2, 1)), ("beta", 1.5), ("plain", -0.1), ("every", 0), ("alpha", 0.0)],
)
def test_refusals(option, value):
    with pytest.raises(ValueError, match=option):
        AdAutoMix(**{option: value})
