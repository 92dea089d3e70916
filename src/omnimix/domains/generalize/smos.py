"""SMOS: hold the features to those of a frozen precursor that has seen many styles.

    loss = CE + w JS(softmax g, softmax f) + (w / m) sum_l 1/2 mean((F_l - G_l)^2 / v_l + log v_l)

f, F_l: the head's inputs and hidden maps of the network, g, G_l those of the precursor on the same inputs. v_l =
softplus(b_l) + 1e-5 is learned for each channel, from 0.1, at m times the learning rate. Source: Luo, Feinglass,
Gokhale, Lee, Baral, Yang, "Grounding Stylistic Domain Generalization with Quantitative Domain Shift Measures and
Synthetic Scene Images", CVPR workshops 2024, arXiv 2405.15961; the second part is MIRO's (Cha et al., ECCV 2022, arXiv
2203.10789). Cost: 1.4. The authors' code takes the divergence of raw features with the arguments of `kl_div`
misplaced, which is no divergence: `reference=True`. JS is in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import non_negative, one_of, positive
from ...core.companion import fitting, frozen
from ...core.divergence import js_divergence
from ...core.method import Method, Setup
from ...core.registry import register
from ...core.search import Log
from ...core.side import Beside
from ...core.split import Split, observe

START, EPS = 0.1, 1e-5
"""The variances at first, and what they stay above."""
CHANNELS_SECOND = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
)
STAGES = ("maxpool", "layer1", "layer2", "layer3", "layer4")
Divergence = Literal["js", "kl"]


def misplaced_divergence(g: Tensor, f: Tensor, divergence: Divergence = "js") -> Tensor:
    """What the authors' code makes of raw features >= 0: mean(m log m - m^2), m = (g + f) / 2.

    "kl": mean(f log f - f g).
    """
    m = (g + f) / 2 if divergence == "js" else f
    return (torch.xlogy(m, m) - m * (m if divergence == "js" else g)).mean()


def variance_bound(student: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """1/2 mean((F - G)^2 / v + log v), v broadcast: least where v is the mean squared difference of its channel."""
    return ((student - teacher).square() / variance + variance.log()).mean() / 2


def of_channels(network: nn.Module, name: str, h: Tensor) -> tuple[int, ...]:
    """The shape of one number a channel of the output h of module `name`.

    Of maps (B, C, *spatial), features (B, C), or tokens (B, T, C), which are what the last layer there that knows its
    channels makes of three dimensions, unless that is a convolution, a batch norm or their like.
    """
    axis = 1 if h.ndim != 3 or isinstance(_last_layer(network, name), CHANNELS_SECOND) else 2
    return tuple(h.shape[i] if i == axis else 1 for i in range(h.ndim))


def _wide(h: Tensor) -> Tensor:
    return h if h.dtype == torch.float64 else h.float()


def _last_layer(network: nn.Module, name: str) -> nn.Module | None:
    """The last layer within module `name`, or before it, that knows its channels."""
    inside, last = False, None
    for where, module in network.named_modules():
        if inside and not where.startswith(f"{name}."):
            break
        inside = inside or where == name
        if isinstance(module, (*CHANNELS_SECOND, nn.Linear, nn.LayerNorm)):
            last = module
    return last


@register(
    "smos",
    paper="Grounding Stylistic Domain Generalization with Quantitative Domain Shift Measures and Synthetic Scene "
    "Images, CVPR workshops 2024, arXiv 2405.15961",
    cost=1.4,
    level="domains",
    search={"weight": Log(1e-2, 1)},
)
class SMOS(Method):
    """Hold the features to those of a frozen precursor that has seen many styles.

    precursor: a network with modules of the same names, trained on other data of many styles; None: the network as it
    is at setup, which makes sense where that is trained. weight >= 0: w. lr_mult > 0: m. divergence: "js", or "kl"
    from the precursor to the network. taps: names of hidden modules to hold; None: the stages of residual networks,
    else the network's taps.
    """

    one_process = True

    def __init__(
        self,
        precursor: nn.Module | None = None,
        weight: float = 0.15,
        lr_mult: float = 10.0,
        *,
        divergence: Divergence = "js",
        taps: Sequence[str] | None = None,
        reference: bool = False,
    ) -> None:
        self.precursor, self.weight = precursor, non_negative("weight", weight)
        self.lr_mult = positive("lr_mult", lr_mult)
        self.divergence: Divergence = one_of("divergence", divergence, ("js", "kl"))
        self.tap_names, self.reference = taps, reference

    def on_setup(self, given: Setup) -> None:
        self.split = given.split or Split(given.model)
        modules = dict(given.model.named_modules())
        stages = tuple(name for name in STAGES if name in modules) if "layer4" in modules else self.split.taps
        self.names = stages if self.tap_names is None else tuple(self.tap_names)
        if isinstance(self.tap_names, str) or not self.names:
            raise ValueError(f"taps must be a non-empty sequence of module names, got {self.tap_names!r}")
        self.teacher = frozen(given.model if self.precursor is None else self.precursor)
        for name in (*self.names, self.split.head_name):
            one_of("tap", name, modules)
            if name not in dict(self.teacher.named_modules()):
                raise ValueError(f"the precursor has no module {name!r}: it must be built like the network")
        self.teacher_split = Split(self.teacher, self.split.head_name)
        self.side: Beside | None = None
        self.rate: float | None = None

    def _begin(self, shapes: Sequence[tuple[int, ...]], device: torch.device) -> Beside:
        start = math.log(math.expm1(START - EPS))
        b = nn.ParameterList([nn.Parameter(torch.full(shape, start, device=device)) for shape in shapes])
        return Beside({"b": b})

    def variances(self) -> list[Tensor]:
        """v_l, one a channel, as they broadcast with the maps; ValueError before the first step."""
        if self.side is None:
            raise ValueError("the variances start with the first step of training")
        return [F.softplus(b) + EPS for b in self.side.modules["b"].parameters()]

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training or not self.weight:
            return self.plain_loss(model, batch)
        own = next(self._given().model.parameters())
        with torch.no_grad(), observe(self.teacher.to(own.device, own.dtype), *self.names) as held:
            g = self.teacher_split.features(fitting(self.teacher, batch.x))
        with observe(self._given().model, *self.names) as seen:
            f, output = self.split.features_and_output(batch.x, model)
        if self.side is None:
            shapes = [of_channels(self._given().model, name, seen[name]) for name in self.names]
            self.side = self._begin(shapes, batch.device)
        self.side.to(batch.device)
        pairs = [(seen[name], held[name], v) for name, v in zip(self.names, self.variances(), strict=True)]
        bound = torch.stack([variance_bound(*map(_wide, pair)) for pair in pairs]).sum()
        grounding = self.distance(_wide(g.flatten(1)), _wide(f.flatten(1))) + bound / self.lr_mult
        return self.side.watch(self.task.mean_loss(output, batch.y) + self.weight * grounding)

    def distance(self, g: Tensor, f: Tensor) -> Tensor:
        """The divergence between the features (B, F) of the precursor and of the network."""
        if self.reference:
            return misplaced_divergence(g, f, self.divergence)
        if self.divergence == "kl":
            return F.kl_div(f.log_softmax(dim=1), g.softmax(dim=1), reduction="batchmean")
        tiny = torch.finfo(f.dtype).tiny  # where a probability underflows, its logarithm has no gradient
        return js_divergence(g.softmax(dim=1).clamp(min=tiny), f.softmax(dim=1).clamp(min=tiny)).mean()

    def step(
        self,
        model: nn.Module,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[Tensor], Any] = Tensor.backward,
        clip: Callable[[], Any] | None = None,
        **streams: Any,
    ) -> Tensor:
        found = super().step(model, batch, optimizer, backward, clip, **streams)
        self.follow(optimizer)
        return found

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        if self.side is not None:
            self.side.like(optimizer)
            self.rate = self.lr_mult * optimizer.param_groups[0]["lr"]

    def after_step(self) -> None:
        if self.side is not None:
            self.side.step(self.rate)
        super().after_step()

    def state_dict(self) -> dict[str, Any]:
        side = None if self.side is None else self.side.state_dict()
        own = {"side": side, "rate": self.rate, "teacher": dict(self.teacher.state_dict())}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])
        self.side, self.rate = None, state["rate"]
        if state["side"] is not None:
            b = state["side"]["weights"]
            device = next(self._given().model.parameters()).device
            self.side = self._begin([tuple(value.shape) for value in b.values()], device)
            self.side.load_state_dict(state["side"])
