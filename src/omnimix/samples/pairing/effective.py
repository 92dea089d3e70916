"""What a choice of partners does to the training distribution: the effective joint table of classes and domains.

    p_partner(z) = sum_u p(u) P(z | criterion, u),   p_eff = E[c] p + (1 - E[c]) p_partner,   E[c] = 1/2 unless folded

Two classes and "different class" give a balanced p_eff; for more classes the pull towards uniform is weaker, and never
the other way (entropy(p_eff) >= entropy(p)). A cell without candidates is its own partner. No training cost.
Source: Teney, Wang, Abbasnejad, "Selective Mixup Helps with Distribution Shifts, But Not (Only) because of Mixup", ICML
2024, arXiv 2305.16817.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ...core.checks import in_unit, one_of
from ...core.table import Table

Relation: TypeAlias = Literal["any", "same", "different"]
RELATIONS: tuple[Relation, ...] = ("any", "same", "different")


@dataclass(frozen=True)
class Effective:
    """Distributions over classes (rows) and domains (columns): of the data, of the partners, and of what is seen."""

    first: Tensor
    partner: Tensor
    effective: Tensor

    def __str__(self) -> str:
        """A table of all cells, with the entropies."""
        values = (self.first, self.partner, self.effective)
        domains = self.first.numel() // len(self.first)
        rows = torch.stack([v.flatten() for v in values], dim=1).tolist()
        lines = [f"{'class':>6} {'domain':>6} {'data':>9} {'partner':>9} {'effective':>9}"]
        lines += [f"{i // domains:>6} {i % domains:>6} " + _numbers(row) for i, row in enumerate(rows)]
        return "\n".join([*lines, f"{'entropy':>13} " + _numbers([float(entropy(v)) for v in values])])


def _numbers(row: list[float]) -> str:
    return " ".join(f"{value:9.4f}" for value in row)


def effective_distribution(
    joint: Tensor, *, label: Relation = "any", domain: Relation = "any", share: float = 0.5
) -> Effective:
    """The distribution that training with a pair criterion sees.

    joint: (classes,) or (classes, domains) probabilities or counts. label, domain: "any", "same" or "different".
    share: E[c], the mean share of the first sample of a pair (1/2 for Beta(a, a); more where the share is folded).
    Returns tables of the shape of `joint` that sum to 1. ValueError for negative or empty tables.
    """
    one_of("label", label, RELATIONS)
    one_of("domain", domain, RELATIONS)
    in_unit("share", share)
    p = joint.double().reshape(joint.shape[0], -1) if joint.ndim in (1, 2) else joint
    if p.ndim != 2 or not bool((p >= 0).all()) or not bool(p.sum() > 0):
        raise ValueError(f"joint must be a (classes,) or (classes, domains) table of numbers >= 0, got {joint!r}")
    p = p / p.sum()
    stranded = _candidates(_candidates((p > 0).double(), label, 0), domain, 1) < 0.5  # exact, unlike sums of shares
    mass = _candidates(_candidates(p, label, 0), domain, 1)
    weight = torch.where(stranded, 0.0, p / torch.where(stranded, 1.0, mass))
    partner = p * _candidates(_candidates(weight, label, 0), domain, 1) + torch.where(stranded, p, 0.0)
    return Effective(*(t.reshape(joint.shape) for t in (p, partner, share * p + (1 - share) * partner)))


def _candidates(mass: Tensor, relation: Relation, dim: int) -> Tensor:
    """For every group along `dim`, the mass of the groups in relation to it."""
    if relation == "same":
        return mass
    total = mass.sum(dim=dim, keepdim=True).expand_as(mass)
    return total if relation == "any" else total - mass


def entropy(p: Tensor) -> Tensor:
    """The entropy in nats of a table that sums to 1; empty cells count 0."""
    return -torch.xlogy(p, p).sum()


def report(
    label: Tensor, domain: Tensor | None = None, *, criterion: tuple[Relation, Relation], share: float = 0.5
) -> Effective:
    """`effective_distribution` of samples with the given class ids (N,) and domain ids (N,); print it to read it.

    criterion: the relations of (label, domain), as in `Criterion`.
    """
    table = Table(label=label) if domain is None else Table(label=label, domain=domain)
    classes = groups(table, "label", "same")
    domains = groups(table, "domain", "any" if domain is None else "same")
    shape = int(classes.max()) + 1, int(domains.max()) + 1
    counts = (classes * shape[1] + domains).bincount(minlength=shape[0] * shape[1]).view(shape)
    return effective_distribution(counts, label=criterion[0], domain=criterion[1], share=share)


def groups(table: Table | None, column: str, relation: Relation = "same") -> Tensor:
    """(N,) ids 0..G-1 of the classes ("label") or domains of a table; all 0 where the relation is "any".

    Soft labels (N, C) count as their largest class. ValueError without a table, or for real values, which form no
    groups.
    """
    if table is None or len(table) == 0:
        raise ValueError(
            "partners chosen by class or domain come from the whole training set: "
            "pass setup(..., table=omnimix.Table(label=..., domain=...))"
        )
    if relation == "any":
        some = table[next(iter(table))]
        return torch.zeros(len(table), dtype=torch.long, device=some.device)
    value = table[column]
    if value.is_floating_point() and value.ndim == 2 and value.shape[1] > 1:
        value = value.argmax(dim=1)
    if value.is_floating_point() or value.ndim != 1:
        raise ValueError(
            f"table column {column!r} must hold one integer id per sample, got {value.dtype} {tuple(value.shape)}"
        )
    ids: Tensor = torch.unique(value, return_inverse=True)[1]
    return ids
