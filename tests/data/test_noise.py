import pytest
import torch

from omnimix.data import flip_labels


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_exactly_the_share_is_replaced_by_uniform_labels() -> None:
    y = torch.zeros(20_000, dtype=torch.int64)
    noisy, mask = flip_labels(y, 5, 0.4, _generator())
    assert int(mask.sum()) == 8000
    assert torch.equal(noisy[~mask], y[~mask])
    counts = torch.bincount(noisy[mask], minlength=5).double()
    assert ((counts - 1600) ** 2 / 1600).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001
    assert not y.any()


def test_the_generator_decides() -> None:
    y = torch.arange(100) % 10
    one, two, other = (flip_labels(y, 10, 0.5, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[1], other[1])


def test_no_noise_and_nothing_but_noise() -> None:
    y = torch.arange(50) % 2
    assert torch.equal(flip_labels(y, 2, 0, _generator())[0], y)
    assert flip_labels(y, 2, 1, _generator())[1].all()


@pytest.mark.parametrize(
    ("y", "share", "word"),
    [(torch.zeros(4), 0.1, "regression"), (torch.zeros(4, 2), 0.1, "multi-label"), (torch.arange(4), 1.5, "share")],
)
def test_refusals(y: torch.Tensor, share: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        flip_labels(y, 4, share, _generator())
