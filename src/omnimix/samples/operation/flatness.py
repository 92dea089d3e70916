"""How flat the classes lie in a representation: what manifold mixup is meant to reduce.

Source: Verma et al., "Manifold Mixup", ICML 2019, arXiv 1806.05236.
"""

from __future__ import annotations

import torch
from torch import Tensor


def class_spectra(h: Tensor, y: Tensor) -> Tensor:
    """(C, min(N, D)) singular values, largest first, of each class's centred representations, padded with zeros.

    h: (N, ...) representations, flattened to (N, D). y: (N,) class ids; C counts the classes that occur, in order.
    """
    h = h.flatten(1)
    classes = torch.unique(y)
    spectra = h.new_zeros(len(classes), min(h.shape))
    for row, c in zip(spectra, classes, strict=True):
        values = torch.linalg.svdvals(h[y == c] - h[y == c].mean(dim=0))
        row[: len(values)] = values
    return spectra


def within_class_share(h: Tensor, y: Tensor) -> Tensor:
    """Within-class over total variance, in [0, 1]: 0 if every class is a point, 1 if all class means agree.

    h: (N, ...) representations. y: (N,) class ids.
    """
    h = h.flatten(1)
    index = torch.unique(y, return_inverse=True)[1]
    size = index.bincount().unsqueeze(1)
    mean = h.new_zeros(len(size), h.shape[1]).index_add_(0, index, h) / size
    within: Tensor = (h - mean[index]).square().sum()
    return within / (h - h.mean(dim=0)).square().sum()
