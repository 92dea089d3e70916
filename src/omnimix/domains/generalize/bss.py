"""BSS: all images of a view get the style of one of them, so that style no longer tells them apart.

    F_i = fft(x_i),   x_i <- ifft(A_i exp(j angle F_i)),   A_i = |F_k| at low frequencies, |F_i| elsewhere

One donor k and one share r ~ U(low, high) of the spectrum for all images of a view; every view of the batch has its
own. Contrast: z_i of view v is drawn to z_i of view w and pushed from the other z_j of view v, that share its style,

    l = -log e^(cos(z_i^v, z_i^w) / t) / (e^(cos(z_i^v, z_i^w) / t) + sum_{j != i} e^(cos(z_i^v, z_j^v) / t))

Source: Scalbert, Vakalopoulou, Couzinie-Devy, "Towards Domain-invariant Self-Supervised Learning with Batch Styles
Standardization", ICLR 2024, arXiv 2303.06088. Cost: 2 (the number of views). The paper pre-trains without labels; here
labels train all views, and the contrast of the head's inputs, without a projector, is added. No code of the authors was
found: the range of r and t are ours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.batch import Batch
from ...core.checks import at_least, in_unit, non_negative, one_of, positive
from ...core.method import Method, Setup
from ...core.operation import require_float
from ...core.random import integers, permutation, uniform
from ...core.registry import register
from ...core.search import Choice, Log
from ...core.split import Split

Negatives = Literal["same view", "all views"]
GREY = (0.299, 0.587, 0.114)


def exchange_amplitudes(x: Tensor, donor: Tensor, ratio: Tensor) -> Tensor:
    """Images x (N, C, *spatial) with low-frequency amplitudes of others; phases stay.

    donor: (N,) whose amplitudes. ratio: (N,) the share of the spectrum's area in [0, 1], a box around frequency 0 of
    odd sides; 0 is the mean alone. Values should not be negative: the sign of a mean is a phase.
    """
    require_float(x)
    axes = tuple(range(2, x.ndim))
    spectrum = torch.fft.rfftn(x if x.dtype == torch.float64 else x.float(), dim=axes)
    side, inside = ratio.to(x.device) ** (1.0 / len(axes)), torch.ones((), dtype=torch.bool, device=x.device)
    for axis in axes:
        n, count = x.shape[axis], spectrum.shape[axis]
        frequency = torch.arange(count, device=x.device)
        frequency = torch.minimum(frequency, n - frequency)
        shape = [1] * x.ndim
        shape[axis] = count
        inside = inside & (frequency.view(shape) <= torch.floor(side * n / 2).view(-1, *[1] * (x.ndim - 1)))
    amplitude = spectrum.abs()
    mixed = torch.polar(torch.where(inside, amplitude[donor.to(x.device)], amplitude), spectrum.angle())
    result: Tensor = torch.fft.irfftn(mixed, s=list(x.shape[2:]), dim=axes).to(x.dtype)
    return result


def turn_hue(x: Tensor, turn: float) -> Tensor:
    """Images x (N, 3, *spatial) >= 0 of red, green and blue, their hue turned by `turn` of the circle.

    Value (the largest of the three) and saturation stay, also above 1.
    """
    value, low = x.amax(dim=1), x.amin(dim=1)
    chroma = value - low
    red, green, blue = (x / torch.where(chroma > 0, chroma, 1.0).unsqueeze(1)).unbind(1)
    top = x.argmax(dim=1)
    sixth = torch.where(top == 0, green - blue, torch.where(top == 1, 2.0 + blue - red, 4.0 + red - green)) + 6.0 * turn
    places = [(sixth + n) % 6.0 for n in (5.0, 3.0, 1.0)]
    return torch.stack([value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0) for k in places], dim=1)


def jitter_colours(x: Tensor, strength: float, generator: torch.Generator, hue: float = 0.0) -> Tensor:
    """Images x (N, C, *spatial) >= 0 with brightness, contrast and, of three channels, saturation changed alike.

    In random order; factors are uniform in [1 - strength, 1 + strength], one for all images. hue in [0, 0.5]: the
    largest turn of the hues of three channels, either way.
    """
    factors = (1.0 + strength * (2.0 * uniform(3, generator=generator) - 1.0)).tolist()
    turn = hue * (2.0 * float(uniform(1, generator=generator)) - 1.0) if hue else 0.0
    weights = torch.tensor(GREY if x.shape[1] == 3 else [1.0 / x.shape[1]] * x.shape[1], device=x.device, dtype=x.dtype)
    for which in permutation(4 if hue else 3, generator).tolist():
        grey = torch.einsum("c,nc...->n...", weights, x).unsqueeze(1)
        if which == 0:
            x = x * factors[0]
        elif which == 1:
            x = torch.lerp(grey.mean(dim=tuple(range(1, x.ndim)), keepdim=True), x, factors[1])
        elif x.shape[1] == 3:
            x = torch.lerp(grey.expand_as(x), x, factors[2]) if which == 2 else turn_hue(x, turn)
    return x


def view_contrast(z: Tensor, temperature: float = 0.5, negatives: Negatives = "same view") -> Tensor:
    """The mean contrastive loss of features z (V, N, F) over samples and ordered pairs of different views.

    negatives: other samples of the anchor's "same view", or of "all views" of the pair, as SimCLR takes them.
    """
    z = F.normalize(z.float() if z.dtype != torch.float64 else z, dim=2)
    views, count = z.shape[:2]
    score = torch.einsum("vid,wjd->vwij", z, z) / temperature
    positive = score.diagonal(dim1=2, dim2=3)
    own = torch.eye(count, dtype=torch.bool, device=z.device)
    other = score.masked_fill(own, torch.finfo(score.dtype).min).logsumexp(dim=3)  # (V, V, N)
    same = other.diagonal(dim1=0, dim2=1).T.unsqueeze(1)
    rest = same if negatives == "same view" else torch.logaddexp(same, other)
    loss = torch.logaddexp(positive, rest) - positive
    itself = torch.eye(views, dtype=torch.bool, device=z.device).unsqueeze(2)
    return loss.masked_fill(itself, 0.0).sum() / (views * (views - 1) * count)


class BatchStyles(Method):
    """Base of methods whose views have one style each; `contrast` says what is asked of the views' features.

    ratio: (low, high), the share of the spectrum that sets the style. views >= 2. weight >= 0: of the contrast. labels:
    whether the labels train too; without them this is pre-training. jitter in [0, 1]: strength of a change of colours
    that all images of a view share, hue in [0, 0.5]: the largest turn of their hues, where they have three channels.
    black: the value of black, one for all channels or (C,); None: the lowest of each channel in the batch. fourier:
    exchange amplitudes image by image first, each with a donor and a share of its own, as plain Fourier augmentation
    does. x: (B, C, *spatial).
    """

    def __init__(
        self,
        ratio: Sequence[float] = (0.02, 1.0),
        weight: float = 0.1,
        *,
        views: int = 2,
        labels: bool = True,
        jitter: float = 0.0,
        hue: float = 0.0,
        black: float | Sequence[float] | None = None,
        fourier: bool = False,
    ) -> None:
        if len(ratio) != 2 or not 0 <= ratio[0] <= ratio[1] <= 1:
            raise ValueError(f"ratio must be (low, high) with 0 <= low <= high <= 1, got {ratio!r}")
        self.ratio, self.views, self.labels = tuple(ratio), at_least("views", views, 2), labels
        self.weight = non_negative("weight", weight)
        self.jitter, self.black, self.fourier = in_unit("jitter", jitter), black, fourier
        if in_unit("hue", hue) > 0.5:
            raise ValueError(f"hue must be a number in [0, 0.5], half the circle either way, got {hue!r}")
        self.hue = hue

    def on_setup(self, given: Setup) -> None:
        self.split = given.split or Split(given.model)

    def view(self, x: Tensor) -> Tensor:
        """The images in one style, all in the same."""
        channel = (1, -1, *[1] * (x.ndim - 2))
        if self.black is None:
            black = x.transpose(0, 1).flatten(1).amin(dim=1).view(channel)
        else:
            black = torch.as_tensor(self.black, device=x.device, dtype=x.dtype).view(channel)
        light = x - black  # the mean of what is not negative has no sign to lose
        if self.jitter or self.hue:
            light = jitter_colours(light, self.jitter, self.generator, self.hue)
        count = len(x)
        if self.fourier:
            donor = integers(count, count, generator=self.generator)
            light = exchange_amplitudes(light, donor, self._shares(count))
        donor = integers(count, 1, generator=self.generator).expand(count)
        return exchange_amplitudes(light, donor, self._shares(1).expand(count)) + black

    def _shares(self, count: int) -> Tensor:
        """(count,) draws of the share of the spectrum."""
        low, high = self.ratio
        return low + (high - low) * uniform(count, generator=self.generator)

    def shown(self, x: Tensor) -> Tensor:
        """What the network sees of the views x (V N, C, *spatial)."""
        return x

    @abstractmethod
    def contrast(self, model: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        """The scalar loss of the views' features z (V, N, F); x: the views (V N, C, *spatial)."""

    def loss(self, model: nn.Module, batch: Batch | Sequence[Any] | Mapping[str, Any], **streams: Any) -> Tensor:
        self._given()
        batch = Batch.of(batch).alone
        if not model.training:
            return self.plain_loss(model, batch)
        if not isinstance(batch.x, Tensor) or batch.x.ndim < 3:
            raise ValueError("bss changes the style of images (B, C, *spatial); tables and trees have none")
        x = torch.cat([self.view(batch.x) for _ in range(self.views)])
        z, output = self.split.features_and_output(self.shown(x), model)
        contrast = self.contrast(model, x, z.reshape(self.views, len(batch), -1))
        if not self.labels:
            return contrast
        return self.task.mean_loss(output, torch.cat([batch.y] * self.views)) + self.weight * contrast


@register(
    "bss",
    paper="Towards Domain-invariant Self-Supervised Learning with Batch Styles Standardization, ICLR 2024, "
    "arXiv 2303.06088",
    cost=2.0,
    level="domains",
    inputs=("image",),
    search={"weight": Log(1e-2, 1), "ratio": Choice((0.02, 1.0), (0.0, 0.1)), "jitter": Choice(0.0, 0.4)},
)
class BSS(BatchStyles):
    """Give all images of a view the style of one of them, train on several views, and contrast within each.

    temperature > 0: of the contrast. negatives: see `view_contrast`. Everything else: see `BatchStyles`.
    """

    def __init__(
        self,
        ratio: Sequence[float] = (0.02, 1.0),
        weight: float = 0.1,
        temperature: float = 0.5,
        *,
        views: int = 2,
        labels: bool = True,
        negatives: Negatives = "same view",
        jitter: float = 0.0,
        hue: float = 0.0,
        black: float | Sequence[float] | None = None,
        fourier: bool = False,
    ) -> None:
        super().__init__(
            ratio, weight, views=views, labels=labels, jitter=jitter, hue=hue, black=black, fourier=fourier
        )
        self.temperature = positive("temperature", temperature)
        self.negatives: Negatives = one_of("negatives", negatives, ("same view", "all views"))

    def contrast(self, model: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        return view_contrast(z, self.temperature, self.negatives)
