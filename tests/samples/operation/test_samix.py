import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.recipe import Recipe
from omnimix.samples.operation.samix import ContentBlock, SAMix, bend, eta_balanced

from .test_learned import Net, data, draw, ready, same, train, weights


def balanced(output, first, second, lam, eta):
    target = torch.zeros_like(output).index_put_(
        (torch.arange(len(output)).repeat(2), torch.cat((first, second))),
        torch.tensor([lam, 1 - lam]).repeat_interleave(len(output)),
        accumulate=True,
    )
    return eta_balanced(output, target, F.cross_entropy(output, target, reduction="none"), eta)


def test_local_and_global_by_hand():
    u, a, b = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([2])
    found = [float(balanced(u, a, b, 0.25, eta)) for eta in (0.0, 1.0, 0.5)]
    assert found == pytest.approx([1.063262, 2.157606, 1.610434], abs=2e-6)


def test_local_and_global_are_the_mixed_loss():
    u = 9 * torch.randn(30, 5, generator=draw())
    a, b = torch.randint(5, (2, 30), generator=draw(1))
    log_p = u.log_softmax(dim=1)
    one, two = log_p.gather(1, a[:, None])[:, 0], log_p.gather(1, b[:, None])[:, 0]
    both = torch.where(a == b, one, torch.logaddexp(one, two))
    local = torch.where(a == b, 0.0, 0.3 * (both - one) + 0.7 * (both - two))
    torch.testing.assert_close(balanced(u, a, b, 0.3, 0.0), local, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(balanced(u, a, b, 0.3, 0.5), local - 0.5 * both, atol=1e-5, rtol=1e-5)
    mixed = 0.3 * F.cross_entropy(u, a, reduction="none") + 0.7 * F.cross_entropy(u, b, reduction="none")
    torch.testing.assert_close(balanced(u, a, b, 0.3, 1.0), mixed)
    assert torch.isfinite(balanced(torch.tensor([[0.0, 400.0, 0.0]]), a[:1] * 0, b[:1] * 0 + 2, 0.5, 0.5)).all()


def test_the_curve_of_the_share():
    lam = torch.tensor([0.1, 0.25])
    for k, found in ((0.0, (0.244, 0.4375)), (0.25, (0.182286, 0.357143)), (1.0, (0.136, 0.296875))):
        torch.testing.assert_close(bend(lam, k), torch.tensor(found), atol=1e-6, rtol=0)
        ends = torch.tensor([0.0, 0.5, 1.0])
        torch.testing.assert_close(bend(ends, k), ends)
        torch.testing.assert_close(bend(1 - lam, k), 1 - bend(lam, k))
    assert torch.equal(bend(lam, None), lam)


def test_high_contrast_is_rewarded():
    method, y = ready("samix", Net(), mask_weight=1.0), torch.zeros(2, dtype=torch.long)
    recipe = Recipe(torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5))
    u, flat = torch.zeros(2, 4), torch.full((2, 2, 4, 4), 0.5)
    sharp = torch.stack((torch.zeros(4, 4), torch.ones(4, 4))).expand(2, 2, 4, 4)
    sharp = torch.stack((sharp[0], sharp[0].flip(0)))
    plain = method.judge(u, y, recipe, flat, u)
    assert float(plain - method.judge(u, y, recipe, sharp, u)) == pytest.approx(0.5)
    off = method.judge(u, y, Recipe(recipe.partner, torch.tensor([[0.9, 0.1]]).expand(2, 2)), flat, u)
    assert float(off - plain) == pytest.approx(0.3)


def test_the_mask_by_hand():
    block, z = ContentBlock(4, draw(), 0.25), torch.randn(3, 4, 5, generator=draw())
    for p in block.parameters():
        nn.init.normal_(p, generator=draw(3))
    recipe = Recipe(torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([[0.25, 0.75]]).expand(3, 2))
    own = (1 + 0.357143) * z.transpose(1, 2)
    guest = (2 - 0.357143) * z[recipe.partner[:, 1]].transpose(1, 2)
    both = torch.cat((own, guest), dim=2)
    hidden = guest @ block.hidden.weight.T
    scale, mean = hidden.flatten(0, 1).var(dim=0, correction=0).add(1e-5).sqrt(), hidden.flatten(0, 1).mean(dim=0)
    value = F.elu((hidden - mean) / scale * block.norm.weight + block.norm.bias) @ block.value.weight.T
    scores = (block.query(both) @ block.key(both).transpose(1, 2) / 2**0.5).softmax(dim=2)
    torch.testing.assert_close(block(z, recipe)[:, 1], (scores @ value)[:, :, 0], atol=1e-5, rtol=1e-5)


def test_exchanged_samples_do_not_exchange_their_masks():
    """The block sees the partner's content only: nothing may rely on the masks of the exchanged pair."""
    method, (x, y) = ready("samix", Net()), data()
    method.loss(method.given.model, (x, y))
    for part in (method._block.query, method._block.key):
        nn.init.normal_(part.weight, generator=draw())
    share = torch.tensor([[0.3, 0.7], [0.7, 0.3]])
    recipe = Recipe(torch.tensor([[0, 1], [1, 0]]), share)
    first, second = method.masks(method._look(x[:2])[0], recipe, x[:2])
    torch.testing.assert_close(first.sum(dim=0), torch.ones_like(first[0]))
    assert not torch.allclose(first[0], second[1], atol=1e-5)


def test_dropped_values():
    z, recipe = (
        torch.randn(64, 4, 9, generator=draw()),
        Recipe(torch.arange(128).view(64, 2) % 64, torch.full((64, 2), 0.5)),
    )
    block, plain = ContentBlock(4, draw(1), 0.25, dropout=0.25), ContentBlock(4, draw(1), 0.25)
    for p, q in zip(block.parameters(), plain.parameters(), strict=True):
        q.data.copy_(p)
    for part in (block, plain):  # all cells look at all alike, and have the value 1
        part.query.weight.data.zero_()
        part.hidden.weight.data.zero_()
        part.norm.bias.data.fill_(1.0)
        part.value.weight.data.fill_(1 / part.norm.num_features)
    torch.testing.assert_close(plain(z, recipe)[:, 1], torch.ones(64, 9))
    kept = block(z, recipe)[:, 1, 0] * 9 * 0.75
    torch.testing.assert_close(kept, kept.round(), atol=1e-4, rtol=0)
    assert float(kept.mean()) == pytest.approx(9 * 0.75, rel=0.1)
    assert float(kept.std()) == pytest.approx((9 * 0.75 * 0.25) ** 0.5, rel=0.3)
    torch.testing.assert_close(block.eval()(z, recipe), plain.eval()(z, recipe))


def test_training_with_dropout_depends_on_its_generator_alone():
    losses = []
    for seed in (1, 1, 2):
        model = Net()
        method = ready("samix", model, dropout=0.5, seed=1)
        method.loss(model, data())
        method._block.value.weight.data.fill_(1.0)
        method.generator.manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(losses))
            losses.append(float(method.loss(model, data())))
    assert losses[0] == losses[1] != losses[2]


def test_a_mixer_trained_before_stays_as_it_is(tmp_path):
    model, path = Net(), tmp_path / "mixer.safetensors"
    first = ready("samix", model)
    with pytest.raises(ValueError, match="first step"):
        first.save_mixer(path)
    train(first, model, torch.optim.SGD(model.parameters(), 0.05), range(3))
    first.save_mixer(path)
    other = Net(classes=6)
    method = om.create("samix", pretrained=str(path)).setup(other, om.Classification(6), steps=20, generator=draw())
    method.loss(other, data())
    body = [(k, v) for k, v in first.teacher.state_dict().items() if not k.startswith("7.")]
    assert all(torch.equal(v, method.teacher.state_dict()[k]) for k, v in body)
    assert same(first._block.parameters(), method._block.parameters())
    before = {k: v.clone() for k, v in method._teacher.state_dict().items()}
    start, head = weights(other), weights(method._side.modules)
    train(method, other, torch.optim.SGD(other.parameters(), 0.05), range(10))
    assert all(torch.equal(v, method._teacher.state_dict()[k]) for k, v in before.items())
    assert not same(start, other.parameters())
    assert not same(head, method._side.modules.parameters())
    resumed = om.create("samix", pretrained=str(path)).setup(other, om.Classification(6), steps=20, generator=draw(9))
    resumed.load_state_dict(method.state_dict())
    assert not resumed.teacher.training
    assert torch.equal(method.loss(other, data()), resumed.loss(other, data()))
    assert method.cost == 2


def test_mixers_that_do_not_fit(tmp_path):
    model, path = Net(), tmp_path / "mixer.safetensors"
    with pytest.raises(ValueError, match=r"cannot read the mixer .*mixer\.safetensors"):
        ready("samix", model, pretrained=str(path))
    first = ready("samix", model)
    first.loss(model, data())
    first.save_mixer(path)
    with pytest.raises(ValueError, match=r"another network.*differ"):
        ready("samix", Net(norm=lambda channels: nn.Identity()), pretrained=str(path))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(path))
    with pytest.raises(ValueError, match="holds no mixer"):
        ready("samix", model, pretrained=str(path))


@pytest.mark.parametrize("option", ["eta", "mask_weight", "curve", "mask_end", "dropout"])
def test_refusals(option):
    with pytest.raises(ValueError, match=option):
        SAMix(**{option: -0.5})
