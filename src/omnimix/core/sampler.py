"""Orders in which the training rows come, beside a plain shuffle."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import at_least
from .random import permutation


def by_group(group: Tensor, size: int, steps: int, generator: torch.Generator, some: int | None = None) -> list[Tensor]:
    """`steps` batches with equally many rows of every group, group after group: (size // G * G,) rows each.

    group: (N,) ids, for instance domains. Each group is gone through in a shuffled order, and then in another one; a
    group smaller than its share of a batch comes several times in it. some: so many groups in a batch, drawn anew for
    each; None: all G of them. ValueError if a batch has no row for each group.
    """
    ids = torch.unique(group)
    count = len(ids) if some is None else min(at_least("some", some, 1), len(ids))
    each = size // count
    if not each:
        raise ValueError(f"batch_size = {size} has no room for a row of each of the {count} groups; use a larger one")
    columns = []
    for one in ids:
        rows = torch.nonzero(group == one).flatten().cpu()
        passes = -(-steps * each // len(rows))
        order = torch.cat([rows[permutation(len(rows), generator)] for _ in range(passes)])
        columns.append(order[: steps * each].view(steps, each))
    if count == len(ids):
        return list(torch.cat(columns, dim=1).unbind())
    chosen = torch.zeros(steps, len(ids), dtype=torch.long)
    for row in chosen:
        row[permutation(len(ids), generator)[:count]] = 1
    stack, visit = torch.stack(columns), chosen.cumsum(dim=0) - 1
    groups = [row.nonzero().flatten() for row in chosen]
    return [stack[here, turn[here]].flatten() for here, turn in zip(groups, visit, strict=True)]


def by_class_and_domain(
    label: Tensor, domain: Tensor, size: int, each: int, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """`steps` batches of size // each classes with `each` rows of every one, spread evenly over the domains.

    label, domain: (N,) ids. Classes are drawn anew for each batch, and come once in it as long as there are enough of
    them; what does not divide by the number of domains goes to domains drawn for the batch. A cell smaller than its
    share comes several times; for an empty one, rows of the class from all domains.
    """
    label, domain = label.cpu(), domain.cpu()
    domains = torch.unique(domain)
    whole = [torch.nonzero(label == one).flatten() for one in torch.unique(label)]
    cells = [[rows[domain[rows] == one] for one in domains] for rows in whole]
    each = min(each, size)
    batches = []
    for _ in range(steps):
        quota = torch.full((len(domains),), each // len(domains))
        quota[permutation(len(domains), generator)[: each % len(domains)]] += 1
        classes = _several(torch.arange(len(whole)), size // each, generator).tolist()
        shares = [
            _several(cell if len(cell) else whole[one], int(count), generator)
            for one in classes
            for cell, count in zip(cells[one], quota, strict=True)
        ]
        batches.append(torch.cat(shares))
    return batches


def _several(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) of the rows in random order, none twice before all have come once."""
    passes = -(-count // len(rows))
    return torch.cat([rows[:0], *(rows[permutation(len(rows), generator)] for _ in range(passes))])[:count]
