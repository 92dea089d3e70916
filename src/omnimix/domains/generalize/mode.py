"""MODE: for each image, search the mixture of other images' styles that the network does worst on, and train on both.

    w_k = 1 / K;   n times:  w <- clip(w + mu sign(dl / dw), 0, 1),   l the loss of x~(a),   a = w / sum w
    loss = (1 - beta) l(x) + beta l(x~)

MODE-F: x~ = ifft(((1 - gamma) A + gamma sum_k a_k A_k) exp(i P)), A and P the amplitudes and phases of images. MODE-A:
feature maps take on the means and deviations sum_k a_k (m_k, s_k), in a frozen encoder whose decoder gives x~. Slot 0
is the image itself; the others are samples of the batch, in MODE-A one of each domain. The search sees the network in
evaluation mode and leaves no gradients. Source: Dai, Zhang, Fang, Han, Tian, "Moderately Distributional Exploration for
Domain Generalization", ICML 2023, arXiv 2304.13976. Cost: 9 with n = 10. Without an encoder MODE-A mixes the styles of
the network's own maps at a tap, which is ours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.channels import restyle, styles
from ...core.checks import at_least, in_unit, positive
from ...core.inside import Inside
from ...core.method import Method, Setup
from ...core.operation import require_float
from ...core.random import integers, uniform
from ...core.registry import register
from ...core.search import Choice
from ...core.split import evaluating
from ...core.taps import Taps
from .base import ByDomain

EPS = 1e-5
"""Added to variances of maps."""
PAPER = "Moderately Distributional Exploration for Domain Generalization, ICML 2023, arXiv 2304.13976"
SEARCH = {"beta": Choice(0.2, 0.4, 0.6), "gamma": Choice(0.5, 1.0), "steps": Choice(2, 5, 10)}


def explore(loss: Callable[[Tensor], Tensor], weights: Tensor, steps: int, mu: float) -> Tensor:
    """The shares (B, K) after `steps` signed ascents of mu on the weights (B, K) >= 0, which stay in [0, 1].

    loss: the scalar loss at given shares, the weights divided by their sum.
    """
    for _ in range(steps):
        w = weights.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(w / w.sum(dim=1, keepdim=True)), w)
        moved = (w.detach() + mu * grad.sign()).clamp(0.0, 1.0)
        weights = torch.where(moved.sum(dim=1, keepdim=True) > 0, moved, weights)  # equal donors can end at all 0
    return weights / weights.sum(dim=1, keepdim=True)


def mix_of_amplitudes(x: Tensor, donor: Tensor, gamma: float = 1.0) -> Callable[[Tensor], Tensor]:
    """A function of shares (B, K): the images x (B, C, *spatial) with amplitudes mixed of those of rows donor (B, K).

    Phases stay. gamma in [0, 1]: how much of the mixture goes into the amplitudes.
    """
    require_float(x)
    axes = tuple(range(2, x.ndim))
    spectrum = torch.fft.rfftn(x if x.dtype == torch.float64 else x.float(), dim=axes)
    amplitude, phase = spectrum.abs(), spectrum.angle()
    donors = amplitude[donor]

    def mix(share: Tensor) -> Tensor:
        mixed = torch.einsum("bk,bk...->b...", share.to(amplitude.dtype), donors)
        found = torch.polar(torch.lerp(amplitude, mixed, gamma), phase)
        result: Tensor = torch.fft.irfftn(found, s=list(x.shape[2:]), dim=axes).to(x.dtype)
        return result

    return mix


def mix_styles(h: Tensor, style: Tensor, donor: Tensor, share: Tensor, gamma: float = 1.0) -> Tensor:
    """Maps h (B, C, *spatial) in the style sum_k share_k style[donor_k]; style (N, 2 C), donor and share (B, K).

    gamma in [0, 1]: how much of the result is restyled.
    """
    mixed = torch.einsum("bk,bkf->bf", share.to(style.dtype), style[donor])
    return torch.lerp(h, restyle(h, mixed, eps=EPS), gamma)


class Explore(Method):
    """Base of both forms. `mixing` says how shares change what the network sees."""

    def __init__(self, beta: float, gamma: float, steps: int, mu: float) -> None:
        self.beta, self.gamma = in_unit("beta", beta), in_unit("gamma", gamma)
        self.steps, self.mu = at_least("steps", steps, 0), positive("mu", mu)

    @abstractmethod
    def donors(self, batch: Batch) -> Tensor:
        """(B, K) rows of the batch whose styles are mixed, the first column the row itself."""

    @abstractmethod
    def mixing(self, model: nn.Module, batch: Batch, donor: Tensor) -> Callable[[Tensor], tuple[Tensor, Any]]:
        """A function of shares (B, K): (inputs (B, ...), a context manager for the pass on them, behind x if x is)."""

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training or not self.beta:
            return self.plain_loss(model, batch)
        if not isinstance(batch.x, Tensor) or batch.x.ndim < 3:
            raise ValueError("MODE mixes the styles of images (B, C, *spatial); tables and trees have none")
        donor = self.donors(batch)
        mixing, inside = self.mixing(model, batch, donor), Inside(model, self._given().model)

        def harm(share: Tensor) -> Tensor:
            x, within = mixing(share)
            with within:
                return self.plain_loss(inside, Batch(x, batch.y))

        weights = torch.full(donor.shape, 1.0 / donor.shape[1], device=batch.device)
        with evaluating(model):
            share = explore(harm, weights, self.steps, self.mu)
        with torch.no_grad():
            x, within = mixing(share)
        with within:
            output = model(torch.cat((batch.x, x)))
        clean, explored = (self.task.mean_loss(part, batch.y) for part in output.split(len(batch)))
        return (1 - self.beta) * clean + self.beta * explored


@register("mode-f", paper=PAPER, cost=9.0, level="domains", inputs=("image",), search=SEARCH)
class MODEF(Explore):
    """Search mixtures of Fourier amplitudes on which the network does worst, and train on them too.

    beta in [0, 1]: the weight of the images found. gamma in [0, 1]: how far amplitudes go to the mixture. steps >= 0 of
    size mu > 0: of the search. mixed >= 1: images in a mixture. x: (B, C, *spatial).
    """

    def __init__(
        self, beta: float = 0.4, gamma: float = 1.0, steps: int = 10, mu: float = 0.05, *, mixed: int = 4
    ) -> None:
        super().__init__(beta, gamma, steps, mu)
        self.mixed = at_least("mixed", mixed, 1)

    def donors(self, batch: Batch) -> Tensor:
        count = len(batch)
        others = integers(count, count, self.mixed - 1, generator=self.generator)
        own = torch.arange(count, device=others.device).unsqueeze(1)
        return torch.cat((own, others), dim=1).to(batch.device)

    def mixing(self, model: nn.Module, batch: Batch, donor: Tensor) -> Callable[[Tensor], tuple[Tensor, Any]]:
        mix = mix_of_amplitudes(batch.x, donor, self.gamma)
        return lambda share: (mix(share), nullcontext())


@register("mode-a", paper=PAPER, cost=9.0, level="domains", inputs=("image",), search=SEARCH)
class MODEA(Explore, ByDomain):
    """Search mixtures of one style of each domain on which the network does worst, and train on them too.

    beta, gamma, steps, mu: as in `MODEF`. encoder: gives maps (B, C, *spatial) of images; decoder: images of the size
    of the inputs from such maps; both frozen, on the network's device. scale: (mean, deviation) of each channel, by
    which inputs were normalised and the encoder's are not. None: without an encoder the network's maps at `tap` are
    mixed, after its first block where that is None.
    """

    def __init__(
        self,
        beta: float = 0.4,
        gamma: float = 1.0,
        steps: int = 10,
        mu: float = 0.05,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        scale: tuple[Sequence[float], Sequence[float]] | None = None,
        tap: str | None = None,
    ) -> None:
        super().__init__(beta, gamma, steps, mu)
        if (encoder is None) != (decoder is None):
            raise ValueError("an encoder needs a decoder that makes images of its maps: give both, or neither")
        self.encoder, self.decoder, self.scale, self.tap = encoder, decoder, scale, tap

    def on_setup(self, given: Setup) -> None:
        super().on_setup(given)
        if self.encoder is None:
            self.taps = Taps(given.model, None if self.tap is None else [self.tap], given.split)
            self.tap = self.taps.names[0]

    def donors(self, batch: Batch) -> Tensor:
        """The row itself, then one of each domain, drawn from those in the batch; any row for a domain without one."""
        group, count = self.group(batch), len(batch)
        held = (group == torch.arange(len(self.domains), device=group.device).unsqueeze(1)).sum(dim=1)
        first = torch.where(held > 0, held.cumsum(0) - held, 0)
        draws = uniform(count, len(held), generator=self.generator).to(batch.device)
        place = (draws * torch.where(held > 0, held, count)).long().clamp_(max=count - 1)
        others = group.argsort(stable=True)[first + place]
        return torch.cat((torch.arange(count, device=batch.device).unsqueeze(1), others), dim=1)

    def mixing(self, model: nn.Module, batch: Batch, donor: Tensor) -> Callable[[Tensor], tuple[Tensor, Any]]:
        if self.encoder is None:
            return lambda share: (batch.x, self._restyled(model, donor, share))
        assert self.decoder is not None
        encoder, decoder = self.encoder, self.decoder
        channel = (1, -1, *[1] * (batch.x.ndim - 2))
        mean, deviation = (torch.as_tensor(v).to(batch.x).view(channel) for v in self.scale or ([0.0], [1.0]))
        with torch.no_grad(), evaluating(encoder):
            h = encoder(batch.x * deviation + mean)
        style = styles(h, eps=EPS)

        def mix(share: Tensor) -> tuple[Tensor, Any]:
            with evaluating(decoder):
                return (decoder(mix_styles(h, style, donor, share, self.gamma)) - mean) / deviation, nullcontext()

        return mix

    def _restyled(self, model: nn.Module, donor: Tensor, share: Tensor) -> AbstractContextManager[None]:
        """Within it, the last B rows of a pass have mixed styles at the tap."""
        assert self.tap is not None
        count = len(donor)

        def rewrite(h: Tensor) -> Tensor:
            clean, last = h[: len(h) - count], h[len(h) - count :]
            mixed = mix_styles(last, styles(last.detach(), eps=EPS), donor, share, self.gamma)
            return torch.cat((clean, mixed))

        return self.taps.rewrite({self.tap: rewrite}, model)
