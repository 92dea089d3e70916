"""RegMean: merge linear layers so that their outputs stay nearest to those of every model on its own inputs.

W = (sum_i G_i)^-1 sum_i G_i W_i with G_i = X_i^T X_i / N, off-diagonals of G_i times `shrink`; with W_i (in, out)
it minimises sum_i |X_i W - X_i W_i|^2. Other weights take the mean. Jin et al., "Dataless knowledge fusion by merging
weights of language models", ICLR 2023, arXiv:2212.09849.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.checks import in_unit
from .base import Block, Merger
from .linear import Linear
from .patches import patches, solvable, watching

RIDGE = 1e-9
"""Added to the diagonal of the summed Gram matrices, relative to its mean."""


def regmean(
    models: Sequence[Tensor], grams: Sequence[Tensor], *, shrink: float = 0.9, dtype: torch.dtype | None = None
) -> Tensor:
    """The RegMean of weights (out, in) as torch stores them (convolutions: (out, in, *kernel), flattened).

    grams: (in, in) each, X^T X / N of the layer's inputs in that model. shrink in [0, 1]: factor of their off-diagonal
    entries; 1 is least squares. dtype: of the result, default that of the first. ValueError outside.
    """
    in_unit("shrink", shrink)
    if len(grams) != len(models):
        raise ValueError(f"grams must be one matrix a model: got {len(grams)} for {len(models)} models")
    flat = torch.stack([weight.double().flatten(1).T for weight in models])
    seen = torch.stack([gram.double() for gram in grams])
    seen = seen * shrink + torch.diag_embed(seen.diagonal(dim1=1, dim2=2) * (1 - shrink))
    below, mean = seen.sum(0), flat.mean(0)
    ridge = RIDGE * float(below.diagonal().mean()) or 1.0
    # the ridge pulls toward the mean, so that directions no model has seen take the mean and not 0
    eye = torch.eye(len(below), dtype=below.dtype, device=below.device)
    solved: Tensor = torch.linalg.solve(below + ridge * eye, (seen @ flat).sum(0) + ridge * mean)
    return solved.T.reshape(models[0].shape).to(dtype or models[0].dtype)


class RegMean(Merger):
    """RegMean of whole models.

    grams: for each model a mapping of weight name ("layer.weight") to Gram matrix (see `gram_matrices`); tensors that
    have none take the mean.
    """

    name: ClassVar[str] = "regmean"
    whole: ClassVar[bool] = True

    def __init__(self, grams: Sequence[Mapping[str, Tensor]], *, shrink: float = 0.9) -> None:
        self.grams, self.shrink = grams, in_unit("shrink", shrink)

    def combine(self, block: Block, found: Any) -> Tensor:
        if not all(block.name in one for one in self.grams):
            return Linear().combine(block, None)
        return regmean(block.models, [one[block.name] for one in self.grams], shrink=self.shrink)


def gram_matrices(model: nn.Module, inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """X^T X / N of the inputs of every linear and ungrouped convolution layer: weight name to (in, in), float64.

    inputs: batches that `model(x)` takes; the model is put into evaluation mode meanwhile. Rows are all positions of
    all examples. ValueError without data.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str, layer: nn.Module, given: Tensor, out: Tensor) -> None:
        rows = patches(layer, given)
        sums[name] = sums.get(name, 0.0) + rows.T @ rows
        counts[name] = counts.get(name, 0) + len(rows)

    layers = {f"{name}.weight".lstrip("."): layer for name, layer in model.named_modules() if solvable(layer)}
    with watching(model, layers, note):
        for x in inputs:
            model(x)
    if not sums:
        raise ValueError("inputs must hold at least one batch, and the model at least one linear or convolution layer")
    return {name: total / counts[name] for name, total in sums.items()}
