import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.split import observe
from omnimix.networks import create
from omnimix.samples.operation import RecursiveMix
from omnimix.samples.operation.recursivemix import box_mean


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create("small-cnn", (3, 8, 8), 4)


def data(seed, rows=6, size=(8, 8)):
    return torch.randn(rows, 3, *size, generator=draw(seed)), torch.arange(rows) % 4


def ready(model, *parameters, **options):
    return RecursiveMix(*parameters, **options).setup(model, om.Classification(4), generator=draw(1))


def test_box_mean_of_whole_cells_and_of_the_whole_map():
    h = torch.randn(2, 3, 4, 6, generator=draw())
    torch.testing.assert_close(box_mean(h, [slice(0, 8), slice(0, 12)], (8, 12)), h.mean(dim=(2, 3)))
    torch.testing.assert_close(box_mean(h, [slice(2, 6), slice(4, 12)], (8, 12)), h[:, :, 1:3, 2:6].mean(dim=(2, 3)))
    torch.testing.assert_close(box_mean(h, [slice(1, 2), slice(0, 2)], (4, 6)), h[:, :, 1, 0:2].mean(dim=2))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_box_mean_is_roi_align(size):
    ops = pytest.importorskip("torchvision.ops")
    h = torch.randn(2, 5, size[0] // 4, size[1] // 4, generator=draw())
    for low, high in (((0, 3), (9, 31)), ((5, 7), (6, 9)), ((17, 0), (24, 5)), ((0, 0), size)):
        corners = torch.tensor([[low[1], low[0], high[1], high[0]]]).float()
        expected = ops.roi_align(h, [corners, corners], (1, 1), spatial_scale=0.25, aligned=True)
        found = box_mean(h, [slice(a, b) for a, b in zip(low, high, strict=True)], size)
        torch.testing.assert_close(found, expected.flatten(1), atol=1e-5, rtol=1e-5)


def test_the_whole_previous_batch_is_pasted_and_labels_follow_the_area():
    model, seen = small_net(), []
    method = ready(model, 0.9)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    target, previous, mixed_steps = None, None, 0
    for step in range(6):
        x, y = data(step)
        method.loss(model, (x, y))
        found = seen[-1]
        assert torch.equal(found, method._old["x"])
        one_hot = F.one_hot(y, 4).float()
        changed = (found != x).any(dim=1)[0]
        if step == 0:
            assert not changed.any()
            target = one_hot
        elif changed.any():
            mixed_steps += 1
            row, column = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
            box = (slice(int(row[0]), int(row[-1]) + 1), slice(int(column[0]), int(column[-1]) + 1))
            small = F.interpolate(previous, (len(row), len(column)))
            torch.testing.assert_close(found[(..., *box)], small)
            share = len(row) * len(column) / 64
            target = (1 - share) * one_hot + share * target
        else:
            target = one_hot
        torch.testing.assert_close(method._old["target"], target)
        previous = found
    assert mixed_steps >= 4


def test_the_loss_has_a_term_for_the_box():
    model = small_net()
    first, second = data(1), data(2)
    method, twin = ready(model, 1.0, omega=0.7), ready(model, 1.0, omega=0.7)
    method.loss(model, first)
    twin.loss(model, first)
    old = {name: value.clone() for name, value in method._old.items()}
    loss = method.loss(model, second)
    x, target, box, share = twin._paste(second[0], F.one_hot(second[1], 4).float())
    assert share > 0.05
    with observe(model, method._tap) as kept:
        output = model(x)
    inside = model.head(box_mean(kept[method._tap], box, (8, 8)))
    expected = F.cross_entropy(output, target) + 0.7 * share * F.cross_entropy(inside, old["output"].softmax(dim=1))
    torch.testing.assert_close(loss, expected)
    assert not method._old["output"].requires_grad


def test_short_batches_and_passes():
    model = small_net()
    method = ready(model, 1.0)
    method.loss(model, data(0))
    short = data(1, rows=2)
    method.loss(model, short)
    assert len(method._old["x"]) == 2
    longer = data(2)
    torch.testing.assert_close(method.loss(model, longer), F.cross_entropy(model(longer[0]), longer[1]))
    method.before_epoch()
    torch.testing.assert_close(method.loss(model, longer), F.cross_entropy(model(longer[0]), longer[1]))


def test_no_area_is_plain_training():
    model = small_net()
    method = ready(model, 0.0)
    for step in range(3):
        x, y = data(step)
        torch.testing.assert_close(method.loss(model, (x, y)), F.cross_entropy(model(x), y))


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_two_colours(size):
    method, seen = ready(small_net(), 1.0), 0
    y = torch.arange(6) % 2
    x, target = y.float().view(6, 1, 1, 1).expand(6, 3, *size), F.one_hot(y, 4).float()
    for _ in range(20):  # of unmixed batches: mixed ones are resized, which keeps shares to whole cells only
        method._old = {"x": x.flip(0), "target": target.flip(0)}
        mixed, soft, _, share = method._paste(x, target)
        torch.testing.assert_close(mixed.flatten(1).mean(dim=1), soft[:, 1])
        seen += share > 0
    assert seen > 10


@pytest.mark.parametrize(("name", "value"), [("alpha", 1.5), ("omega", -0.1)])
def test_refusals(name, value):
    with pytest.raises(ValueError, match=name):
        RecursiveMix(**{name: value})
