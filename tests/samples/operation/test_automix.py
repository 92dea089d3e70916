import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.ratio import Constant
from omnimix.core.recipe import Recipe
from omnimix.samples.operation.automix import AutoMix, MixBlock, area_loss

from .test_learned import Net, data, draw, ready


def pair(rows, lam, seed=0):
    partner = torch.stack((torch.arange(rows), torch.randperm(rows, generator=draw(seed))), dim=1)
    return Recipe(partner, torch.tensor([[lam, 1 - lam]]).expand(rows, 2))


def test_zero_weights_give_halves():
    block = MixBlock(6, draw())
    for p in block.parameters():
        nn.init.zeros_(p)
    masks = block(torch.randn(5, 6, 3, 4, generator=draw()), pair(5, 0.3)).softmax(dim=1).detach()
    assert torch.equal(masks, torch.full((5, 2, 12), 0.5))
    for lam, loss in ((0.3, 0.1), (0.45, 0.0), (0.9, 0.3)):
        assert float(area_loss(masks, pair(5, lam).share)) == pytest.approx(loss)


def test_the_mask_is_the_partners_from_the_partners_values():
    block, z, recipe = MixBlock(4, draw(), ratio_channel=True), torch.randn(3, 4, 5, generator=draw()), pair(3, 0.3, 2)
    for p in block.parameters():
        nn.init.normal_(p, generator=draw(3))
    own = torch.cat((z, torch.full((3, 1, 5), 0.3)), dim=1).transpose(1, 2)
    guest = torch.cat((z[recipe.partner[:, 1]], torch.full((3, 1, 5), 0.7)), dim=1).transpose(1, 2)
    scores = block.project(own) @ block.project(guest).transpose(1, 2) / 2**0.5
    expected = torch.sigmoid(scores.softmax(dim=2) @ block.value(guest)).squeeze(2)
    torch.testing.assert_close(block(z, recipe).softmax(dim=1)[:, 1], expected)


def test_cells_of_the_sample_move_the_mask_and_those_of_the_partner_do_not():
    block, recipe = MixBlock(4, draw()), Recipe(torch.tensor([[0, 1]]), torch.tensor([[0.3, 0.7]]))
    for p in block.parameters():
        nn.init.normal_(p, generator=draw(3))
    z, order = torch.randn(2, 4, 6, generator=draw()), torch.tensor([3, 1, 0, 5, 2, 4])
    plain = block(z, recipe)
    torch.testing.assert_close(block(torch.stack((z[0][:, order], z[1])), recipe), plain[:, :, order])
    torch.testing.assert_close(block(torch.stack((z[0], z[1][:, order])), recipe), plain)


def test_masks_are_constant_on_the_cells_of_the_map():
    model, batch = Net(), om.Batch(*data())
    method = ready("automix", model)
    method.loss(model, batch)
    nn.init.normal_(method._block.value.weight, generator=draw())
    masks = method.masks(method._look(batch.x)[0], method.draw(batch)[0], batch.x)
    assert torch.equal(masks, F.interpolate(masks[..., ::2, ::2], scale_factor=2))
    assert len(masks[0, 0].unique()) > 20


def test_the_loss_is_that_of_the_card():
    model = Net()
    method, (x, y) = ready("automix", model, mask_weight=0.5), data()
    method.loss(model, (x, y))  # makes the block and the teacher
    nn.init.normal_(method._block.value.weight, std=2.0, generator=draw())
    nn.init.normal_(method._side.modules["mix_head"].weight, generator=draw(1))
    state = method.generator.get_state()
    loss = method.loss(model, (x, y))
    method.generator.set_state(state)
    judged, shown = method.draw(om.Batch(x, y))
    assert not torch.equal(judged.partner, shown.partner)
    assert not torch.equal(judged.share, shown.share)
    seen = list[torch.Tensor]()
    handle = method.teacher[2].register_forward_hook(lambda _, inputs, output: seen.append(output))
    method.teacher(x)
    handle.remove()
    expected = F.cross_entropy(model(x), y)
    for recipe, network, head in (
        (shown, model, method._side.modules["mix_head"]),
        (judged, method.teacher, method._teacher["mix_head"]),
    ):
        guest = method._block(seen[0], recipe).softmax(dim=1)[:, 1].view(-1, 1, 8, 8)
        mask = F.interpolate(guest, scale_factor=2)
        partner, lam = recipe.partner[:, 1], float(recipe.lam[0])
        mixed = (1 - mask) * x + mask * x[partner]
        output = head(nn.Sequential(*list(network)[:-1])(mixed))
        expected = expected + lam * F.cross_entropy(output, y) + (1 - lam) * F.cross_entropy(output, y[partner])
    expected = expected + 0.5 * ((1 - mask.mean() - lam).abs() - 0.1).clamp(min=0)
    torch.testing.assert_close(loss, expected)


def test_the_mean_of_the_masks_is_drawn_to_the_share():
    model, batch = Net(), om.Batch(*data())
    method = ready("automix", model, mask_weight=5.0, lr=0.008)
    method.ratio = Constant(0.8)
    for _ in range(30):
        method.loss(model, batch).backward()
        method.after_step()
    masks = method.masks(method._look(batch.x)[0], method.draw(batch)[0], batch.x).detach()
    assert abs(float(masks[:, 0].mean()) - 0.8) < 0.12


@pytest.mark.parametrize("name", ["automix", "samix"])
def test_the_weight_of_the_masks_regulariser_falls_along_a_cosine(name):
    u, y, recipe = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), pair(2, 0.8)
    flat, half = (torch.stack((torch.full((2, 4, 4), 1 - m), torch.full((2, 4, 4), m)), dim=1) for m in (0.2, 0.5))
    for end, shares in ((0.0, (1.0, 0.5, 0.0)), (0.5, (1.0, 0.75, 0.5)), (1.0, (1.0, 1.0, 1.0))):
        method = ready(name, Net(), mask_weight=2.0, mask_end=end)  # of 20 steps
        for step, share in zip((0, 10, 20), shares, strict=True):
            method.steps_done = step
            found = float(method.judge(u, y, recipe, half, u) - method.judge(u, y, recipe, flat, u))
            assert found == pytest.approx(2 * 0.2 * share, abs=1e-6)


@pytest.mark.parametrize("name", ["automix", "samix"])
def test_deranged_partners(name):
    batch = om.Batch(*data())
    own = torch.arange(7)
    met = {flag: ready(name, Net(), derange=flag) for flag in (False, True)}
    found = {
        flag: [method.draw(batch)[i].partner[:, 1] for _ in range(15) for i in (0, 1)] for flag, method in met.items()
    }
    assert not any(bool((partner == own).any()) for partner in found[True])
    assert any(bool((partner == own).any()) for partner in found[False])


@pytest.mark.parametrize("name", ["automix", "samix", "adautomix"])
def test_how_long_the_momentum_is_held(name):
    found = {}
    for hold in (0.1, 0.5):
        model = Net()
        method = ready(name, model, hold=hold, momentum=1.0)
        method.loss(model, data())
        method.steps_done = 8  # of 20
        before = [p.clone() for p in method.teacher.parameters()]
        for p in model.parameters():
            p.data.add_(1.0)
        method.update_teacher()
        found[hold] = float(next(method.teacher.parameters()).sub(before[0]).mean())
    assert found[0.5] == pytest.approx(0.001, rel=1e-3)
    assert found[0.1] == pytest.approx(0.001 * (1 + math.cos(0.4 * math.pi)) / 2, rel=1e-3)


def test_multi_label_targets():
    model, x = Net(), data()[0]
    y = torch.randint(2, (7, 4), generator=draw()).float()
    method = AutoMix().setup(model, om.MultiLabel(4), steps=20, generator=draw())
    assert torch.isfinite(method.loss(model, (x, y)))
    assert method._network.features(x).shape == (7, 12)
