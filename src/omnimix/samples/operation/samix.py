"""SAMix: AutoMix whose block sees how much is mixed, and is asked for images that are clear as well as fair.

    local = -sum_i lam_i log(p_i / (p_a + p_b)),   global = -log(p_a + p_b),   judged by local + eta global
    z_i <- (1 + lam_i') z_i,   q, k from (z_a, z_b),   v of two layers,   - 2 Var(m_b) in the masks' regulariser

lam' = (4/3 lam^3 - 2 lam^2 + (k + 1) lam) / (k + 1/3). Source: Li, Liu, Wang, Wu, Liu, Li, "Boosting Discriminative
Visual Representation Learning with Scenario-Agnostic Mixup", 2021, arXiv 2111.15454. Cost: 3; 2 with a mixer trained
before. local + global is the mixed cross-entropy, so that eta = 1 is AutoMix's loss, which the released code has at any
eta. This is the supervised method; self-supervision is not built.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import in_unit, non_negative
from ...core.method import Setup
from ...core.pairing import RandomPairing
from ...core.random import uniform
from ...core.ratio import Beta
from ...core.recipe import Recipe, mix_labels
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.side import linear
from ..pairing.derangement import Derangement
from .automix import area_loss
from .learned import LearnedMix, attend, cells
from .side import cosine

FORMAT = "omnimix-mixer-1"


def bend(lam: Tensor, k: float | None) -> Tensor:
    """lam', which is lam at 0, 1/2 and 1, and flatter between for small k >= 0; None: lam."""
    return lam if k is None else (4 / 3 * lam**3 - 2 * lam**2 + (k + 1) * lam) / (k + 1 / 3)


def eta_balanced(output: Tensor, target: Tensor, mixed: Tensor, eta: float) -> Tensor:
    """(B,) local + eta * global of logits (B, C).

    mixed: (B,) their mixed cross-entropy. target: (B, C) the mixed target; its classes are those with weight.
    """
    log_p = output.float().log_softmax(dim=1)
    outside = -log_p.masked_fill(target <= 0, -torch.inf).logsumexp(dim=1)
    return mixed - (1.0 - eta) * outside


class ContentBlock(nn.Module):
    """Where a partner shows: maps z (R, channels, *grid) and a recipe of two to logits (B, 2, n), those of a 0.

    curve: k of lam'. dropout in [0, 1]: of the values v, in training.
    """

    def __init__(self, channels: int, generator: torch.Generator, curve: float | None, dropout: float = 0.0) -> None:
        super().__init__()
        inner, self.curve = max(channels // 2, 1), curve
        self.dropout, self.generator = dropout, generator
        self.query, self.key = (linear(2 * channels, inner, 0.01, generator) for _ in range(2))
        self.hidden = linear(channels, inner, 0.01, generator, bias=False)
        self.norm = nn.BatchNorm1d(inner)
        self.value = linear(inner, 1, 0.01, generator, bias=False)

    def forward(self, z: Tensor, recipe: Recipe) -> Tensor:
        scale = 1.0 + bend(recipe.share, self.curve)
        own, guest = (cells(z, recipe) * scale[:, :, None, None]).unbind(1)
        both = torch.cat((own, guest), dim=2)
        hidden = F.elu(self.norm(self.hidden(guest).transpose(1, 2))).transpose(1, 2)
        value = self.value(hidden)
        if self.dropout and self.training:
            kept = uniform(*value.shape, generator=self.generator) >= self.dropout
            value = value * kept.to(value) / max(1.0 - self.dropout, 1e-9)
        shown = attend(self.query(both), self.key(both), value).squeeze(2)
        return torch.stack((torch.zeros_like(shown), shown), dim=1)


@register(
    "samix",
    paper="Boosting Discriminative Visual Representation Learning with Scenario-Agnostic Mixup, arXiv 2111.15454",
    tasks=("classification",),
    cost=3.0,
    inputs=("image",),
    search={"alpha": Log(0.2, 8), "eta": Uniform(0, 1), "mask_weight": Log(0.01, 1)},
)
class SAMix(LearnedMix):
    """Learn masks along with the network by a loss that weighs how clear the mixed classes are with how fair.

    alpha: Beta(alpha, alpha). eta >= 0: weight of the global part (ImageNet: 1). mask_weight: of the masks'
    regulariser; mask_end, derange: see `AutoMix`. curve >= 0: k of lam' (fine-grained: 1), None: lam itself (ImageNet).
    dropout in [0, 1]: see `ContentBlock` (the paper: .1 but on CIFAR). pretrained: a file that `save_mixer` wrote; its
    mixer is used as it is, for a network of the same kind. margin, momentum, hold, tap, lr, lr_end: see `LearnedMix`.
    ValueError for arguments out of range and files that do not fit.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        eta: float = 0.5,
        mask_weight: float = 0.1,
        tap: str | None = None,
        pretrained: str | None = None,
        *,
        mask_end: float = 1.0,
        curve: float | None = 0.25,
        dropout: float = 0.0,
        derange: bool = False,
        margin: float = 0.08,
        momentum: float = 0.999999,
        hold: float = 0.1,
        lr: float = 0.1,
        lr_end: float = 0.5,
    ) -> None:
        pairing = Derangement() if derange else RandomPairing()
        super().__init__(pairing, Beta(alpha), margin, momentum, hold, tap, lr, lr_end)
        self.eta, self.mask_weight = non_negative("eta", eta), non_negative("mask_weight", mask_weight)
        self.mask_end, self.dropout = in_unit("mask_end", mask_end), in_unit("dropout", dropout)
        self.curve = None if curve is None else non_negative("curve", curve)
        self.pretrained = None if pretrained is None else str(pretrained)
        self.cost = 3.0 if pretrained is None else 2.0

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        if self.pretrained is not None:
            self._stored, self._at = _read(Path(self.pretrained))
            _fit(self.pretrained, given.model, self._stored["network"], self._network.head_name)

    def make_block(self, channels: int) -> nn.Module:
        return ContentBlock(channels, self.generator, self.curve, self.dropout)

    def judge(self, output: Tensor, y: Tensor, recipe: Recipe, masks: Tensor, clean: Tensor) -> Tensor:
        target = mix_labels(self.task.soft_target(y), recipe)
        mixed = self.objective(output, y, recipe, self.task)
        area = area_loss(masks, recipe.share) - 2.0 * masks[:, 1].var(correction=0)
        weight = self.mask_weight * cosine(1.0, self.mask_end, self.steps_done, self._given().steps)
        return eta_balanced(output, target, mixed, self.eta).mean() + weight * area

    def block_loss(self, batch: Batch, z: Tensor, clean: Tensor, recipe: Recipe) -> Tensor:
        return z.new_zeros(()) if self.pretrained is not None else super().block_loss(batch, z, clean, recipe)

    def update_teacher(self) -> None:
        if self.pretrained is None:
            super().update_teacher()

    def wake(self) -> None:
        if self.pretrained is None:
            super().wake()

    def trained(self, mix_head: nn.Module) -> dict[str, nn.Module]:
        return super().trained(mix_head) if self.pretrained is None else {"mix_head": mix_head}

    def _begin(self, tap: str, channels: int, device: torch.device) -> None:
        if self.pretrained is None:
            super()._begin(tap, channels, device)
            return
        block = self._stored["block"]
        super()._begin(self._at, block["hidden.weight"].shape[1], device)
        self._block.load_state_dict(block)
        self.teacher.load_state_dict(self._stored["network"], strict=False)  # all but the head, see `_fit`
        self._teacher["block"] = self._block
        self._teacher.requires_grad_(False).eval()

    def save_mixer(self, path: Path | str) -> None:
        """Write the block and the moving average that it reads, but for its head, for `SAMix(pretrained=path)`.

        ValueError before the first step of training.
        """
        from safetensors.torch import save_file

        parts = {"network": _body(self.teacher, self._network.head_name), "block": self._block.state_dict()}
        tensors = {f"{part}.{name}": t.detach().cpu().clone() for part, of in parts.items() for name, t in of.items()}
        save_file(tensors, str(path), {"format": FORMAT, "tap": self._tap})


def _body(model: nn.Module, head: str) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith(f"{head}.")}


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], str]:
    """(tensors of "block" and "network", tap) of a file that `save_mixer` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"pretrained: cannot read the mixer {path} ({error}); write one with save_mixer") from None
    if told.get("format") != FORMAT:
        raise ValueError(f"pretrained: {path} holds no mixer; write one with save_mixer of a SAMix in training")
    found: dict[str, dict[str, Tensor]] = {"block": {}, "network": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        found[part][rest] = value
    return found, told["tap"]


def _fit(path: str, model: nn.Module, stored: dict[str, Tensor], head: str) -> None:
    mine = _body(model, head)
    other = sorted(mine.keys() ^ stored.keys()) or [n for n in mine if mine[n].shape != stored[n].shape]
    if other:
        raise ValueError(
            f"pretrained: the mixer {path} was trained on another network than this {type(model).__name__}, their "
            f"{other[0]!r} differ; give it a network of the same kind"
        )
