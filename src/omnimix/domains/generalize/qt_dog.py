"""QT-DoG: go on training with weights rounded to few bits, so that training ends where rounding does no harm.

    w^ = s round(clip(w / s, -2^(b-1), 2^(b-1) - 1)),   gradients pass the rounding as if it were not there

The step sizes s, one a channel, are learned (LSQ; Esser et al., ICLR 2020, arXiv 1902.08153), from 2 mean |w| /
sqrt(2^(b-1) - 1) at the step where rounding begins; their gradient is scaled by 1 / sqrt(numel(w) (2^(b-1) - 1)).
Source: Javed, Le, Salzmann, "QT-DoG: Quantization-aware Training for Domain Generalization", 2024, arXiv 2410.06020.
Cost: 1. The network keeps its own weights and optimiser, which move under the rounding, and gets the rounded ones at
the end. The authors' code swaps layers without telling the optimiser, so that rounded weights and step sizes stop
learning: `reference=True`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, in_unit, one_of, positive
from ...core.method import Method, Setup
from ...core.registry import register
from ...core.search import Choice
from ...core.side import Beside

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SMALLEST = 1e-8
"""Step sizes stay above it."""
Layers = Literal["conv", "all"]
Rounder = Callable[[Tensor], Tensor]


def bounds(bits: int) -> tuple[int, int]:
    """The lowest and the highest of the 2^bits levels."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def first_step_size(w: Tensor, bits: int, per_channel: bool = True) -> Tensor:
    """The step size at which LSQ starts: (out, 1, ...), or of w's number of dimensions and one element."""
    axes = tuple(range(1 if per_channel else 0, w.ndim))
    mean: Tensor = w.detach().float().abs().mean(dim=axes, keepdim=True)
    return 2 * mean / math.sqrt(bounds(bits)[1])


def lsq_levels(w: Tensor, s: Tensor, bits: int) -> Tensor:
    """Integers k in `bounds(bits)`, of the smallest signed type that holds them, with `lsq(w, s, bits)` = s k."""
    kind = torch.int8 if bits <= 8 else torch.int16 if bits <= 16 else torch.int32
    return (w / _valid(s, w)).clamp(*bounds(bits)).round().to(kind)


def lsq(w: Tensor, s: Tensor, bits: int) -> Tensor:
    """The weights w rounded to levels s apart; differentiable in both as LSQ defines it."""
    low, high = bounds(bits)
    s = _valid(s, w)
    scaled = s * (1.0 / (w.numel() * high) ** 0.5)
    s = s.detach() + (scaled - scaled.detach())
    v = (w / s).clamp(low, high)
    return (v.round().detach() + (v - v.detach())) * s


def _valid(s: Tensor, w: Tensor) -> Tensor:
    return s.abs().clamp(min=max(SMALLEST, torch.finfo(w.dtype).tiny)).to(w.dtype)


class MeanOutput(nn.Module):
    """The mean of the outputs of several networks: an ensemble of quantised ones is the paper's EoQ."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        at_least("the number of networks", len(networks), 1)
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Any) -> Tensor:
        return torch.stack([network(x) for network in self.networks]).mean(dim=0)


class RoundedWeights(Method):
    """Base of methods that train a network whose layers compute with rounded weights from some step on.

    The network keeps its own weights, which move under the rounding, and gets the rounded ones at the end. start in
    [0, 1]: the share of the planned steps before rounding begins. layers: "conv" rounds convolutions, "all" linear
    layers too; keep: names of layers to leave alone.
    """

    def __init__(self, start: float, layers: Layers, keep: Sequence[str]) -> None:
        self.start, self.keep = in_unit("start", start), tuple(keep)
        self.layers: Layers = one_of("layers", layers, ("conv", "all"))
        self._handles: list[Any] = []

    def on_setup(self, given: Setup) -> None:
        if self.start and given.steps is None:
            raise ValueError(
                "rounding begins after a share of the planned steps: pass setup(..., steps=...), or start=0"
            )
        self.first = round(self.start * (given.steps or 0))
        kinds = CONVOLUTIONS if self.layers == "conv" else (*CONVOLUTIONS, nn.Linear)
        modules = dict(given.model.named_modules())
        for name in self.keep:
            one_of("keep", name, modules)
        self.rounded = {n: m for n, m in modules.items() if type(m) in kinds and n not in self.keep}
        if not self.rounded:
            raise ValueError(
                f"{type(given.model).__name__} has no {'convolution' if self.layers == 'conv' else 'layer'} to round"
                + ("; layers='all' rounds linear layers" if self.layers == "conv" else "")
            )

    @abstractmethod
    def rounders(self) -> dict[str, Rounder]:
        """What to do with the weight of each layer, by name; empty before rounding begins."""

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Within the block, and where activation checkpointing repeats it, layers compute with rounded weights."""
        self._release()
        inside = [True]
        for name, rounder in self.rounders().items():
            swap, back = self._hooks(self.rounded[name], rounder, inside)
            self._handles.append(self.rounded[name].register_forward_pre_hook(swap))
            self._handles.append(self.rounded[name].register_forward_hook(back, always_call=True))
        try:
            yield
        finally:
            inside.clear()
            if not torch.is_grad_enabled():
                self._release()

    def _hooks(
        self, layer: nn.Module, rounder: Rounder, inside: list[bool]
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        own: list[nn.Parameter] = []  # closures: a copy of the network must not copy the method

        def swap(module: nn.Module, inputs: Any) -> None:
            repeated = torch._C._current_graph_task_id() != -1
            if module is layer and (inside or repeated):
                weight = module._parameters["weight"]
                assert weight is not None
                own.append(weight)
                module._parameters["weight"] = rounder(weight)  # type: ignore[assignment]

        def back(module: nn.Module, inputs: Any, output: Any) -> None:
            if module is layer and own:
                module._parameters["weight"] = own.pop()

        return swap, back

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def plain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.mean_loss(self.predict(model, batch.x), batch.y)

    def predict(self, model: nn.Module, x: Any) -> Tensor:
        with self.rounding():
            return super().predict(model, x)

    @torch.no_grad()
    def after_training(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Give the network the rounded weights; nothing where rounding has not begun."""
        self._release()
        for name, rounder in self.rounders().items():
            weight = self.rounded[name].weight
            weight.copy_(rounder(weight))


@register(
    "qt-dog",
    paper="QT-DoG: Quantization-aware Training for Domain Generalization, 2024, arXiv 2410.06020",
    level="domains",
    inputs=("image",),
    search={"bits": Choice(5, 6, 7, 8), "start": Choice(0.2, 0.4, 0.6)},
)
class QTDoG(RoundedWeights):
    """Round the weights to few bits from some step on, and go on training them and the steps between levels.

    bits: 2..32. start in [0, 1]: the share of the planned steps before rounding begins. layers: "conv" rounds
    convolutions, "all" linear layers too; keep: names of layers to leave alone. per_channel: a step size for each
    output channel, else one a layer. step_rate > 0: the learning rate of step sizes, in that of the network.
    """

    one_process = True

    def __init__(
        self,
        bits: int = 7,
        start: float = 0.4,
        *,
        layers: Layers = "conv",
        keep: Sequence[str] = (),
        per_channel: bool = True,
        step_rate: float = 1.0,
        reference: bool = False,
    ) -> None:
        super().__init__(start, layers, keep)
        self.bits, self.step_rate = at_least("bits", bits, 2), positive("step_rate", step_rate)
        if bits > 32:
            raise ValueError(f"bits must be at most 32, got {bits!r}")
        self.per_channel, self.reference = per_channel, reference

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self.side: Beside | None = None
        self.rate: float | None = None

    def _due(self) -> bool:
        """Whether weights are rounded now; begins with it at the step where it is due."""
        if self.side is None and self.given is not None and self.steps_done >= self.first:
            self._begin([first_step_size(m.weight, self.bits, self.per_channel) for m in self.rounded.values()])
        return self.side is not None

    def _begin(self, sizes: Sequence[Tensor]) -> None:
        steps = nn.ParameterList([nn.Parameter(s) for s in sizes])
        self.side = Beside({"steps": steps}, partial(torch.optim.Adam, lr=1e-4))

    def step_sizes(self) -> dict[str, Tensor]:
        """Of each rounded layer by name; empty before rounding begins."""
        if self.side is None:
            return {}
        self.side.to(next(self._given().model.parameters()).device)
        return dict(zip(self.rounded, self.side.modules["steps"].parameters(), strict=True))

    def rounders(self) -> dict[str, Rounder]:
        bits, reference = self.bits, self.reference

        def rounder(s: Tensor) -> Rounder:
            return lambda w: lsq(w, s, bits).detach() if reference else lsq(w, s, bits)

        return {name: rounder(s) for name, s in self.step_sizes().items()}

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training or not self._due() or self.reference:
            return self.plain_loss(model, batch)
        loss = self.plain_loss(model, batch)
        assert self.side is not None
        return self.side.watch(loss)

    def step(
        self,
        model: nn.Module,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        clip: Callable[[], Any] | None = None,
        **streams: Any,
    ) -> Tensor:
        if self._due():
            self.follow(optimizer)
        return super().step(model, batch, optimizer, backward, clip, **streams)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        if self.side is not None:
            self.side.like(optimizer)
            self.rate = self.step_rate * optimizer.param_groups[0]["lr"]

    def after_step(self) -> None:
        if self.side is not None and not self.reference:
            if self.side.optimizer is not None:
                for group in self.side.optimizer.param_groups:
                    group["weight_decay"] = 0.0  # which would shrink the range of levels
            self.side.step(self.rate)
        super().after_step()

    def levels(self) -> dict[str, dict[str, Tensor]]:
        """For each rounded layer the "levels", integers, and the "step" between them: their product is the weight."""
        return {
            name: {"levels": lsq_levels(self.rounded[name].weight, s, self.bits), "step": _valid(s, s).detach()}
            for name, s in self.step_sizes().items()
        }

    def size(self) -> float:
        """Bits that the weights need, step sizes included, relative to 32 for each weight."""
        weights = sum(p.numel() for p in self._given().model.parameters())
        saved = sum(m.weight.numel() for m in self.rounded.values()) if self.side else 0
        steps = sum(s.numel() for s in self.step_sizes().values())
        return (32 * (weights - saved + steps) + self.bits * saved) / (32 * weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "side": None if self.side is None else self.side.state_dict(),
            "rate": self.rate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.side, self.rate = None, state["rate"]
        if state["side"] is not None:
            self._begin([value.clone() for value in state["side"]["weights"].values()])
            assert self.side is not None
            self.side.load_state_dict(state["side"])
