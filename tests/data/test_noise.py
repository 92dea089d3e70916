import math

import pytest
import torch

from omnimix.data import flip_labels
from omnimix.data.noise import GROUPS, colour_digits, group_sizes, spurious_toy
from omnimix.domains.measure.groups import group_means, worst_group


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


def test_labels_flipped_to_another_class_are_all_wrong_and_uniform() -> None:
    y = torch.arange(20_000) % 5
    noisy, mask = flip_labels(y, 5, 0.25, _generator(), other=True)
    assert int(mask.sum()) == 5000
    assert torch.equal(mask, noisy != y)
    moved = torch.bincount((noisy - y)[mask] % 5, minlength=5).double()
    assert moved[0] == 0
    assert ((moved[1:] - 1250) ** 2 / 1250).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001
    assert torch.equal(flip_labels(y % 2, 2, 1.0, _generator(), other=True)[0], 1 - y % 2)
    assert torch.equal(flip_labels(y, 5, 0.0, _generator(), other=True)[0], y)


def test_the_toy_has_the_groups_of_the_paper() -> None:
    assert group_sizes(1000, 0.99) == [495, 5, 5, 495]
    assert group_sizes(1001, 0.5) == [250, 250, 250, 251]
    assert group_sizes(10, 1.0) == [5, 0, 0, 5]
    x, y, group = spurious_toy(group_sizes(1000, 0.99), _generator(), noise=3000)
    assert torch.bincount(group).tolist() == [495, 5, 5, 495]
    assert x.shape == (1000, 3010)
    sign, attribute = torch.tensor(GROUPS)[group].unbind(1)
    assert torch.equal(2 * y - 1, sign)
    assert x[:, 10:].square().sum(dim=1).mean().item() == pytest.approx(1, rel=0.02)
    for features, centre in ((x[:, :5], sign), (x[:, 5:10], attribute)):  # causal first, then spurious
        assert (features - centre.unsqueeze(1)).mean().abs() < 4 * 0.5 / 5000**0.5
        assert (features - centre.unsqueeze(1)).std().item() == pytest.approx(0.5, rel=0.05)
    again = spurious_toy(group_sizes(1000, 0.99), _generator(), noise=3000)
    assert torch.equal(x, again[0])


def test_the_causal_features_of_the_toy_decide_as_their_law_says() -> None:
    """The sum of d features of deviation 0.5 around the sign errs with probability Phi(-2 sqrt(d))."""
    x, y, group = spurious_toy([20_000] * 4, _generator(), causal=1, spurious=0, noise=0)
    wrong = ((x[:, 0] > 0).long() != y).double()
    law = 0.5 * math.erfc(2 / 2**0.5)
    assert wrong.mean().item() == pytest.approx(law, abs=4 * (law / 80_000) ** 0.5)
    five = spurious_toy([20_000] * 4, _generator(), spurious=0, noise=0)
    assert ((five[0].sum(dim=1) > 0).long() != five[1]).sum() <= 4  # 80,000 times 3.9e-6 is 0.3
    means = group_means(wrong, group)[1]
    worst = worst_group(wrong, group, higher_is_better=False)
    assert worst >= wrong.mean() >= means.min()


def test_refusals_of_the_toy() -> None:
    for arguments, word in ((([1, 2, 3],), "groups"), (([1, 2, 3, -1],), "sizes")):
        with pytest.raises(ValueError, match=word):
            spurious_toy(*arguments, _generator())
    with pytest.raises(ValueError, match="noise"):
        spurious_toy([1] * 4, _generator(), noise=-1)
    with pytest.raises(ValueError, match="correlation"):
        group_sizes(10, 1.5)


def test_coloured_digits_follow_the_noisy_label() -> None:
    digit = torch.randint(10, (60_000,), generator=_generator())
    domain = torch.arange(60_000) % 3
    flips, agreement = torch.tensor([0.25, 0.1, 0.0])[domain], 1 - torch.tensor([0.1, 0.2, 0.9])[domain]
    images = torch.randint(1, 256, (60_000, 2, 2), dtype=torch.uint8, generator=_generator(1))
    x, y, flipped, agrees = colour_digits(images, digit, flips, agreement, _generator(2))
    used = x.flatten(2).amax(2) > 0
    assert (used.sum(1) == 1).all()
    assert torch.equal(x.sum(1).to(torch.uint8), images)
    colour = used.long().argmax(1)
    assert torch.equal(colour == y, agrees)
    clean = (digit < 5).long()
    assert torch.equal(flipped, y != clean)
    for number, (flip, agree) in enumerate(((0.25, 0.9), (0.1, 0.8), (0.0, 0.1))):
        rows = domain == number
        assert agrees[rows].double().mean().item() == pytest.approx(agree, abs=0.01)
        assert flipped[rows].double().mean().item() == pytest.approx(flip, abs=0.01)
        shape = (clean == y)[rows & agrees].double().mean().item()  # flips do not know the colour
        assert shape == pytest.approx(1 - flip, abs=0.015 if agree > 0.5 else 0.03)
    assert torch.equal(y[domain == 2], clean[domain == 2])
    always = colour_digits(images, digit, 0.0, 1.0, _generator())
    assert torch.equal(always.y, clean)
    assert always.agrees.all()


def test_refusals_of_coloured_digits() -> None:
    images, digit = torch.ones(4, 2, 2), torch.arange(4)
    for values, word in (
        ((images, digit, 1.5, 0.9), "flips"),
        ((images, digit, 0.1, torch.tensor([0.1, 0.2, 0.3, 1.4])), "agreement"),
        ((images, digit, 0.1, torch.ones(3)), "4 rows"),
        ((images[0], digit, 0.1, 0.9), "images"),
    ):
        with pytest.raises(ValueError, match=word):
            colour_digits(*values, _generator())
