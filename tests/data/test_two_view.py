import pytest
import torch
from torch.utils.data import DataLoader

from omnimix.data.two_view import TwoView, one_view, pair_classes
from omnimix.train import Part


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(seed=0):
    y = torch.arange(40) % 4
    x = torch.rand(40, 1, 3, 2, generator=seeded(9)) + 1 + 10 * y.view(-1, 1, 1, 1)
    return x, y, TwoView(x, y, 4, seeded(seed))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_pairing_is_an_involution_without_fixed_points_and_random(classes):
    pi = pair_classes(classes, seeded())
    assert torch.equal(pi[pi], torch.arange(classes))
    assert bool((pi != torch.arange(classes)).all())
    assert classes == 2 or not torch.equal(pi, pair_classes(classes, seeded(1)))


@pytest.mark.parametrize("classes", [0, 1, 3, 9])
def test_an_odd_number_of_classes_is_refused(classes):
    with pytest.raises(ValueError, match="even"):
        pair_classes(classes, seeded())


def test_the_second_image_is_of_the_partner_class_and_fixed():
    x, y, views = data()
    assert torch.equal(y[views.second], views.pi[y])
    assert len(views.second.unique()) > 10  # not the same image again and again
    first, again = views.take(torch.arange(40)), views.take(torch.arange(40))
    w, v = first[:, :1] / x, again[:, :1] / x
    assert torch.allclose(w, w[:, :1, :1, :1].expand_as(w), atol=1e-5)
    assert not torch.allclose(w, v)
    for weight, views_of_it in ((w, first), (v, again)):
        assert torch.allclose(views_of_it[:, 1:], (1 - weight) * x[views.second], atol=1e-4)
    assert w[:, 0, 0, 0].min() < 0.2 < 0.8 < w[:, 0, 0, 0].max()


def test_items_carry_the_original_class_and_test_items_exact_zeros():
    x, y, views = data()
    row, label = views[7]
    assert row.shape == (2, 3, 2)
    assert label == y[7]
    single = one_view(x)
    assert torch.equal(single[:, :1], x)
    assert not single[:, 1:].any()


def test_equal_generators_give_equal_data_and_missing_classes_are_refused():
    x, y, a = data(3)
    b = data(3)[2]
    assert torch.equal(a.take(torch.arange(40)), b.take(torch.arange(40)))
    with pytest.raises(ValueError, match="every class"):
        TwoView(x[y != 2], y[y != 2], 4, seeded())


def test_workers_draw_fresh_weights_in_every_epoch():
    x, _, views = data()
    loader = DataLoader(views, batch_size=20, num_workers=2, generator=seeded(4))
    epochs = [torch.cat([rows for rows, _ in loader])[:, 0, 0, 0] / x[:, 0, 0, 0] for _ in range(2)]
    weights = torch.cat(epochs)
    assert len(weights.unique()) == 80


def test_it_is_a_part_that_the_training_loop_reads_row_by_row():
    x, y, views = data()
    rows = torch.tensor([3, 17, 5])
    inputs, labels, _ = Part(views, y).take(rows)
    w = inputs[:, :1] / x[rows]
    assert torch.equal(labels, y[rows])
    assert torch.allclose(inputs[:, 1:], (1 - w) * x[views.second[rows]], atol=1e-4)
