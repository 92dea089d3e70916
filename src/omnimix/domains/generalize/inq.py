"""QT-DoG with INQ: weights become powers of two in portions, the largest first, while the others go on learning.

    2^n <= 4 |w| / 3 < 2^(n + 1)  ->  w^ = sign(w) 2^n, n in n2..n1;   w^ = 0 where |w| < 2^(n2 - 1)
    n1 = floor(log2(4 max|W| / 3)),   n2 = n1 + 1 - 2^(b - 1) / 2,   W: the weight of a layer as rounding begins

A portion done stays as it is. The paper of QT-DoG takes INQ as a second way to round, beside LSQ. Sources: Javed, Le,
Salzmann, 2024, arXiv 2410.06020; Zhou, Yao, Guo, Xu, Chen, "Incremental Network Quantization: Towards Lossless CNNs
with Low-precision Weights", ICLR 2017, arXiv 1702.03044 (accumulated portions 0.5, 0.75, 0.875, 1; b = 5). Cost: 1.
Portions follow in equal shares of the steps from `start` on, so that after the last one what is not rounded (biases,
normalisation, the head) still learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least
from ...core.method import Setup
from ...core.registry import register
from ...core.search import Choice
from .qt_dog import Layers, RoundedWeights, Rounder


def largest_power(w: Tensor) -> Tensor:
    """2^n1 for the weights w, a scalar in float32 or float64; 0 where they are all 0."""
    return _power(4 * _wide(w).abs().amax() / 3)


def powers_of_two(w: Tensor, top: Tensor, bits: int) -> Tensor:
    """The weights w, each 0 or a power of two from `top` = 2^n1 down to 2^n2, of which bits says how many there are."""
    size = _wide(w).abs()
    low = top * 2.0 ** (1 - 2 ** (bits - 2))
    found = torch.where(size < low / 2, 0.0, torch.minimum(torch.maximum(_power(4 * size / 3), low), top))
    return (w.sign() * found).to(w.dtype)


def _wide(w: Tensor) -> Tensor:
    return w.detach() if w.dtype == torch.float64 else w.detach().float()


def _power(v: Tensor) -> Tensor:
    """The largest power of two up to v >= 0, exactly; 0 for 0."""
    mantissa = torch.frexp(v).mantissa
    return v / torch.where(v > 0, mantissa, 1.0) / 2


@register(
    "qt-dog-inq",
    paper="QT-DoG: Quantization-aware Training for Domain Generalization, 2024, arXiv 2410.06020",
    level="domains",
    inputs=("image",),
    search={"bits": Choice(4, 5, 6), "start": Choice(0.2, 0.4, 0.6)},
)
class INQ(RoundedWeights):
    """Turn weights into powers of two in portions, the largest first, while the others go on learning.

    bits: 2..8; there are 2^(bits - 2) powers of either sign, and 0. portions: shares of a layer's weights rounded after
    each turn, ascending, the last one 1. start, layers, keep: see `RoundedWeights`.
    """

    def __init__(
        self,
        bits: int = 5,
        start: float = 0.4,
        portions: Sequence[float] = (0.5, 0.75, 0.875, 1.0),
        *,
        layers: Layers = "conv",
        keep: Sequence[str] = (),
    ) -> None:
        super().__init__(start, layers, keep)
        self.bits, self.portions = at_least("bits", bits, 2), tuple(portions)
        if bits > 8:
            raise ValueError(f"bits must be at most 8, got {bits!r}")
        if not portions or portions[-1] != 1 or not all(a < b for a, b in pairwise((0.0, *portions))):
            raise ValueError(f"portions must ascend from above 0 to 1, got {portions!r}")

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        if given.steps is None:
            raise ValueError("inq rounds in turns over the planned steps: pass setup(..., steps=...)")
        length, last = (given.steps - self.first) / len(self.portions), max(self.first, given.steps - 1)
        self.turns = [min(self.first + round(turn * length), last) for turn in range(len(self.portions))]
        self.done = 0
        self.tops: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}

    def rounders(self) -> dict[str, Rounder]:
        def rounder(fixed: Tensor, frozen: Tensor) -> Rounder:
            return lambda w: torch.where(frozen.to(w.device), fixed.to(w), w)

        return {name: rounder(self.fixed[name], self.frozen[name]) for name in self.fixed}

    @torch.no_grad()
    def _turn(self, portion: float) -> None:
        """Round the largest weights of each layer, those rounded before among them, up to a share `portion`."""
        for name, layer in self.rounded.items():
            weight = layer.weight.detach()
            if name not in self.fixed:
                self.tops[name] = largest_power(weight)
                self.fixed[name], self.frozen[name] = (
                    torch.zeros_like(weight),
                    torch.zeros_like(weight, dtype=torch.bool),
                )
            top, fixed, before = (t[name].to(weight.device) for t in (self.tops, self.fixed, self.frozen))
            size = weight.abs().masked_fill(before, torch.inf).flatten()
            now = torch.zeros_like(size, dtype=torch.bool)
            now[size.topk(round(portion * len(size))).indices] = True
            now = now.view_as(before)
            self.fixed[name] = torch.where(before, fixed, torch.where(now, powers_of_two(weight, top, self.bits), 0.0))
            self.frozen[name] = now

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        while model.training and self.done < len(self.turns) and self.steps_done >= self.turns[self.done]:
            self._turn(self.portions[self.done])
            self.done += 1
        return self.plain_loss(model, batch)

    def state_dict(self) -> dict[str, Any]:
        parts = {"tops": self.tops, "fixed": self.fixed, "frozen": self.frozen}
        return {**super().state_dict(), "done": self.done, **{name: dict(part) for name, part in parts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.done = int(state["done"])
        self.tops, self.fixed, self.frozen = (dict(state[name]) for name in ("tops", "fixed", "frozen"))
