"""Label noise for robustness studies, a toy and coloured digits in which it makes models lean on a spurious feature.

A share of the labels is replaced, by uniform random ones or by other ones. Sources: the corrupted-label experiment of
"mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412; Qiao, Low, "Understanding Domain
Generalization: A Noise Robustness Perspective", ICLR 2024, arXiv 2401.14846. The attribute of the toy goes with the
clean label, the colour of the digits with the noisy one: it beats the shape where it disagrees more rarely than labels
are flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import at_least, in_unit
from ..core.random import integers, permutation, uniform

GROUPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""(label, attribute) of the groups of the toy."""
DEVIATION = 0.5
"""Of its causal and spurious features around the label and the attribute."""
WIDTHS = ("causal", "spurious", "noise")


def flip_labels(
    y: Tensor, classes: int, share: float, generator: torch.Generator, *, other: bool = False
) -> tuple[Tensor, Tensor]:
    """(noisy y, mask of the replaced rows), both (N,); exactly round(share * N) rows are replaced.

    y: class ids (N,). The new label is uniform over all `classes`, the original included, so about share / classes of
    the rows are drawn and yet keep their label; other: over the other classes, so that the mask is where labels differ.
    ValueError for other targets or a share outside [0, 1].
    """
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(
            f"label noise needs class ids (N,), got {y.dtype} of shape {tuple(y.shape)}; it has no meaning for "
            "regression and multi-label targets"
        )
    at_least("classes", classes, 2)
    chosen = permutation(len(y), generator)[: round(in_unit("share", share) * len(y))].to(y.device)
    noisy, mask = y.clone(), torch.zeros(len(y), dtype=torch.bool, device=y.device)
    new = integers(classes - other, len(chosen), generator=generator).to(y)
    noisy[chosen] = (y[chosen] + 1 + new) % classes if other else new
    mask[chosen] = True
    return noisy, mask


def group_sizes(count: int, correlation: float) -> list[int]:
    """How many of `count` samples each of GROUPS has where the attribute is the label with that probability.

    Rounded, not drawn; the last one takes what rounding leaves.
    """
    in_unit("correlation", correlation)
    shares = [correlation / 2 if y == a else (1 - correlation) / 2 for y, a in GROUPS]
    found = [round(at_least("count", count, 1) * share) for share in shares[:-1]]
    return [*found, count - sum(found)]


def spurious_toy(
    sizes: Sequence[int], generator: torch.Generator, *, causal: int = 5, spurious: int = 5, noise: int = 3000
) -> tuple[Tensor, Tensor, Tensor]:
    """(x (N, causal + spurious + noise), y (N,) in {0, 1}, group (N,)) with `sizes[g]` samples of GROUPS[g] in a row.

    The sign of the label 2 y - 1 is the mean of the causal features, the attribute that of the spurious ones, both of
    deviation 0.5; noise features have the variance 1 / noise, a norm of about 1. Flip y with `flip_labels` afterwards.
    """
    if len(sizes) != len(GROUPS):
        raise ValueError(f"sizes must be those of the {len(GROUPS)} groups (label, attribute) {GROUPS}, got {sizes!r}")
    group = torch.repeat_interleave(torch.arange(len(GROUPS)), torch.tensor([at_least("sizes", n, 0) for n in sizes]))
    widths = [at_least(name, width, 0) for name, width in zip(WIDTHS, (causal, spurious, noise), strict=True)]
    drawn = torch.randn(len(group), sum(widths), generator=generator, device=generator.device)
    return toy_features(drawn, group, causal, spurious), (torch.tensor(GROUPS)[group, 0] + 1) // 2, group


def toy_features(drawn: Tensor, group: Tensor, causal: int = 5, spurious: int = 5) -> Tensor:
    """The inputs of `spurious_toy` (N, width), made of standard normal numbers (N, width), for the groups (N,)."""
    sign, attribute = torch.tensor(GROUPS, device=group.device)[group].unsqueeze(2).unbind(1)
    noise = drawn.shape[1] - causal - spurious
    first, second, rest = torch.split(drawn, [causal, spurious, noise], dim=1)
    return torch.cat((sign + DEVIATION * first, attribute + DEVIATION * second, rest / max(1, noise) ** 0.5), dim=1)


class Coloured(NamedTuple):
    """Images x (N, 2, H, W), labels y (N,) of two classes, and by row: `flipped`, and whether the colour `agrees`."""

    x: Tensor
    y: Tensor
    flipped: Tensor
    agrees: Tensor


def colour_digits(
    images: Tensor, digit: Tensor, flips: float | Tensor, agreement: float | Tensor, generator: torch.Generator
) -> Coloured:
    """Images (N, H, W) put into channel y with probability `agreement`, else into the other one, which stays 0.

    y is whether the digit (N,) of 0 to 9 is below 5, flipped with probability `flips`. flips, agreement: in [0, 1], of
    each row where (N,). Give 0 flips to the rows of domains to test in.
    """
    if images.ndim != 3 or digit.shape != images.shape[:1]:
        raise ValueError(f"images must be (N, H, W) and digit (N,), got {tuple(images.shape)}, {tuple(digit.shape)}")
    chances = [_chance(name, value, digit) for name, value in (("flips", flips), ("agreement", agreement))]
    flipped, agrees = (uniform(len(digit), generator=generator).to(digit.device) < chance for chance in chances)
    y = (digit < 5) ^ flipped
    x = images.new_zeros(len(digit), 2, *images.shape[1:])
    x[torch.arange(len(digit), device=digit.device), torch.where(agrees, y, ~y).long()] = images
    return Coloured(x, y.long(), flipped, agrees)


def _chance(name: str, value: float | Tensor, digit: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return in_unit(name, value)
    if value.shape != digit.shape or not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"{name} must be one number in [0, 1], or one for each of the {len(digit)} rows, got {value}")
    return value.to(digit.device)
