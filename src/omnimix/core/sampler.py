"""Orders in which the training rows come, beside a plain shuffle."""

from __future__ import annotations

import torch
from torch import Tensor

from .random import permutation


def by_group(group: Tensor, size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """`steps` batches with equally many rows of every group, group after group: (size // G * G,) rows each.

    group: (N,) ids, for instance domains. Each group is gone through in a shuffled order, and then in another one; a
    group smaller than its share of a batch comes several times in it. ValueError if a batch has no row for each group.
    """
    ids = torch.unique(group)
    each = size // len(ids)
    if not each:
        raise ValueError(
            f"batch_size = {size} has no room for a row of each of the {len(ids)} groups; use a larger one"
        )
    columns = []
    for one in ids:
        rows = torch.nonzero(group == one).flatten().cpu()
        passes = -(-steps * each // len(rows))
        order = torch.cat([rows[permutation(len(rows), generator)] for _ in range(passes)])
        columns.append(order[: steps * each].view(steps, each))
    return list(torch.cat(columns, dim=1).unbind())
