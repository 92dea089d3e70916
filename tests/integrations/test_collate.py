import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import omnimix as om

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_mixed_with_soft_targets(workers):
    loader = DataLoader(
        TensorDataset(X, Y), 5, collate_fn=om.collate(om.mixup, num_classes=3, alpha=8.0), num_workers=workers
    )
    found = list(loader)
    assert [len(x) for x, _ in found] == [5, 5]
    for position, (x, target) in enumerate(found):
        assert torch.allclose(target.sum(dim=1), torch.ones(5))
        assert not torch.equal(x, X[5 * position : 5 * position + 5])
        assert torch.allclose(x.mean(dim=0), X[5 * position : 5 * position + 5].mean(dim=0), atol=1e-6)


def test_workers_do_not_repeat_each_other():
    twice = TensorDataset(X[:5].repeat(2, 1), Y[:5].repeat(2))
    loader = DataLoader(twice, 5, collate_fn=om.collate(om.mixup, num_classes=3, alpha=1.0), num_workers=2)
    (first, _), (second, _) = list(loader)
    assert not torch.equal(first, second)


def test_class_ids_without_the_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="soft_target needs num_classes"):
        om.collate(om.mixup)([(X[0], Y[0]), (X[1], Y[1])])


def test_real_targets_need_no_number_of_classes():
    x, y = om.collate(om.mixup, lam=0.5, partner=torch.tensor([1, 0]))([(X[0], 1.0), (X[1], 3.0)])
    assert y.tolist() == [2.0, 2.0]
    assert torch.allclose(x[0], (X[0] + X[1]) / 2)
