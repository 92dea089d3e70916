"""Label noise for robustness studies: a share of the labels is replaced by uniform random ones.

Source: the corrupted-label experiment of "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import at_least, in_unit
from ..core.random import integers, permutation


def flip_labels(y: Tensor, classes: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(noisy y, mask of the replaced rows), both (N,); exactly round(share * N) rows are replaced.

    y: class ids (N,). The new label is uniform over all `classes`, the original included, so about share / classes of
    the rows are drawn and yet keep their label. ValueError for other targets or a share outside [0, 1].
    """
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(
            f"label noise needs class ids (N,), got {y.dtype} of shape {tuple(y.shape)}; it has no meaning for "
            "regression and multi-label targets"
        )
    at_least("classes", classes, 2)
    chosen = permutation(len(y), generator)[: round(in_unit("share", share) * len(y))].to(y.device)
    noisy, mask = y.clone(), torch.zeros(len(y), dtype=torch.bool, device=y.device)
    noisy[chosen] = integers(classes, len(chosen), generator=generator).to(y)
    mask[chosen] = True
    return noisy, mask
