import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.combine import Repeat, Schedule
from omnimix.core.pairing import InTable
from omnimix.core.ratio import Constant

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(1))
TASK = om.Classification(3)


def net():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p) * (i + 1) / 4)
    return model


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Ahead(InTable):
    """The partner of row i is i + 1, then i + 2, ..."""

    def __init__(self):
        self.calls = 0

    def draw(self, index, generator):
        self.calls += 1
        return ((index + self.calls) % 12).unsqueeze(1)


def test_the_losses_of_the_repeats_are_averaged():
    model = net()
    method = Repeat(om.Mixup(), 3).setup(model, TASK, generator=draw())
    one = om.Mixup().setup(model, TASK, generator=draw())
    single = [one.loss(model, (X, Y)) for _ in range(3)]
    assert len({float(loss.detach()) for loss in single}) == 3
    torch.testing.assert_close(method.loss(model, (X, Y)), torch.stack(single).mean())
    assert method.cost == 3


def test_the_method_is_drawn_anew_for_each_repeat_and_counts_steps_once():
    model, seen = net(), []

    class Tag(om.ERM):
        def loss(self, model, batch, **streams):
            seen.append(self)
            return super().loss(model, batch)

    parts = [Tag(), Tag()]
    method = Repeat(om.Alternate(parts), 2).setup(model, TASK)
    method.loss(model, (X, Y))
    method.after_step()
    assert seen == parts
    assert [part.steps_done for part in parts] == [1, 1]
    assert method.steps_done == 1


def test_every_repeat_has_guests_of_its_own():
    model = net()
    method = Repeat(om.Mix(Ahead(), Constant(0.25)), 2).setup(model, TASK, om.Table(label=Y), generator=draw())
    _, guests = method.rows(torch.tensor([0, 5]))
    assert guests.tolist() == [[1, 2], [6, 7]]
    rows = torch.tensor([0, 5, 1, 6, 2, 7])
    found = method.loss(model, om.Batch(X[rows], Y[rows], index=rows, anchors=2))
    expected = []
    for other in ([1, 6], [2, 7]):
        x = 0.25 * X[[0, 5]] + 0.75 * X[other]
        losses = [nn.functional.cross_entropy(model(x), Y[part]) for part in ([0, 5], other)]
        expected.append(0.25 * losses[0] + 0.75 * losses[1])
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_a_repeated_method_goes_on_where_it_was_kept():
    model = net()
    make = lambda seed: Repeat(om.Choose([om.Mixup(), om.ERM()]), 2).setup(model, TASK, generator=draw(seed))  # noqa: E731
    first, other = make(0), make(1)
    first.loss(model, (X, Y))
    other.load_state_dict(first.state_dict())
    assert [float(first.loss(model, (X, Y)).detach()) for _ in range(4)] == [
        float(other.loss(model, (X, Y)).detach()) for _ in range(4)
    ]


def test_evaluation_is_never_mixed():
    model = net().eval()
    method = Repeat(om.Mixup(), 2).setup(model, TASK)
    torch.testing.assert_close(method.loss(model, (X, Y)), method.plain_loss(model, om.Batch(X, Y)))


@pytest.mark.parametrize("make", [lambda: Repeat(om.create("sam")), lambda: Repeat(om.Choose([om.create("sam")]))])
def test_methods_that_make_more_of_a_step_are_refused(make):
    with pytest.raises(ValueError, match="one gradient of its loss"):
        make()


def test_other_anchors_are_refused():
    class Other(om.ERM):
        def rows(self, index):
            return index.flip(0), None

    with pytest.raises(ValueError, match="its own choice"):
        Repeat(Other()).setup(net(), TASK).rows(torch.arange(4))
    with pytest.raises(ValueError, match="times"):
        Repeat(om.ERM(), 0)


def test_a_schedule_of_three():
    model = net()
    parts = [om.ERM(), om.Mixup(), om.ERM()]
    method = Schedule(parts, [0.2, 0.5, 0.3]).setup(model, TASK, steps=10, generator=draw())
    assert [parts.index(method._current()) for _ in range(12)] == [0] * 2 + [1] * 5 + [2] * 5
    nothing = Schedule(parts, [0.5, 0.5, 0.0]).setup(model, TASK, steps=4, generator=draw())
    assert [parts.index(nothing._current()) for _ in range(6)] == [0, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="shares must be 3 numbers"):
        Schedule(parts, [0.5, 0.5])
    with pytest.raises(ValueError, match="pass setup"):
        Schedule(parts, [0.2, 0.5, 0.3]).setup(model, TASK)


def test_methods_that_end_training_in_their_own_way_are_no_parts():
    for make in (
        lambda m: Repeat(m),
        lambda m: Schedule([om.ERM(), m], [0.5, 0.5]),
        lambda m: om.Choose([om.ERM(), m]),
    ):
        for name in ("swad", "drm"):
            with pytest.raises(ValueError, match=r"cannot be one part of a method|cannot be repeated"):
                make(om.create(name))
