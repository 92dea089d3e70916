"""What AutoMix, SAMix and AdAutoMix share: masks by attention between feature maps, judged by a moving average.

    z = map of the teacher k;   masks = softmax_K(up(block(z, partners, shares)));   x~ = sum_k m_k x_k
    loss = CE(one(q(x)), y) + mixed CE(mix(q(x~_b))) + judge(mix_k(k(x~_m)))

q: the network, k: its moving average. The masks of x~_b are detached, so that the student q learns from images that
the block does not answer for; k is frozen but passes the gradient of x~_m on, so that only the block learns from its
judgement. x~_m and x~_b have partners and shares of their own.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, one_of, positive
from ...core.method import Method, Setup
from ...core.objective import MixedLoss
from ...core.operation import spatial_size
from ...core.pairing import Pairing
from ...core.ratio import Ratio
from ...core.recipe import Recipe, sum_of
from ...core.split import Split, evaluating, observe
from .side import Side, ema_momentum, follow

START = 0.999
"""The momentum of the moving average before it rises."""
MOST = 256
"""Cells of a map."""
STAGES = ("layer3", "stages.2")
"""What the third of four stages is called."""


def mixing_map(model: nn.Module, x: Tensor, tap: str | None = None) -> tuple[str, Tensor]:
    """(name, output (R, D, *grid)) of the module whose map the masks are made from, by a pass in evaluation mode.

    tap: its name. None takes the third stage of residual networks; of others, the last module whose map is finer than
    the network's last one, and that one where all are alike. ValueError if there is no map of more than one cell.
    """
    with evaluating(model), torch.no_grad(), observe(model, *([tap] if tap else [])) as seen:
        model(x)
    maps = {name: h for name, h in seen.items() if isinstance(h, Tensor) and h.ndim == x.ndim and h[0, 0].numel() > 1}
    if not maps:
        raise ValueError(
            f"{type(model).__name__} has no feature map (R, D, *grid) {f'at {tap!r} ' if tap else ''}for inputs "
            f"{tuple(x.shape)}, which learned mixers make their masks from; name a module that gives one with tap=..."
        )
    last = list(maps.values())[-1]
    finer = [name for name, h in maps.items() if h[0, 0].numel() > last[0, 0].numel()]
    name = next((stage for stage in STAGES if stage in maps), (finer or list(maps))[-1])
    return name, maps[name]


def coarse(z: Tensor) -> Tensor:
    """The maps z (R, C, *grid), averaged to at most `MOST` cells: attention compares every cell with every other."""
    side = int(MOST ** (1.0 / (z.ndim - 2)))
    size = [min(cells, side) for cells in z.shape[2:]]
    return z if list(z.shape[2:]) == size else F.interpolate(z, size, mode="area")


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, n, V) softmax(q k^T / sqrt(E)) v of queries and keys (B, n, E) and values (B, n, V)."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.softmax(dim=-1) @ value


def cells(z: Tensor, recipe: Recipe, ratio_channel: bool = False) -> Tensor:
    """(B, K, n, C) the cells of the maps z (R, C, *grid) of each row's partners; with their shares as a channel."""
    found = z.flatten(2).transpose(1, 2)[recipe.partner]
    if not ratio_channel:
        return found
    share = recipe.share[:, :, None, None].to(found.dtype).expand(*found.shape[:3], 1)
    return torch.cat((found, share), dim=3)


def apply_masks(x: Tensor, masks: Tensor, recipe: Recipe) -> Tensor:
    """(B, C, *spatial) sum_k m_k x_partner(k) for masks (B, K, *spatial)."""
    return sum_of(masks[:, k : k + 1].to(x.dtype) * x[recipe.partner[:, k]] for k in range(masks.shape[1]))


class LearnedMix(Method):
    """Train a generator of masks along with the network; see the module.

    pairing: who is mixed. ratio: of the shares. margin in [0, 1]: where the first share is that close to 0 or 1, the
    student sees plain mixup. momentum in [START, 1]: to which that of the moving average rises, along a cosine, after
    the first part `hold` in [0, 1] of the steps (ViT: .25), in which it is START. tap: the name of the module whose map
    the masks are made from; None finds it, see `mixing_map`. lr > 0: of the block and the head of mixed images; lr_end
    in [0, 1]: the part of it that is left at the end.
    """

    one_process = True

    smooth = True
    """Whether masks are interpolated linearly, else by nearest neighbour."""

    def __init__(
        self,
        pairing: Pairing,
        ratio: Ratio,
        margin: float,
        momentum: float,
        hold: float,
        tap: str | None,
        lr: float,
        lr_end: float,
    ) -> None:
        if not START <= momentum <= 1:
            raise ValueError(f"momentum must be a number in [{START}, 1], got {momentum!r}")
        self.pairing, self.ratio, self.objective = pairing, ratio, MixedLoss("two-part")
        self.margin, self.momentum, self.tap = in_unit("margin", margin), momentum, tap
        self.hold = in_unit("hold", hold)
        self.lr, self.lr_end = positive("lr", lr), in_unit("lr_end", lr_end)
        self._side: Side | None = None

    @abstractmethod
    def make_block(self, channels: int) -> nn.Module:
        """A module on the CPU: (maps z (R, channels, *grid), recipe) to the masks' logits (B, K, n)."""

    @abstractmethod
    def judge(self, output: Tensor, y: Tensor, recipe: Recipe, masks: Tensor, clean: Tensor) -> Tensor:
        """The block's scalar loss. output: the teacher's (B, C) on the mixed images, clean: on the batch (R, C)."""

    def on_setup(self, given: Setup) -> None:
        self._network = given.split or Split(given.model)
        if self.tap is not None:
            one_of("tap", self.tap, dict(given.model.named_modules()))
        self._side = None

    @property
    def teacher(self) -> nn.Module:
        """The moving average of the network, for evaluation or reuse; ValueError before the first step."""
        if self._side is None:
            raise ValueError("the moving average starts with the first step of training")
        return self._teacher.get_submodule("network")

    def draw(self, batch: Batch) -> tuple[Recipe, Recipe]:
        """Who and how much: for the images that the block is judged by, and for those that the student sees."""
        return self._recipe(batch), self._recipe(batch)

    def _recipe(self, batch: Batch) -> Recipe:
        partner = self.pairing(batch, self.generator)
        share = self.ratio(len(batch), self.pairing.k, self.generator)
        return Recipe(partner, share.to(batch.device, non_blocking=True))

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training:
            return self.plain_loss(model, batch)
        judged, shown = self.draw(batch)
        spatial_size(batch.x, shown, two=False)
        z, clean = self._look(batch.x)
        own = self.task.mean_loss(self._network.features_and_output(batch.x, model)[1], batch.y)
        with torch.no_grad():
            masks = self.student_masks(z, shown, batch.x)
        loss = self.student_loss(model, batch, own, apply_masks(batch.x, masks, shown), shown)
        loss = loss + self.block_loss(batch, z, clean, judged)
        assert self._side is not None
        return self._side.watch(loss)

    def student_loss(self, model: nn.Module, batch: Batch, own: Tensor, mixed: Tensor, recipe: Recipe) -> Tensor:
        """The network's loss. own: of the batch as it is. mixed: the images mixed by `recipe`."""
        return own + self._mixed_loss(model, batch, mixed, recipe)

    def _mixed_loss(self, model: nn.Module, batch: Batch, mixed: Tensor, recipe: Recipe) -> Tensor:
        assert self._side is not None
        features = self._network.features_and_output(mixed, model)[0]
        output = _call(self._side.modules["mix_head"], features)
        return self.objective.mean(output, batch.y, recipe, self.task)

    def block_loss(self, batch: Batch, z: Tensor, clean: Tensor, recipe: Recipe) -> Tensor:
        """The loss whose gradient reaches the block alone."""
        masks = self.masks(z, recipe, batch.x)
        return self.judge(self._opinion(apply_masks(batch.x, masks, recipe)), batch.y, recipe, masks, clean)

    def masks(self, z: Tensor, recipe: Recipe, x: Tensor) -> Tensor:
        """(B, K, *spatial) float32 masks that sum to 1, for inputs like x, from the maps z (R, C, *grid)."""
        size, mode = x.shape[2:], ("linear", "bilinear", "trilinear")[x.ndim - 3] if self.smooth else "nearest"
        with torch.autocast(z.device.type, enabled=False):  # attention overflows in 16 bits
            logits = self._block(z.float(), recipe).view(*recipe.share.shape, *z.shape[2:])
            return F.interpolate(logits, list(size), mode=mode).softmax(dim=1)

    def student_masks(self, z: Tensor, recipe: Recipe, x: Tensor) -> Tensor:
        """Those masks; the shares themselves where the first is within `margin` of 0 or 1."""
        first, masks = recipe.lam, self.masks(z, recipe, x)
        plain = (first <= self.margin) | (first >= 1.0 - self.margin)
        along = (-1, *[1] * (masks.ndim - 1))
        return torch.where(plain.view(along), recipe.share.view(*recipe.share.shape, *along[2:]), masks)

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's map of the batch, and its output for mixed images; both begin with the first batch."""
        if self._side is None:
            tap, h = mixing_map(self._given().model, x[:1], self.tap)
            self._begin(tap, h.shape[1], x.device)
        if not self.teacher.training:  # copied while the network was in evaluation mode
            self.wake()
        with torch.no_grad(), observe(self.teacher, self._tap) as seen:
            output = self._opinion(x)
        return coarse(seen[self._tap]), output

    def wake(self) -> None:
        """Bring the layers of the teacher into the modes of the network's."""
        for mine, theirs in zip(self.teacher.modules(), self._given().model.modules(), strict=True):
            mine.training = theirs.training

    def _begin(self, tap: str, channels: int, device: torch.device) -> None:
        """Make the block, the head of mixed images, and the copies of the network and of that head."""
        given, head = self._given(), self._network.head_name
        self._tap, self._channels = tap, channels
        self._block = self.make_block(channels).to(device)
        mix_head = copy.deepcopy(given.model.get_submodule(head))
        network, average = (copy.deepcopy(part).requires_grad_(False) for part in (given.model, mix_head))
        self._teacher = nn.ModuleDict({"network": network, "mix_head": average})
        if next(network.parameters()).dtype in (torch.float16, torch.bfloat16):  # too coarse for a slow average
            self._teacher.float()
        self._split = Split(network, head)
        self._side = Side(self.trained(mix_head), self.lr, self.lr_end, given.steps)

    def trained(self, mix_head: nn.Module) -> dict[str, nn.Module]:
        """What this method trains."""
        return {"block": self._block, "mix_head": mix_head}

    def _opinion(self, x: Tensor) -> Tensor:
        """The teacher's output for mixed images."""
        x = x.to(next(self._teacher.parameters()).dtype)
        return _call(self._teacher["mix_head"], self._split.features(x))

    def after_step(self) -> None:
        if self._side is not None:
            self._side.step_at(self.steps_done)
            self.update_teacher()
        super().after_step()

    def update_teacher(self) -> None:
        """One step of the moving average."""
        given = self._given()
        assert self._side is not None
        momentum = ema_momentum(self.steps_done, given.steps, START, self.momentum, self.hold)
        follow(self.teacher, given.model, momentum)
        follow(self._teacher["mix_head"], self._side.modules["mix_head"], momentum)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._side is not None:
            parts = {"side": self._side.state_dict(), "teacher": dict(self._teacher.state_dict())}
            state["mixer"] = {"tap": self._tap, "channels": self._channels, **parts}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._side = None
        if "mixer" in state:
            mixer, device = state["mixer"], next(self._given().model.parameters()).device
            self._begin(mixer["tap"], int(mixer["channels"]), device)
            assert self._side is not None
            self._side.load_state_dict(mixer["side"])
            self._teacher.load_state_dict(mixer["teacher"])
        super().load_state_dict(state)


def _call(head: nn.Module, features: Tensor) -> Tensor:
    """The head on features, which precisions of the loop may have made in another type."""
    output: Tensor = head(features.to(next(head.parameters()).dtype))
    return output
