"""Decoupled mixup: score each mixed class against all classes except its partners, so both can be sure at once.

    loss = -sum_k lam_k log p_k + sum_k e_k (-log phi_k),   phi_k = exp z_k / sum_(c not another mixed class) exp z_c

with e_k = eta g(lam_k) and g(l) = 1 for l >= threshold, else (l / threshold)^power; lam_k are the label shares, merged
where samples share a class, so a row with a single class is plain cross-entropy.
Source: Liu, Li, Wang, Wu, Liu, Li, "Harnessing Hard Mixed Samples with Decoupled Regularizer", NeurIPS 2023, arXiv
2203.10761. Cost: 1. Unlike the reference, weights go by sample and not by the class order of the batch's first row, and
the term stays at lam = 1/2; as there, a class with a label share of 0.001 or less counts as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.checks import in_unit, non_negative, one_of, positive
from ...core.method import Mix
from ...core.objective import Objective
from ...core.operation import Operation
from ...core.ratio import Beta
from ...core.recipe import Recipe, mix_labels, one_hot
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.task import Classification, Task

Select: TypeAlias = Literal["both", "less", "more"]

ABSENT = 1e-3
"""Label shares up to this count as no trace of the class."""


def decoupled_loss(
    logits: Tensor,
    y: Tensor,
    recipe: Recipe,
    eta: float = 0.1,
    *,
    threshold: float = 1.0,
    power: float = 0.0,
    select: Select = "both",
    labelled: Tensor | None = None,
) -> Tensor:
    """(B,) losses of a mixed batch.

    logits: (B, C). y: class ids (R,) of all rows. eta: weight of the regulariser; 0 is the mixed cross-entropy.
    threshold in (0, 1], power >= 0: see the module's g; power 0 gives every term the weight eta. select: "both" keeps
    a term for every mixed class, "less" only that of the smallest label share, "more" only that of the largest.
    labelled: (R,) bool, False for samples with a pseudo-label, whose terms are then left out (the asymmetric form of
    semi-supervised use; let the labelled sample dominate with `Beta(alpha, fold=True)`). ValueError for soft targets.
    """
    _check(eta, threshold, power, select)
    ids, share = _class_ids(y, logits)[recipe.partner], recipe.label_share
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = -(share * z.log_softmax(dim=1).gather(1, ids)).sum(dim=1)
    if eta == 0:
        return loss
    same = ids.unsqueeze(2) == ids.unsqueeze(1)
    lam = (same * share.unsqueeze(1)).sum(dim=2)
    shows = lam > ABSENT
    term = shows & ~same.tril(-1).any(dim=2)
    term = term & (term.sum(dim=1, keepdim=True) > 1)
    if labelled is not None:
        term = term & (same & labelled[recipe.partner].unsqueeze(1)).any(dim=2)
    mixed = torch.zeros_like(z, dtype=torch.bool).scatter_(1, ids, shows)
    weight = eta * _gain(lam, threshold, power) * _selected(term, lam, select)
    for k in range(ids.shape[1]):
        own = ids[:, k : k + 1]
        kept = z.masked_fill(mixed.scatter(1, own, False), float("-inf"))
        loss = loss + weight[:, k] * (kept.logsumexp(dim=1) - z.gather(1, own).squeeze(1))
    return loss


def two_hot_target(
    y: Tensor, recipe: Recipe, classes: int, *, threshold: float = 1.0, power: float = 0.0, scale: float = 1.0
) -> Tensor:
    """(B, C) targets min(1, scale g(lam_c)) for the classes in each mix, 0 for the others; they need not sum to 1.

    y: class ids (R,). power 0 and scale 1 give 1 to every class in the mix.
    """
    lam = mix_labels(one_hot(y, classes), recipe)
    return torch.where(lam > ABSENT, (scale * _gain(lam, threshold, power)).clamp(max=1.0), 0.0)


class Decoupled(Objective):
    """The decoupled loss, softmax form; see `decoupled_loss` for eta, threshold, power and select."""

    def __init__(self, eta: float = 0.1, threshold: float = 1.0, power: float = 0.0, select: Select = "both") -> None:
        _check(eta, threshold, power, select)
        self.eta, self.threshold, self.power, self.select = eta, threshold, power, select

    def __call__(self, output: Tensor, y: Tensor, recipe: Recipe, task: Task) -> Tensor:
        _require_classes(task)
        return decoupled_loss(
            output, y, recipe, self.eta, threshold=self.threshold, power=self.power, select=self.select
        )


class DecoupledBCE(Objective):
    """The decoupled loss, sigmoid form: binary cross-entropy against `two_hot_target`, summed over classes.

    negative_weight: weight in [0, 1] of the classes that are not in the mix.
    """

    def __init__(
        self, threshold: float = 1.0, power: float = 0.0, scale: float = 1.0, negative_weight: float = 1.0
    ) -> None:
        _check(0.0, threshold, power, "both")
        self.threshold, self.power, self.scale = threshold, power, positive("scale", scale)
        self.negative_weight = in_unit("negative_weight", negative_weight)

    def __call__(self, output: Tensor, y: Tensor, recipe: Recipe, task: Task) -> Tensor:
        _require_classes(task)
        options = {"threshold": self.threshold, "power": self.power, "scale": self.scale}
        target = two_hot_target(_class_ids(y, output), recipe, output.shape[1], **options)
        weight = torch.where(target > 0, 1.0, self.negative_weight)
        return (weight * F.binary_cross_entropy_with_logits(output.float(), target, reduction="none")).sum(dim=1)


@register(
    "decoupled-mixup",
    paper="Harnessing Hard Mixed Samples with Decoupled Regularizer, NeurIPS 2023, arXiv 2203.10761",
    tasks=("classification",),
    search={"alpha": Log(0.1, 8), "eta": Log(0.01, 1), "select": Choice("both", "less", "more")},
)
class DecoupledMixup(Mix):
    """Mix with any operation and train with the decoupled loss, so that both classes of a mix can be predicted surely.

    alpha, per_sample: Beta(alpha, alpha) shares, one a batch or one a sample. eta, threshold, power, select: see
    `decoupled_loss`. operation: None interpolates. places: "input" or names of hidden taps.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        eta: float = 0.1,
        threshold: float = 1.0,
        power: float = 0.0,
        select: Select = "both",
        *,
        per_sample: bool = False,
        operation: Operation | None = None,
        places: Sequence[str] = ("input",),
    ) -> None:
        objective = Decoupled(eta, threshold, power, select)
        super().__init__(
            ratio=Beta(alpha, per_sample=per_sample), operation=operation, objective=objective, places=places
        )


def _check(eta: float, threshold: float, power: float, select: str) -> None:
    non_negative("eta", eta)
    in_unit("threshold", positive("threshold", threshold))
    non_negative("power", power)
    one_of("select", select, ("both", "less", "more"))


def _require_classes(task: Task) -> None:
    if not isinstance(task, Classification):
        raise ValueError(f"the decoupled loss is for classification, the task is {task!r}; use MixedLoss")


def _class_ids(y: Tensor, logits: Tensor) -> Tensor:
    if y.is_floating_point() or y.ndim != 1 or logits.ndim != 2:
        raise ValueError(
            f"the decoupled loss needs class ids (R,) and logits (B, C), got y {tuple(y.shape)} of {y.dtype} and "
            f"logits {tuple(logits.shape)}; for soft or dense targets use MixedLoss"
        )
    return y.long()


def _gain(lam: Tensor, threshold: float, power: float) -> Tensor:
    return (lam / threshold).clamp(max=1.0) ** power


def _selected(term: Tensor, lam: Tensor, select: Select) -> Tensor:
    if select == "both":
        return term
    if select == "more":
        column = lam.masked_fill(~term, -1.0).argmax(dim=1)
    else:  # the last of equals, so that "less" and "more" split a tie
        last = term.shape[1] - 1
        column = last - lam.masked_fill(~term, 2.0).flip(1).argmin(dim=1)
    return term & F.one_hot(column, term.shape[1]).bool()
