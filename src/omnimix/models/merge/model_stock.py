"""Model stock: pull the mean of a few fine-tuned models toward their pretrained base, by the angle of their changes.

theta = t mean_i(theta_i) + (1-t) theta_0, t = n cos / (1 + (n-1) cos), tensor by tensor, cos between the changes
theta_i - theta_0. Jang et al., "Model stock: all we need is just a few fine-tuned models", ECCV 2024, arXiv:2403.19522.
For n > 2 cos is the mean over pairs (the paper gives no rule); cos < 0 counts as 0, which gives the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .base import Block, Blocks, Merger
from .source import working


def model_stock(models: Sequence[Tensor], base: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """The model stock of tensors of one shape; at least two models.

    dtype: of the result, default that of the base. A change of zero length gives the base.
    """
    merger = ModelStock()
    merger.fit(len(models), True)
    work = working(base.dtype)
    block = Block([m.to(work).reshape(-1) for m in models], base.to(work).reshape(-1), "", 0)
    merged = merger.combine(block, merger.measure(lambda: iter([block])))
    return merged.reshape(base.shape).to(dtype or base.dtype)


class ModelStock(Merger):
    """Model stock of whole models, tensor by tensor."""

    name: ClassVar[str] = "model-stock"
    base: ClassVar[Literal["required", "none"]] = "required"
    fewest: ClassVar[int] = 2

    def measure(self, blocks: Blocks) -> float:
        """t, from the products of the changes."""
        gram: Tensor | None = None
        for block in blocks():
            assert block.base is not None
            changes = torch.stack(block.models) - block.base
            # pieces whose float32 sums stay exact enough
            parts = torch.stack([part @ part.T for part in torch.split(changes, 2**16, dim=1)]).double().sum(0)
            gram = parts if gram is None else gram + parts
        if gram is None:  # an empty tensor
            return 1.0
        n, size = len(gram), gram.diagonal().sqrt()
        pairs = [float(gram[i, j] / (size[i] * size[j]).clamp(min=1e-30)) for i, j in combinations(range(n), 2)]
        cosine = min(1.0, max(0.0, sum(pairs) / len(pairs)))
        return n * cosine / (1 + (n - 1) * cosine)

    def combine(self, block: Block, found: Any) -> Tensor:
        assert block.base is not None
        merged: Tensor = block.base * (1 - found)
        for model in block.models:
            merged.add_(model, alpha=found / len(block.models))
        return merged
