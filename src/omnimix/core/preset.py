"""The functional form of a composed mix: one call on a batch of the user's own loop."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Batch
from .operation import Context, Operation
from .pairing import Pairing
from .random import resolve
from .ratio import Ratio, as_share
from .recipe import Mixed, Recipe
from .tree import Tree


def mix_once(
    x: Tree,
    y: Tensor,
    pairing: Pairing,
    ratio: Ratio,
    operation: Operation,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Pair, draw shares and mix one batch. lam and partner, where given, replace the draws.

    lam: a number or (B,) shares of the sample itself. partner: (B,) or (B, K - 1) rows of the batch.
    """
    batch, source = Batch(x, y), resolve(generator)
    count = len(batch)
    if partner is None:
        chosen = pairing(batch, source)
    else:
        if partner.shape[0] != count or partner.is_floating_point() or bool(((partner < 0) | (partner >= count)).any()):
            raise ValueError(f"partner must hold a row 0..{count - 1} for each of the {count} samples, got {partner!r}")
        own = torch.arange(count, device=batch.device).unsqueeze(1)
        chosen = torch.cat((own, partner.to(batch.device).long().reshape(count, -1)), dim=1)
    if lam is None:
        share = ratio(count, chosen.shape[1], source).to(batch.device, non_blocking=True)
    else:
        share = as_share(lam, count, batch.device)
    mixed, recipe = operation(x, Recipe(chosen, share), Context(source, batch.y))
    return Mixed(mixed, y, recipe)
