"""Online DRM: the heads of a trained DRM, or the whole network, go on learning from confident labels of a test stream.

    loss = sum_i mean_{x kept} CE(h_i(z), y~(x)),   kept: where the probability of y~ is at least `confidence`

Source: see `drm`; its variants DRM (heads) and DRMFull (encoder too). The output of a batch is computed before the
step that it gives rise to. With reference=True in the DRM, probabilities of mixtures go through another softmax before
they are compared with `confidence`, as in the authors' code: with C classes they are then at most e / (e + C - 1).
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.checks import at_least, non_negative, one_of
from ...core.split import Split
from .drm import DRM

Labels = Literal["own", "last", "uniform", "drm"]


class OnlineDRM:
    """Call it with one test batch after the other; the method and its network stay as they are.

    method: a DRM that has been trained. labels: each head's "own", those of the "last" head (the network's), of the
    "uniform" mean, or of the "drm" mixture. confidence >= 0: above 1 nothing is learned. lr: of Adam. repeats: steps on
    each batch. encoder: train all weights, in evaluation mode, rather than the heads only.
    """

    transductive: ClassVar[bool] = True

    def __init__(
        self,
        method: DRM,
        *,
        labels: Labels = "drm",
        confidence: float = 0.75,
        lr: float = 5e-5,
        repeats: int = 1,
        encoder: bool = False,
    ) -> None:
        if method.side is None:
            raise ValueError("OnlineDRM needs a DRM that has been trained, or whose state has been loaded")
        self.labels = one_of("labels", labels, ("own", "last", "uniform", "drm"))
        self.confidence, self.lr = non_negative("confidence", confidence), non_negative("lr", lr)
        self.repeats, self.encoder = at_least("repeats", repeats, 1), encoder
        heads = cast(nn.ModuleList, method.side.modules["heads"])
        self.method, self.start = method, copy.deepcopy((method.split.model, heads))
        self.reset()

    def reset(self) -> None:
        """Forget what the stream has taught, the optimiser's moments too."""
        self.model, self.heads = copy.deepcopy(self.start)
        self.model.eval()
        self.split = Split(self.model, self.method.split.head_name)
        own = self.model if self.encoder else self.model.get_submodule(self.split.head_name)
        self.optimizer = torch.optim.Adam([*own.parameters(), *self.heads.parameters()], lr=self.lr)

    def __call__(self, x: Any) -> Tensor:
        """(B, C) logarithms of mixed probabilities, before the last step on this batch."""
        with torch.set_grad_enabled(self.encoder):
            z = self.split.features(x)
        for step in range(self.repeats):
            with torch.enable_grad():
                if self.encoder and step:
                    z = self.split.features(x)
                output = torch.stack([*(head(z) for head in self.heads), self.split.head(z)], dim=1).float()
                mixed = self.method.mixture(z, output)
                label, confident = self._pseudo(output.detach(), mixed.detach().exp())
                losses = F.cross_entropy(output.transpose(1, 2), label, reduction="none") * confident
                count = confident.sum(dim=0)
                if not bool(count.any()):  # a step without gradients would go on along the moments
                    break
                self.optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward((losses.sum(dim=0) / count.clamp(min=1)).sum())
                self.optimizer.step()
        return mixed.detach()

    def _pseudo(self, output: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """(labels (B, H), whether they are confident (B, H)) from outputs (B, H, C) and mixed probabilities (B, C)."""
        p = output.softmax(dim=2)
        if self.labels in ("uniform", "drm"):
            p = (mixed if self.labels == "drm" else p.mean(dim=1)).unsqueeze(1)
            p = p.softmax(dim=2) if self.method.reference else p
        elif self.labels == "last":
            p = p[:, -1:]
        confidence, label = p.expand(output.shape).max(dim=2)
        return label, confidence >= self.confidence
