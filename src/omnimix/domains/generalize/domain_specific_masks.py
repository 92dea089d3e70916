"""DMG: every domain learns which channels it uses; a new domain gets the mean of what they all say.

    h <- b * h,   b ~ Bernoulli(m_d) per sample and channel,   m_d = sigmoid(a_d),   d: the sample's domain
    loss = CE + lam_o sum_l mean_{d < e} sIoU(m_d, m_e) + lam_s sum_{l, d, j} m_d
    sIoU(m, m') = sum_j m m' / sum_j (m + m' - m m')

The gradient passes to a_d as if b were m_d. Prediction: logits with h <- m_d h, averaged over the domains d. Source:
Chattopadhyay, Balaji, Hoffman, "Learning to Balance Specificity and Invariance for In and Out of Domain
Generalization", ECCV 2020, arXiv 2008.12839. Cost: 1; prediction: as many passes as domains. Dropout is off while masks
train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import non_negative, one_of, positive
from ...core.method import Setup
from ...core.random import repeated, uniform
from ...core.registry import register
from ...core.search import Log
from ...core.sided import Sided
from ...core.split import evaluating
from ...core.taps import Taps, all_of
from ...core.tree import tree_map
from .base import ByDomain

SMOOTH = 1e-6
STAGES = ("layer3", "layer4")


def soft_overlap(m: Tensor) -> Tensor:
    """The mean soft intersection over union of two of the masks m (D, J) in [0, 1]; 0 for a single one."""
    both, own = m @ m.T, m.sum(dim=1)
    overlap = (both + SMOOTH) / (own.unsqueeze(1) + own - both + SMOOTH)
    pairs = len(m) * (len(m) - 1) / 2
    return torch.triu(overlap, diagonal=1).sum() / max(pairs, 1)


def straight_through(m: Tensor, u: Tensor) -> Tensor:
    """1 where u < m, else 0; its gradient by m is 1."""
    return ((u < m).to(m.dtype) - m).detach() + m


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout layers in evaluation mode within the block."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


class Masks(nn.Module):
    """Logits (D, J) of the channels that each domain uses."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self) -> Tensor:
        """(D, J) probabilities."""
        return self.logits.sigmoid()


@register(
    "dmg",
    paper="Learning to Balance Specificity and Invariance for In and Out of Domain Generalization, ECCV 2020, "
    "arXiv 2008.12839",
    level="domains",
    search={"overlap": Log(1e-2, 1), "lr": Log(1e-4, 1e-2)},
)
class DMG(Sided, ByDomain):
    """Let every domain learn which channels it uses, and average the predictions that their masks give.

    overlap, sparsity >= 0: the weights lam_o and lam_s. layers: names of modules whose inputs are masked, channel by
    channel; None: layer3, layer4 and the head, as in the paper, where the network has those, else its taps but the
    first, and its head. lr: of the masks' Adam; the authors take the network's. init: "uniform" logits in [0, 1], or
    one number for all. predictions: average those of "each" mask, or predict once with the "mean" mask.
    """

    def __init__(
        self,
        overlap: float = 0.1,
        sparsity: float = 0.0,
        layers: Sequence[str] | None = None,
        *,
        lr: float = 1e-3,
        init: float | Literal["uniform"] = "uniform",
        predictions: Literal["each", "mean"] = "each",
    ) -> None:
        self.overlap, self.sparsity = non_negative("overlap", overlap), non_negative("sparsity", sparsity)
        self.layer_names, self.init = layers, init
        self.predictions = one_of("predictions", predictions, ("each", "mean"))
        self.optimizer = partial(torch.optim.Adam, lr=positive("lr", lr))

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        names = (*(all_of(given.model, STAGES) or self.split.taps[1:]), self.split.head_name)
        self.layers = Taps(given.model, names if self.layer_names is None else self.layer_names, given.split)

    @torch.no_grad()
    def measure(self, model: nn.Module, x: Any) -> dict[str, int]:
        sizes: dict[str, int] = {}

        def note(name: str) -> Callable[[Tensor], Tensor]:
            return lambda h: (sizes.update({name: h.shape[1]}), h)[1]

        functions = {name: note(name) for name in self.layers.names}
        with evaluating(model), self.layers.rewrite(functions, model, before=True):
            model(tree_map(lambda t: t[:1], x))
        return sizes

    def build(self, sizes: Mapping[str, int]) -> Mapping[str, nn.Module]:
        modules = {}
        for i, name in enumerate(self.layers.names):
            logits = uniform(len(self.domains), sizes[name], generator=self.generator).float()
            modules[str(i)] = Masks(logits if self.init == "uniform" else torch.full_like(logits, self.init))
        return modules

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        side, group = self.beside(model, batch.x), self.group(batch)

        def sampled(m: Tensor) -> Callable[[Tensor], Tensor]:
            def rewrite(h: Tensor) -> Tensor:
                return _masked(straight_through(m[group], uniform(*h.shape[:2], generator=self.generator).to(m)), h)

            return repeated(rewrite, self.generator)

        masks = {name: part() for name, part in zip(self.layers.names, side.modules.values(), strict=True)}
        functions = {name: sampled(m) for name, m in masks.items()}
        with without_dropout(model), self.layers.rewrite(functions, model, before=True):
            loss = self.task.mean_loss(model(batch.x), batch.y)
        for m in masks.values():
            loss = loss + self.overlap * soft_overlap(m) + self.sparsity * m.sum()
        return side.watch(loss)

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        if self.side is None:
            return super().predict(model, x)
        masks = self._probabilities()
        if self.predictions == "mean":
            return self._with(model, x, [m.mean(dim=0, keepdim=True) for m in masks])
        passes = ([m[d : d + 1] for m in masks] for d in range(len(self.domains)))
        return torch.stack([self._with(model, x, chosen) for chosen in passes]).mean(dim=0)

    def predict_in(self, model: nn.Module, x: Any, domain: Tensor) -> Tensor:
        """Outputs for samples of domains (B,), in those of the training set with the channels of probability above 1/2.

        Samples of other domains are predicted as `predict` does.
        """
        if self.side is None:
            return self.predict(model, x)
        known = self.domains.to(domain.device)
        match = domain.unsqueeze(1) == known
        hard = [(m > 0.5).to(m.dtype)[match.int().argmax(dim=1)] for m in self._probabilities()]
        seen = match.any(dim=1)
        if bool(seen.all()):
            return self._with(model, x, hard)
        other = self.predict(model, x)
        if not bool(seen.any()):
            return other
        return torch.where(seen.view(-1, *[1] * (other.ndim - 1)), self._with(model, x, hard), other)

    def _probabilities(self) -> list[Tensor]:
        assert self.side is not None
        self.side.to(next(self.split.model.parameters()).device)
        return [part() for part in self.side.modules.values()]

    def _with(self, model: nn.Module, x: Any, masks: Sequence[Tensor]) -> Tensor:
        functions = {name: partial(_masked, mask) for name, mask in zip(self.layers.names, masks, strict=True)}
        with self.layers.rewrite(functions, model, before=True):
            return super().predict(model, x)


def _masked(mask: Tensor, h: Tensor) -> Tensor:
    """h (B, J, *spatial) times mask (B or 1, J)."""
    return h * mask.to(h.dtype).view(*mask.shape, *[1] * (h.ndim - 2))
