"""SUMix: let the labels of a mixed image follow what the network sees of each source, and weigh in its uncertainty.

    d = s l2(softmax(|p(x~) - p(x_a)|)),  d' likewise for x_b;   w_a = lam exp(-d_a), w_b = (1 - lam) exp(-d'_b)
    loss = mean_i (w_a CE(x~, a) + w_b CE(x~, b)) / (w_a + w_b)
         + gamma (lam CE(exp(-(U + U~ + d)), a) + (1 - lam) CE(exp(-(U_b + U~ + d')), b)),   U = l2(softmax(un(f(x))))

p: predictions, detached, the one for x_a without class b and the other way round; l2: over its length; un: a linear
head on the features that the method trains. Source: Qin, Jin, Zhu, Liao, El-Yacoubi, Gao, "SUMix: Mixup with Semantic
and Uncertain Information", ECCV 2024, arXiv 2407.07805. Cost: 2. reference=True does as the released code: the
difference keeps its sign, so that a label gets more weight the less of it is seen; s is the batch size; and the weights
are averaged over the batch, so that no sample has its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, non_negative, one_of, positive
from ...core.method import Mix, Setup
from ...core.operation import Interpolate, Operation
from ...core.pairing import RandomPairing
from ...core.ratio import Beta
from ...core.recipe import Recipe
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.side import linear
from ...core.split import Split
from ..ratio.uniform_side import UniformSide
from .cutmix import CutBox
from .fmix import FourierMask
from .resizemix import PasteResized
from .saliencymix import SalientBox
from .side import Side

MIXERS: dict[str, Callable[[], Operation]] = {
    "cutmix": CutBox,
    "fmix": FourierMask,
    "mixup": Interpolate,
    "resizemix": PasteResized,
    "saliencymix": SalientBox,
}
SIDES = (0.1, 0.8)
"""ResizeMix draws the side of what it pastes uniformly between these; it has no alpha."""
Mixer = Literal["cutmix", "fmix", "mixup", "resizemix", "saliencymix"]


def semantics(mixed: Tensor, clean: Tensor, other: Tensor, scale: float, signed: bool = False) -> Tensor:
    """(B, C) d: how far the prediction for a mixed image is from that for one of its sources.

    mixed, clean: (B, C) logits. other: (B, C) the target of the other source, whose classes the clean prediction is
    without. scale: s. signed: whether the difference keeps its sign.
    """
    clean = clean.softmax(dim=1) * (1.0 - other)
    difference = mixed.softmax(dim=1) - clean
    return scale * F.normalize((difference if signed else difference.abs()).softmax(dim=1), dim=1)


def seen_share(own: Tensor, guest: Tensor, target: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """(B, 2) label shares from the differences d and d' (B, C), the two targets (B, C), and the area's shares (B, 2).

    Samples of the same class as their partner keep their shares.
    """
    far = torch.stack(((own * target).sum(dim=1), (guest * other).sum(dim=1)), dim=1)
    weight = share * torch.exp(-far)
    same = (target == other).all(dim=1, keepdim=True)
    return torch.where(same, share, weight / weight.sum(dim=1, keepdim=True))


def uncertain_loss(own: Tensor, guest: Tensor, target: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """The scalar regulariser; own, guest: (B, C) U + U~ + d of either side."""
    first, second = (
        F.cross_entropy(torch.exp(-v), t, reduction="none") for v, t in ((own, target), (guest, other))
    )  # fmt: skip
    return (share[:, 0] * first + share[:, 1] * second).mean()


@register(
    "sumix",
    paper="SUMix: Mixup with Semantic and Uncertain Information, ECCV 2024, arXiv 2407.07805",
    tasks=("classification",),
    cost=2.0,
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "gamma": Log(0.05, 2), "mixer": Choice("cutmix", "fmix", "resizemix", "saliencymix")},
)
class SUMix(Mix):
    """Mix images as another method does, with labels by what the network sees of each source and how sure it is.

    mixer: "cutmix", "fmix", "mixup", "resizemix", "saliencymix", or any Operation of two samples. alpha: Beta(alpha,
    alpha); ResizeMix draws its own sides. gamma >= 0: weight of the uncertainty (Tiny-ImageNet: 1); with 0 the pass for
    clean images needs no gradient. scale > 0: s; None: the root of the number of classes. reference: see above. lr,
    lr_end: of the uncertainty's head, see `Side`. ValueError for arguments out of range.
    """

    one_process = True
    labels_from_output = True

    def __init__(
        self,
        mixer: Mixer | Operation = "cutmix",
        alpha: float = 0.2,
        gamma: float = 0.5,
        scale: float | None = None,
        *,
        reference: bool = False,
        lr: float = 0.1,
        lr_end: float = 0.0,
    ) -> None:
        operation = mixer if isinstance(mixer, Operation) else MIXERS[one_of("mixer", mixer, list(MIXERS))]()
        ratio = UniformSide(*SIDES, power=2.0) if mixer == "resizemix" else Beta(alpha)
        super().__init__(RandomPairing(), ratio, operation)
        self.gamma, self.scale = non_negative("gamma", gamma), None if scale is None else positive("scale", scale)
        self.reference = reference
        self.lr, self.lr_end = positive("lr", lr), in_unit("lr_end", lr_end)
        self._side: Side | None = None

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        self._network, self._side = given.split or Split(given.model), None

    def loss(self, model: nn.Module, batch: Any, **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        recipe = self.recipe(batch) if model.training else None
        return self.plain_loss(model, batch) if recipe is None else self.mixed_loss(model, batch, recipe)

    def mixed_loss(self, model: nn.Module, batch: Batch, recipe: Recipe) -> Tensor:
        mixed = self.mix(batch, recipe)
        with torch.set_grad_enabled(self.gamma > 0 and torch.is_grad_enabled()):
            features, clean = self._network.features_and_output(batch.x, model)
        mixed_features, output = self._network.features_and_output(mixed.x, model)
        if output.ndim != 2:
            raise ValueError(f"sumix needs outputs (B, classes), got {tuple(output.shape)}")
        partner, share = mixed.recipe.partner[:, 1], mixed.recipe.share
        target = self.task.soft_target(batch.y).float()
        other, logits, old = target[partner], output.detach().float(), clean.detach().float()
        scale = float(len(batch)) if self.reference else self.scale or math.sqrt(output.shape[1])
        own = semantics(logits, old, other, scale, self.reference)
        guest = semantics(logits, old[partner], target, scale, self.reference)
        label_share = seen_share(own, guest, target, other, share)
        if self.reference:
            label_share = label_share.mean(dim=0).expand_as(label_share)
        loss = self.objective.mean(output, batch.y, replace(mixed.recipe, label_share=label_share), self.task)
        while self._extra:
            loss = loss + self._extra.pop()
        if not self.gamma:
            return loss
        unsure, unsure_mixed = self._uncertainty(features), self._uncertainty(mixed_features)
        own, guest = unsure + unsure_mixed + own, unsure[partner] + unsure_mixed + guest
        assert self._side is not None
        return self._side.watch(loss + self.gamma * uncertain_loss(own, guest, target, other, share))

    def _uncertainty(self, features: Tensor) -> Tensor:
        """(B, C) U, rows of length 1."""
        features = features.flatten(1).float()
        if self._side is None:
            self._begin(features.shape[1], features.device)
            assert self._side is not None
        return F.normalize(self._side.modules["uncertainty"](features).softmax(dim=1), dim=1)

    def _begin(self, inputs: int, device: torch.device) -> None:
        head = linear(inputs, self.task.outputs, inputs**-0.5, self.generator).to(device)
        self._side = Side({"uncertainty": head}, self.lr, self.lr_end, self._given().steps)

    def after_step(self) -> None:
        if self._side is not None:
            self._side.step_at(self.steps_done)
        super().after_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **({} if self._side is None else {"side": self._side.state_dict()})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._side = None
        if "side" in state:
            weight = state["side"]["weights"]["uncertainty.weight"]
            self._begin(weight.shape[1], next(self._given().model.parameters()).device)
            assert self._side is not None
            self._side.load_state_dict(state["side"])
        super().load_state_dict(state)
