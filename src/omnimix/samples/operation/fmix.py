"""FMix: mix two samples by a mask of arbitrary shape, a low-frequency random field cut at the height that keeps lam.

    G = irfftn((a + i b) / max(freq, 1 / max side)^decay),  a, b ~ N(0, 1),   m = 1 in the lam * cells highest cells,
    x~_i = m x_i + (1 - m) x_pi(i),   y~_i = mean(m) y_i + (1 - mean(m)) y_pi(i),   lam ~ Beta(alpha, alpha)

Source: Harris, Marcu, Painter, Niranjan, Prügel-Bennett, Hare, "FMix: Enhancing Mixed Sample Data Augmentation", 2020,
arXiv 2002.12047. Cost: 1, a Fourier transform and a selection a mask. The reference code builds each field from two
rows of the frequency grid only, so that its masks are never more than one period wide along the last axis, and weighs
the labels by the lam drawn, not by the mask; `reference=True` does so too: published numbers come from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...core.checks import non_negative
from ...core.method import Mix
from ...core.objective import LabelPolicy
from ...core.operation import Context, Operation, blend, spatial_size
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.random import resolve, uniform
from ...core.ratio import Beta, Ratio, complete
from ...core.recipe import Mixed, Recipe
from ...core.registry import register
from ...core.search import Log, Uniform
from ...core.tree import Tree


def frequencies(size: Sequence[int], reference: bool = False) -> Tensor:
    """The float64 lengths of the frequency vectors of a real field, (*size[:-1], size[-1] // 2 + 1).

    reference: the grid of the reference code, whose axes are (h), (h, w') and (h, z, w') for sizes (h), (h, w) and
    (h, w, z); w' = w // 2 + 1, one more for odd w.
    """
    axes = [torch.fft.fftfreq(side, dtype=torch.float64) for side in size]
    if not reference:
        axes[-1] = axes[-1][: size[-1] // 2 + 1]
    elif len(size) > 1:
        half = axes[1][: size[1] // 2 + 1 + size[1] % 2]
        axes = [axes[0], *axes[2:], half]
    return functools.reduce(lambda squares, axis: squares.unsqueeze(-1) + axis**2, axes, torch.zeros(())).sqrt()


@functools.lru_cache(maxsize=32)
def _amplitudes(size: tuple[int, ...], decay: float, reference: bool) -> Tensor:
    """frequency^-decay with a floor at the first frequency, which gets 1."""
    floor = 1.0 / max(size)
    scale = (frequencies(size, reference).clamp(min=floor) / floor) ** -decay
    if not reference:
        return scale
    if size[0] < 2:
        raise ValueError(f"the reference's fields need a first side of 2 or more, got size {size}")
    return scale[:2]  # the two rows of the grid that its code takes for real and imaginary part


def fourier_fields(
    size: Sequence[int],
    count: int = 1,
    decay: float = 3.0,
    *,
    reference: bool = False,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """(count, *size) smooth random fields of 1 to 3 dimensions, up to a scale and a shift.

    decay >= 0: amplitudes fall as frequency^-decay; 0 is white noise. noise: (count, *frequencies(size).shape, 2)
    standard normals in place of the draw. device: where to compute, by default the generator's or the noise's.
    """
    scale = _amplitudes(tuple(size), non_negative("decay", decay), reference)
    if noise is None:
        source = resolve(generator)
        noise = torch.randn(count, *scale.shape, 2, generator=source, device=source.device)
    else:
        noise = noise.clone()
    noise = noise.to(device or noise.device)
    scale = scale.to(noise)
    if reference:
        spectrum = torch.complex(noise[:, 0] * scale[0, ..., None], noise[:, 1] * scale[1, ..., None])
    else:
        spectrum = torch.view_as_complex(noise).mul_(scale)
    axes = tuple(range(1, len(size) + 1))
    # Two steps: a several-axes complex-to-real transform of a spectrum without symmetry depends on the library.
    if len(size) > 1:
        spectrum = torch.fft.ifftn(spectrum, s=tuple(size[:-1]), dim=axes[:-1])
    field: Tensor = torch.fft.irfft(spectrum, n=size[-1], dim=-1)
    return field


def binarise(
    field: Tensor,
    lam: Tensor | float,
    max_soft: float = 0.0,
    *,
    round_up: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(G, *size) masks: 1 in the lam * cells highest cells of each field, else 0.

    field: (G, *size). lam: (G,) or a number in [0, 1]. max_soft: in [0, .5]; the share of cells on either side of the
    edge over which the mask falls linearly, at most lam and 1 - lam. round_up: (G,) booleans in place of the fair coin
    that rounds the number of cells up or down.
    """
    flat = field.flatten(1)
    count, cells = flat.shape
    lam = torch.as_tensor(lam, device=field.device).double().expand(count)
    if round_up is None:
        source = resolve(generator)
        round_up = uniform(count, generator=source) > 0.5
    keep = whole_cells(lam, cells, round_up)
    if _softness(max_soft) == 0:
        mask = torch.ge(flat, _nth_largest(flat, keep), out=torch.empty_like(flat))
    else:
        soft = whole_cells(torch.minimum(lam, 1.0 - lam).clamp(max=max_soft), cells, torch.tensor(False))
        soft = torch.minimum(soft, torch.minimum(keep, cells - keep)).unsqueeze(1)
        rank = torch.arange(cells, device=field.device)
        ramp = (keep.unsqueeze(1) + (soft - 1).clamp(min=0) - rank) / (2 * soft - 1).clamp(min=1)
        order = flat.argsort(dim=1, descending=True)
        mask = torch.empty_like(flat).scatter_(1, order, ramp.clamp(0, 1).to(field.dtype))
    return mask.view_as(field)


def whole_cells(lam: Tensor, cells: int, round_up: Tensor) -> Tensor:
    """(G,) integers in 0..cells: float64 lam (G,) times cells, rounded up where `round_up` is True, else down."""
    slack = 1e-7 * cells  # lam is a float32: .3 of 10 cells are 3, not 3.0000001
    count = torch.where(round_up.to(lam.device), (lam * cells - slack).ceil(), (lam * cells + slack).floor())
    return count.clamp(0, cells).long()  # from ten million cells on, the slack is a cell or more


def _softness(max_soft: float) -> float:
    if not 0 <= max_soft <= 0.5:
        raise ValueError(f"max_soft must be a number in [0, 0.5], got {max_soft!r}")
    return max_soft


def _nth_largest(flat: Tensor, n: Tensor) -> Tensor:
    """(G, 1) the n-th largest value of each row; infinity for n = 0."""
    cells = flat.shape[1]
    if flat.device.type == "cpu":  # NumPy's selection takes one n at a time, and a third of the time of PyTorch's
        rows = (flat.float() if flat.element_size() < 4 else flat).numpy(force=True)
        at = [(row, cells - k) for row, k in zip(rows, n.tolist(), strict=True)]
        found = [np.partition(row, k)[k] if k < cells else np.inf for row, k in at]
        return torch.from_numpy(np.array(found, rows.dtype)).to(flat.dtype).unsqueeze(1)
    ordered = torch.cat((flat.new_full((len(flat), 1), torch.inf), flat.sort(dim=1, descending=True).values), dim=1)
    return ordered.gather(1, n.unsqueeze(1))


def fourier_masks(
    lam: Tensor,
    size: Sequence[int],
    decay: float = 3.0,
    *,
    max_soft: float = 0.0,
    reference: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(G, 1, *size) float32 masks of mean lam (G,), up to a cell; see `fourier_fields` and `binarise`."""
    source, masks = resolve(generator), []
    for part in torch.split(lam, max(1, 2**20 // math.prod(size))):  # so many at a time as a processor's cache takes
        field = fourier_fields(size, len(part), decay, reference=reference, generator=source, device=lam.device)
        masks.append(binarise(field, part, max_soft, generator=source))
    return torch.cat(masks).unsqueeze(1)


class FourierMask(Operation):
    """Show the sample where a smooth random field is high, its partner elsewhere; shares are those of the mask.

    decay, max_soft: see `fourier_fields`, `binarise`. per_sample: a mask for each sample, else one for the batch, for
    the first sample's share. reference: the reference code's fields, and labels by the share drawn. x: (R, C, *spatial)
    with 1 to 3 spatial axes, images or hidden maps; ValueError otherwise.
    """

    def __init__(
        self, decay: float = 3.0, *, max_soft: float = 0.0, per_sample: bool = False, reference: bool = False
    ) -> None:
        self.decay = non_negative("decay", decay)
        self.max_soft = _softness(max_soft)
        self.per_sample, self.reference = per_sample, reference

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tensor, Recipe]:
        size, source = spatial_size(x, recipe), context.generator
        partner, share = recipe.partner[:, 1].to(x.device), recipe.share.to(x.device)
        drawn = share if self.per_sample else share[:1]
        mask = fourier_masks(
            drawn[:, 0], size, self.decay, max_soft=self.max_soft, reference=self.reference, generator=source
        )
        kept = mask.flatten(1).mean(dim=1)
        share = complete(torch.stack((kept, 1.0 - kept), dim=1)).expand(len(partner), 2)
        applied = recipe.with_share(share, mask)
        if self.reference:
            applied = replace(applied, label_share=drawn.expand(len(partner), 2))
        return blend(x, partner, mask.to(x.dtype)), applied


class SizeBiased(Ratio):
    """lam ~ Beta(alpha + 1, alpha): of lam and 1 - lam, lam ~ Beta(alpha, alpha), either with its own probability."""

    def __init__(self, alpha: float = 1.0, *, per_sample: bool = False) -> None:
        self.base = Beta(alpha, per_sample=per_sample)

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        share = self.base(rows, k, generator)
        draws = rows if self.base.per_sample else 1
        keep = uniform(draws, 1, generator=generator) < share[:draws, :1]
        return torch.where(keep, share, share.flip(1))


def own_label(recipe: Recipe) -> Recipe:
    """The label of the sample itself with weight 1, whatever is mixed into it."""
    own = torch.zeros_like(recipe.share)
    own[:, 0] = 1.0
    return replace(recipe, label_share=own)


class OwnLabel(LabelPolicy):
    """See `own_label`."""

    def __call__(self, recipe: Recipe, context: Context) -> Recipe:
        return own_label(recipe)


def fmix(
    x: Tensor,
    y: Tensor,
    alpha: float = 1.0,
    decay: float = 3.0,
    *,
    max_soft: float = 0.0,
    per_sample: bool = False,
    reformulate: bool = False,
    reference: bool = False,
    lam: float | Tensor | None = None,
    partner: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch: `mixed = fmix(x, y); loss = mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, C, *spatial) with 1 to 3 spatial axes. y: class ids (B,), soft or multi-label (B, C), real (B,)
    or (B, D). alpha >= 0 of Beta(alpha, alpha); 0: no mixing. decay, max_soft: smoothness of the field, softness of the
    edge. per_sample: a share and a mask for each sample instead of one for the batch. reformulate: lam ~
    Beta(alpha + 1, alpha), and the sample's own label alone. reference: see the module. lam: a number or (B,) values in
    [0, 1] in place of the draw. partner: (B,) rows in place of a random permutation. The mask is `mixed.recipe.mask`.
    ValueError for tables, integer x or arguments out of range.
    """
    method = FMix(
        alpha,
        decay,
        max_soft=max_soft,
        per_sample=per_sample or (isinstance(lam, Tensor) and lam.numel() > 1),
        reformulate=reformulate,
        reference=reference,
    )
    mixed = mix_once(x, y, method.pairing, method.ratio, method.operation, lam, partner, generator)
    return replace(mixed, recipe=own_label(mixed.recipe)) if reformulate else mixed


@register(
    "fmix",
    paper="FMix: Enhancing Mixed Sample Data Augmentation, 2020, arXiv 2002.12047",
    inputs=("image",),
    search={"alpha": Log(0.1, 8), "decay": Uniform(1.5, 6)},
)
class FMix(Mix):
    """Mix two samples by a mask of arbitrary shape that covers a share lam.

    alpha, decay, max_soft, per_sample, reformulate, reference: see `fmix`. The paper also alternates it with mixup:
    `Alternate([FMix(), Mixup()])`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        decay: float = 3.0,
        *,
        max_soft: float = 0.0,
        per_sample: bool = False,
        reformulate: bool = False,
        reference: bool = False,
    ) -> None:
        super().__init__(
            RandomPairing(),
            (SizeBiased if reformulate else Beta)(alpha, per_sample=per_sample),
            FourierMask(decay, max_soft=max_soft, per_sample=per_sample, reference=reference),
            labels=OwnLabel() if reformulate else None,
        )
