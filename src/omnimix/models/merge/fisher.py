"""Fisher merging: a mean weighted by how sure each model is of each weight.

theta_j = sum_i w_i F_ij theta_ij / sum_i w_i F_ij, F_i the diagonal of the Fisher information of model i: the mean over
examples of E_{y ~ p_i(y|x)} (d log p_i(y|x) / d theta)^2. Matena and Raffel, "Merging models with Fisher-weighted
averaging", NeurIPS 2022, arXiv:2111.09832.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.checks import positive
from .base import Block, Merger
from .linear import checked_weights
from .source import working

FLOOR = 1e-12
"""Below this sum of weights an entry takes the plain weighted mean."""


def fisher(
    models: Sequence[Tensor],
    information: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The Fisher-weighted mean of tensors of one shape.

    information: the diagonals, >= 0, of the same shape. weights: one number a tensor, default all 1. dtype: of the
    result, default that of the first. Entries that no model knows anything of take the plain weighted mean. ValueError
    for weights that do not fit.
    """
    shares = checked_weights(weights or [1.0] * len(models), normalize=True)
    work = working(models[0].dtype)
    above, below = torch.zeros_like(models[0], dtype=work), torch.zeros_like(models[0], dtype=work)
    mean = torch.zeros_like(above)
    for model, known, share in zip(models, information, shares, strict=True):
        part = known.to(work) * share
        above.addcmul_(part, model.to(work))
        below.add_(part)
        mean.add_(model.to(work), alpha=share)
    return torch.where(below > FLOOR, above / below.clamp(min=FLOOR), mean).to(dtype or models[0].dtype)


class Fisher(Merger):
    """Fisher merging of whole models.

    information: a mapping of tensor name to diagonal for each model (see `fisher_information`); tensors that one lacks,
    such as buffers, take the plain weighted mean. weights: one number a model. normalize: scale the information of each
    model to the same sum first, so that a confident model, whose information is tiny, does not lose everywhere.
    """

    name: ClassVar[str] = "fisher"
    whole: ClassVar[bool] = True

    def __init__(
        self,
        information: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float] | None = None,
        *,
        normalize: bool = False,
    ) -> None:
        self.information = information
        self.weights = checked_weights(weights or [1.0] * len(information), normalize=True)
        self.scales = [1.0] * len(information)
        if normalize:
            sums = [float(sum(part.double().sum() for part in one.values())) for one in information]
            self.scales = [1.0 / positive("the sum of information", total) for total in sums]

    def combine(self, block: Block, found: Any) -> Tensor:
        if all(block.name in one for one in self.information):
            known = [one[block.name] * scale for one, scale in zip(self.information, self.scales, strict=True)]
        else:
            known = [torch.zeros_like(block.models[0])] * len(block.models)
        return fisher(block.models, known, self.weights)


def fisher_information(model: nn.Module, inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """The diagonal Fisher information of a classifier's trainable weights: name to a float32 tensor.

    inputs: batches x; `model(x)` gives logits (B, C). The expectation runs over all C classes, example by example, and
    the model is put into evaluation mode meanwhile. Gradients and modes are left as they were. ValueError without data.
    """
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    buffers = {name: value.detach() for name, value in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}

    def likelihoods(given: dict[str, Tensor], one: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, (given, buffers), (one[None],))
        return logits[0].log_softmax(-1)

    jacobian = torch.func.vmap(torch.func.jacrev(likelihoods), in_dims=(None, 0), randomness="same")
    seen = 0
    model.eval()
    try:
        for x in inputs:
            with torch.no_grad():
                chance = model(x).softmax(-1)
            for name, part in jacobian(weights, x).items():
                total[name] += torch.einsum("bc,bc...->...", chance, part.detach() ** 2).float()
            seen += len(x)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise ValueError("inputs must hold at least one batch")
    return {name: value / seen for name, value in total.items()}
