"""DomainDrop: drop the channels that tell the domain, train against what tells it, and let two dropped passes agree.

    loss = CE + mean_l CE(D_l(r(pool h_l)), domain) + w (KL(p || q) + KL(q || p)) / 2
    p = softmax(o / T), q = softmax(o' / T);   key of channel c = u^(1 / s_c), u ~ U(0, 1)
    s = minmax_c(mean over places of minmax_c(h_l[c] W_l[domain, c]))

D_l is a linear classifier of domains with weights W_l at tap l, r multiplies the gradient by -lam, o and o' are the
outputs of two copies of the batch in one pass. In most steps one tap drops the channels with the largest keys, which
are mostly those of large score, and scales the others up. Source: Guo, Qi, Shi, "DomainDrop: Suppressing
Domain-Sensitive Channels for Domain Generalization", ICCV 2023, arXiv 2308.10285. Cost: 2 (the doubled batch). The
divergence is a mean over samples and classes, as in the authors' code. Where all channels of a place score alike (dead
ones do) that code drops nothing of the sample; here such places weigh nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, non_negative, one_of, positive
from ...core.method import Setup
from ...core.random import integers, repeated, uniform
from ...core.registry import register
from ...core.reversal import reverse
from ...core.search import Choice, Log
from ...core.side import linear
from ...core.sided import Sided
from ...core.taps import Taps
from ...core.tree import tree_map
from .base import ByDomain

STAGES = ("layer1", "layer2", "layer3", "layer4")


def domain_scores(h: Tensor, weight: Tensor) -> Tensor:
    """(B, C) in [0, 1]: how much each channel of h (B, C, *spatial) speaks for the sample's domain.

    weight: (B, C) of the classifier of domains, for the true one. 0 for samples whose channels all speak alike.
    """
    product = h.flatten(2) * weight.unsqueeze(2) if h.ndim > 2 else (h * weight).unsqueeze(2)
    return _spread(_spread(product).mean(dim=2))


def _spread(value: Tensor) -> Tensor:
    """From 0 to 1 over dimension 1; 0 where all are equal."""
    low, high = value.aminmax(dim=1, keepdim=True)
    return (value - low) / (high - low).clamp(min=1e-12)


def largest_keys(score: Tensor, count: int, u: Tensor | None = None) -> Tensor:
    """(B, C) True for the `count` channels of each row to drop; those of score 0 are never among them.

    u: (B, C) uniforms; the keys u^(1 / score) draw channels one by one in proportion to their scores. None: the
    channels of the largest scores.
    """
    key = score if u is None else u.clamp(min=torch.finfo(u.dtype).tiny).log() / score
    among = torch.zeros_like(score, dtype=torch.bool).scatter_(1, key.topk(count, dim=1).indices, True)
    return among & (score > 0)


def agreement(output: Tensor, other: Tensor, temperature: float) -> Tensor:
    """The mean over samples and classes of half the two divergences of the softened outputs (B, C)."""
    p, q = (F.log_softmax(o.float() / temperature, dim=1) for o in (output, other))
    return ((p.exp() - q.exp()) * (p - q)).mean() / 2


@register(
    "domaindrop",
    paper="DomainDrop: Suppressing Domain-Sensitive Channels for Domain Generalization, ICCV 2023, arXiv 2308.10285",
    tasks=("classification",),
    cost=2.0,
    level="domains",
    search={"lam": Log(0.01, 1), "drop": Choice(0.2, 0.33, 0.5), "weight": Log(0.1, 5)},
)
class DomainDrop(Sided, ByDomain):
    """Drop the channels that tell the domain, train against what tells it, and let two dropped passes agree.

    drop in [0, 1): the share of channels to drop, `probability`: of the steps that drop. lam >= 0: how much the network
    is trained against the classifiers of domains. weight >= 0, temperature > 0: of the agreement. stages: drop at "one"
    tap of a step, or at "all". random: draw by score; otherwise the largest scores go. rescale: keep the mean of the
    mask at 1. taps: names of modules that give (B, C) or (B, C, *spatial); None: layer1 to layer4, as in the paper,
    where the network has those, else its first two.
    """

    def __init__(
        self,
        drop: float = 0.33,
        lam: float = 0.25,
        weight: float = 1.5,
        *,
        temperature: float = 5.0,
        probability: float = 0.8,
        stages: Literal["one", "all"] = "one",
        random: bool = True,
        rescale: bool = True,
        taps: Sequence[str] | None = None,
    ) -> None:
        if in_unit("drop", drop) == 1:
            raise ValueError("drop must be a number in [0, 1), got 1: nothing would be left")
        self.drop, self.lam, self.weight = drop, non_negative("lam", lam), non_negative("weight", weight)
        self.temperature, self.probability = positive("temperature", temperature), in_unit("probability", probability)
        self.stages, self.random, self.rescale = one_of("stages", stages, ("one", "all")), random, rescale
        self.tap_names = taps

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.taps = Taps(given.model, self.tap_names, given.split, published=STAGES)

    def observed(self) -> tuple[str, ...]:
        return self.taps.names

    def build(self, sizes: Mapping[str, int]) -> Mapping[str, nn.Module]:
        widths = [sizes[name] for name in self.taps.names]
        return {str(i): linear(c, len(self.domains), c**-0.5, self.generator) for i, c in enumerate(widths)}

    def chosen(self) -> list[bool]:
        """Whether each tap drops channels in this step."""
        count = len(self.taps.names)
        if float(uniform(1, generator=self.generator)) >= self.probability:
            return [False] * count
        if self.stages == "all":
            return [True] * count
        which = int(integers(count, 1, generator=self.generator))
        return [i == which for i in range(count)]

    def domain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        side, group = self.beside(model, batch.x), self.group(batch).repeat(2)
        guesses: dict[str, Tensor] = {}

        def tap(classifier: nn.Module, name: str, drops: bool) -> Callable[[Tensor], Tensor]:
            weight = cast(Tensor, classifier.weight)

            def rewrite(h: Tensor) -> Tensor:
                pooled = (h.flatten(2).mean(dim=2) if h.ndim > 2 else h).float()
                guesses[name] = classifier(reverse(pooled, self.lam))
                return h * self.mask(h.detach(), weight.detach()[group]) if drops else h

            return repeated(rewrite, self.generator)

        parts = zip(self.taps.names, side.modules.values(), self.chosen(), strict=True)
        with self.taps.rewrite({name: tap(part, name, drops) for name, part, drops in parts}):
            output = model(tree_map(lambda t: torch.cat((t, t)), batch.x))
        told = torch.stack([F.cross_entropy(guess, group) for guess in guesses.values()]).mean()
        loss = self.task.mean_loss(output, torch.cat((batch.y, batch.y))) + told
        first, second = output.chunk(2)
        return side.watch(loss + self.weight * agreement(first, second, self.temperature))

    def mask(self, h: Tensor, weight: Tensor) -> Tensor:
        """What to multiply the maps h (B, C, *spatial) by; weight as in `domain_scores`."""
        score = domain_scores(h.float(), weight)
        u = uniform(*score.shape, generator=self.generator).to(score) if self.random else None
        keep = (~largest_keys(score, int(self.drop * score.shape[1]), u)).to(h.dtype)
        if self.rescale:
            keep = keep * (keep.numel() / keep.sum(dtype=torch.float32)).to(h.dtype)
        return keep.view(*keep.shape, *[1] * (h.ndim - 2))
