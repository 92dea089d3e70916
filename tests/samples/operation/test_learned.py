"""What holds for all methods that learn masks along with the network."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.recipe import Recipe
from omnimix.networks import create
from omnimix.samples.operation.learned import MOST, apply_masks, attend, coarse, mixing_map
from omnimix.train.checkpoint import flatten, from_bytes, to_bytes

LEARNED = ["automix", "samix", "adautomix"]
ALL = [*LEARNED, "sumix"]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Sequential):
    """Maps of half and a quarter of the sides, batch norm, and a linear head."""

    def __init__(self, classes=4, conv=nn.Conv2d, pool=nn.AdaptiveAvgPool2d, norm=nn.BatchNorm2d):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = conv(3, 8, 3, 2, 1), norm(8), nn.ReLU()
            super().__init__(*first, conv(8, 12, 3, 2, 1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(12, classes))


def data(seed=0, rows=7, size=(16, 16)):
    return torch.randn(rows, 3, *size, generator=draw(seed)), torch.arange(rows) % 4


def ready(name, model, seed=1, **options):
    return om.create(name, **options).setup(model, om.Classification(4), steps=20, generator=draw(seed))


def train(method, model, optimizer, steps):
    for step in steps:
        method.step(model, om.Batch(*data(step)), optimizer)
        method.after_step()


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(first, second):
    return all(map(torch.equal, first, second))


@pytest.mark.parametrize("name", ALL)
def test_resuming_is_exact(name):
    whole, half, resumed = Net(), Net(), Net()
    optimizers = [torch.optim.SGD(model.parameters(), 0.05, momentum=0.9) for model in (whole, half, resumed)]
    methods = [ready(name, model, seed) for model, seed in ((whole, 1), (half, 1), (resumed, 99))]
    train(methods[0], whole, optimizers[0], range(8))
    train(methods[1], half, optimizers[1], range(4))
    state = from_bytes(to_bytes([part.state_dict() for part in (half, optimizers[1], methods[1])]))
    for part, saved in zip((resumed, optimizers[2], methods[2]), state, strict=True):
        part.load_state_dict(saved)
    train(methods[2], resumed, optimizers[2], range(4, 8))
    ends = [
        flatten([whole.state_dict(), methods[0].state_dict()]),
        flatten([resumed.state_dict(), methods[2].state_dict()]),
    ]
    assert ends[0][0] == ends[1][0]
    assert len(ends[0][1]) > 14
    assert all(torch.equal(value, ends[1][1][name]) for name, value in ends[0][1].items())
    assert not same(weights(half), weights(whole))


@pytest.mark.parametrize("name", ALL)
def test_the_users_optimiser_has_only_the_users_weights(name):
    model = Net()
    optimizer, names = torch.optim.SGD(model.parameters(), 0.05), list(model.state_dict())
    method = ready(name, model)
    method.loss(model, data()).backward()
    before, side = weights(model), weights(method._side.modules)
    method.after_step()
    assert same(before, model.parameters())  # what the method trains is all that moves
    assert not same(side, method._side.modules.parameters())
    assert all(p.grad is None for p in method._side.modules.parameters())
    own = {id(p) for p in method._side.modules.parameters()}
    assert not own & {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", LEARNED)
def test_who_learns_from_what(name):
    model = Net(norm=lambda channels: nn.Identity())
    method, batch = ready(name, model), om.Batch(*data())
    with torch.no_grad():
        method.loss(model, batch)
    state = from_bytes(to_bytes(method.state_dict()))
    method.loss(model, batch).backward()
    assert all(p.grad is None for p in method._teacher.parameters())
    assert any(bool(p.grad.any()) for p in method._block.parameters())
    assert all(bool(p.grad.any()) for p in method._side.modules["mix_head"].parameters())
    found = [p.grad.clone() for p in model.parameters()]
    assert all(bool(grad.any()) for grad in found)
    model.zero_grad()
    method.load_state_dict(state)
    method.block_loss = lambda batch, *rest: batch.x.new_zeros(())
    method.loss(model, batch).backward()
    assert all(p.grad is None for p in method._block.parameters())  # the student's images teach it nothing
    assert same(found, [p.grad for p in model.parameters()])  # and its own loss nothing to the student


@pytest.mark.parametrize("name", LEARNED)
def test_the_teacher_is_a_slow_average(name):
    model = Net()
    method = ready(name, model)
    with pytest.raises(ValueError, match="first step"):
        _ = method.teacher
    start = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    train(method, model, optimizer, range(1))
    for old, new, teacher in zip(start, model.parameters(), method.teacher.parameters(), strict=True):
        torch.testing.assert_close(teacher, 0.999 * old + 0.001 * new.detach())
    before = weights(method.teacher)
    method.loss(model, data(3)).backward()
    assert same(before, method.teacher.parameters())
    assert method.teacher.training
    assert method.predict(model, data()[0]).shape == (7, 4)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(("dims", "size"), [(1, (24,)), (2, (12, 20)), (3, (8, 6, 4))])
def test_masks_of_signals_images_and_volumes(name, dims, size):
    kinds = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d
    model = Net(4, kinds[dims - 1], kinds[dims + 2], lambda channels: nn.Identity())
    method, batch = ready(name, model), om.Batch(*data(size=size))
    with torch.no_grad():
        assert torch.isfinite(method.loss(model, batch))
        for module in method._block.parameters():
            module.normal_(0, 1, generator=draw())
        recipe = method.draw(batch)[0]
        masks = method.masks(method._look(batch.x)[0], recipe, batch.x)
    assert masks.shape == (7, recipe.share.shape[1], *size)
    assert float(masks.min()) >= 0
    torch.testing.assert_close(masks.sum(dim=1), torch.ones(7, *size))
    assert float(masks.std()) > 0.01


@pytest.mark.parametrize("name", LEARNED)
def test_mixing_an_image_with_itself_changes_nothing(name):
    model, batch = Net(), om.Batch(*data())
    method = ready(name, model)
    method.loss(model, batch)
    recipe = method.draw(batch)[0]
    own = Recipe(torch.arange(7).unsqueeze(1).expand_as(recipe.partner), recipe.share)
    masks = method.masks(method._look(batch.x)[0], own, batch.x)
    torch.testing.assert_close(apply_masks(batch.x, masks, own), batch.x)


@pytest.mark.parametrize("name", LEARNED)
def test_close_to_an_end_the_student_sees_plain_mixup(name):
    model, batch = Net(), om.Batch(*data())
    method = ready(name, model, **({"k": 2} if name == "adautomix" else {}))
    method.loss(model, batch)
    with torch.no_grad():
        method._block.value.weight.fill_(1.0)
    partner = torch.stack((torch.arange(7), torch.arange(7).roll(1)), dim=1)
    z = method._look(batch.x)[0]
    end = 0.03 if name == "adautomix" else 0.08
    inside, outside = end - 0.005, end + 0.005
    for lam, plain in ((inside, True), (1 - inside, True), (outside, False), (1 - outside, False), (0.5, False)):
        recipe = Recipe(partner, torch.tensor([[lam, 1 - lam]]).expand(7, 2))
        mixed = apply_masks(batch.x, method.student_masks(z, recipe, batch.x), recipe)
        found = torch.allclose(mixed, om.mixup(*data(), lam=lam, partner=partner[:, 1]).x, atol=1e-6)
        assert found == plain


@pytest.mark.parametrize("name", LEARNED)
def test_two_colours_show_the_masks_and_labels_follow_the_shares(name):
    model, y = Net(2), torch.arange(9) % 2
    batch = om.Batch(y.float().view(-1, 1, 1, 1).expand(9, 3, 16, 12).contiguous(), y)
    method = om.create(name).setup(model, om.Classification(2), steps=20, generator=draw(1))
    method.loss(model, batch)
    recipe = method.draw(batch)[0]
    masks = method.masks(method._look(batch.x)[0], recipe, batch.x)
    colour = (masks.flatten(2).mean(dim=2) * y[recipe.partner]).sum(dim=1)
    torch.testing.assert_close(apply_masks(batch.x, masks, recipe).flatten(1).mean(dim=1), colour)
    assert torch.equal(recipe.label_share, recipe.share)
    drawn = method.student_masks(method._look(batch.x)[0], Recipe(recipe.partner, _ends(recipe.share)), batch.x)
    torch.testing.assert_close(drawn.flatten(2).mean(dim=2), _ends(recipe.share))


def _ends(share):
    """All weight on the first."""
    return torch.zeros_like(share).index_fill_(1, torch.tensor([0]), 1.0)


@pytest.mark.parametrize("name", ALL)
def test_the_same_generator_gives_the_same_training(name):
    found = []
    for _ in range(2):
        model = Net()
        method = ready(name, model)
        train(method, model, torch.optim.SGD(model.parameters(), 0.05), range(3))
        found.append(weights(model))
    assert same(*found)


def test_attention_cell_by_cell():
    query, key = torch.randn(2, 3, 5, generator=draw()), torch.randn(2, 3, 5, generator=draw(1))
    value, found = torch.randn(2, 3, 1, generator=draw(2)), torch.zeros(2, 3, 1)
    for b in range(2):
        for i in range(3):
            scores = torch.stack([query[b, i] @ key[b, j] / 5**0.5 for j in range(3)]).exp()
            found[b, i] = (scores / scores.sum()) @ value[b]
    torch.testing.assert_close(attend(query, key, value), found)


def test_where_the_masks_come_from():
    x = data(rows=1)[0]
    name, h = mixing_map(create("preact-resnet18", (3, 16, 16), 4, width=2), x)
    assert (name, h.shape) == ("layer3", (1, 8, 4, 4))
    name, h = mixing_map(Net(), x)
    assert (name, h.shape) == ("2", (1, 8, 8, 8))
    alike = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    assert mixing_map(alike, x)[0] == "1"
    assert mixing_map(Net(), x, "3")[1].shape == (1, 12, 4, 4)
    with pytest.raises(ValueError, match=r"'6'.*tap="):
        mixing_map(Net(), x, "6")
    with pytest.raises(ValueError, match="Sequential has no feature map"):
        mixing_map(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), x)


def test_large_maps_are_averaged():
    z = torch.randn(2, 3, 32, 8, generator=draw())
    assert coarse(z).shape == (2, 3, 16, 8)
    torch.testing.assert_close(coarse(z)[:, :, 0], z[:, :, :2].mean(dim=2))
    assert coarse(z.flatten(2)).shape == (2, 3, MOST)
    assert coarse(z[:, :, :16]).data_ptr() == z.data_ptr()


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(
    ("option", "value"), [("margin", 1.5), ("momentum", 0.9), ("lr", 0.0), ("lr_end", -1.0), ("hold", 2.0)]
)
def test_refusals(name, option, value):
    with pytest.raises(ValueError, match=option):
        om.create(name, **{option: value})


def test_unknown_taps_and_tables_are_refused():
    with pytest.raises(ValueError, match="tap must be one of"):
        ready("automix", Net(), tap="none")
    with pytest.raises(ValueError, match="masking mix needs"):
        ready("automix", Net()).loss(Net(), (torch.randn(4, 3), torch.arange(4)))


def test_a_network_in_evaluation_mode_when_loaded():
    model = Net()
    method = ready("automix", model)
    method.loss(model, data())
    state, other = method.state_dict(), Net().eval()
    resumed = ready("automix", other)
    resumed.load_state_dict(state)
    other.train()
    resumed.loss(other, data())
    assert all(module.training for module in resumed.teacher.modules())


@pytest.mark.parametrize("name", ALL)
def test_a_wrapper_of_the_network_and_another_network(name):
    model = Net()
    method = ready(name, model)
    assert torch.isfinite(method.loss(nn.Sequential(model), data()))
    with pytest.raises(ValueError, match="did not reach the head '7'"):
        method.loss(Net(), data())
