"""Label noise for robustness studies, and a toy in which it makes a linear model lean on a spurious feature.

A share of the labels is replaced, by uniform random ones or by other ones. Sources: the corrupted-label experiment of
"mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412; Qiao, Low, "Understanding Domain
Generalization: A Noise Robustness Perspective", ICLR 2024, arXiv 2401.14846.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.checks import at_least, in_unit
from ..core.random import integers, permutation

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
    sign, attribute = torch.tensor(GROUPS)[group].unsqueeze(2).unbind(1)
    widths = [at_least(name, width, 0) for name, width in zip(WIDTHS, (causal, spurious, noise), strict=True)]
    drawn = torch.randn(len(group), sum(widths), generator=generator, device=generator.device)
    first, second, rest = torch.split(drawn, widths, dim=1)
    x = torch.cat((sign + DEVIATION * first, attribute + DEVIATION * second, rest / max(1, noise) ** 0.5), dim=1)
    return x, (sign.flatten() + 1) // 2, group
