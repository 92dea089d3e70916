"""Feature matching: train on risk and on how much the features of the domains differ, pair by pair.

    loss = mean_d R_d + gamma 2 / (D (D - 1)) sum_{d < e} distance(Z_d, Z_e),   Z_d: the head's inputs of domain d

CORAL: squared differences of means and of covariances, each averaged over its entries. Source: Sun, Saenko, "Deep
CORAL: Correlation Alignment for Deep Domain Adaptation", ECCV 2016 workshops, arXiv 1607.01719. MMD: E k(d, d) +
E k(e, e) - 2 E k(d, e) with k a sum of Gaussians. Source: Li, Pan, Wang, Kot, "Domain Generalization with Adversarial
Feature Learning", CVPR 2018. Both as DomainBed trains them. Cost: 1, and a product of features by features, or of
samples by samples.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import non_negative
from ...core.method import Setup
from ...core.registry import register
from ...core.search import Log
from ...core.split import Split
from .base import ByDomain, held, over_held

WIDTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Gaussian kernels exp(-width |z - z'|^2) that MMD sums."""


def coral_distance(z: Tensor, share: Tensor) -> Tensor:
    """(D, D) CORAL distances of the domains; z (B, F), share (D, B) as in `ByDomain.shares`.

    A domain of one sample has no covariance; it counts as zero.
    """
    mean = share @ z
    member = share > 0
    count = member.sum(dim=1)
    centred = (z - mean.unsqueeze(1)) * member.unsqueeze(2)
    covariance = centred.transpose(1, 2) @ centred / (count - 1).clamp(min=1).view(-1, 1, 1)
    means = (mean.unsqueeze(1) - mean.unsqueeze(0)).square().mean(dim=-1)
    return means + (covariance.unsqueeze(1) - covariance.unsqueeze(0)).square().mean(dim=(-2, -1))


def mmd_distance(z: Tensor, share: Tensor) -> Tensor:
    """(D, D) squared maximum mean discrepancies of the domains; arguments as in `coral_distance`."""
    wide = z if z.dtype == torch.float64 else z.float()  # narrow kernels magnify the rounding of differences
    square = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist").square().to(z.dtype)
    kernel = torch.stack([torch.exp(-width * square) for width in WIDTHS]).sum(dim=0)
    mean = share @ kernel @ share.T
    own = mean.diagonal()
    return own.unsqueeze(1) + own.unsqueeze(0) - 2 * mean


class Match(ByDomain):
    """Base of methods that match the features of the domains. gamma >= 0: the weight of their mean distance."""

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = non_negative("gamma", gamma)

    @staticmethod
    @abstractmethod
    def distance(z: Tensor, share: Tensor) -> Tensor:
        """(D, D) distances of the domains; of no meaning where one has no samples."""

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.split = given.split or Split(given.model)

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        z, output = self.split.features_and_output(batch.x, model)
        losses, share = self.task.losses(output, batch.y), self.shares(batch)
        z = z.flatten(1) if z.dtype == torch.float64 else z.flatten(1).float()
        there = held(share)
        pairs = torch.triu(there.unsqueeze(1) & there, diagonal=1)
        distance = over_held(self.distance(z, share.to(z.dtype)).flatten(), pairs.flatten())
        return over_held(share.to(losses.dtype) @ losses, there) + self.gamma * distance


@register(
    "coral",
    paper="Deep CORAL: Correlation Alignment for Deep Domain Adaptation, ECCV workshops 2016, arXiv 1607.01719",
    level="domains",
    search={"gamma": Log(1e-1, 10)},
)
class CORAL(Match):
    """Make means and covariances of the features alike in all domains.

    gamma >= 0: the weight of their mean squared differences.
    """

    distance = staticmethod(coral_distance)


@register(
    "mmd",
    paper="Domain Generalization with Adversarial Feature Learning, CVPR 2018",
    level="domains",
    search={"gamma": Log(1e-1, 10)},
)
class MMD(Match):
    """Make the distributions of the features alike in all domains, as kernels of several widths see them.

    gamma >= 0: the weight of the mean maximum mean discrepancy.
    """

    distance = staticmethod(mmd_distance)
