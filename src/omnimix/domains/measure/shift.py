"""ICV and IDD: how alike the images of a class are within a domain, and how unlike two domains are.

    ICV(d) = mean over classes of the mean D_JS(q_i, q_j) of two images of the class in domain d
    IDD(d, e) = mean over shared classes of D_JS(mean q of the class in d, mean q of the class in e)

q: a probability vector an image, such as `colour_histograms`, or the softmax of a frozen encoder's features. D_JS in
bits, in [0, 1]. Source: Luo et al., "Grounding Stylistic Domain Generalization with Quantitative Domain Shift Measures
and Synthetic Scene Images", CVPR workshops 2024, arXiv 2405.15961; the averages above are ours. Values of different q
are not to be compared; `idd_floor` says what two halves of one domain give.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.checks import at_least
from ...core.divergence import js_divergence
from ...core.random import integers, permutation, resolve

PAIRS = 2000
"""Of a cell with more, so many are drawn."""


def colour_histograms(x: Tensor, bins: int = 4, low: float = 0.0, high: float = 1.0) -> Tensor:
    """(N, bins^C) the shares of cells of colour space among the pixels of images x (N, C, *spatial) in [low, high]."""
    at_least("bins", bins, 1)
    place = ((x.float() - low) / (high - low) * bins).long().clamp_(0, bins - 1).flatten(2)
    powers = bins ** torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
    cell = (place * powers.view(1, -1, 1)).sum(dim=1)
    counts = torch.zeros(len(x), bins ** x.shape[1], device=x.device)
    return counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=counts.dtype)) / cell.shape[1]


def icv(q: Tensor, label: Tensor, domain: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(D,) the inconsistency of each domain, ascending by id; NaN where no class has two images.

    q: (N, K), label, domain: (N,). Cells with more than `PAIRS` pairs of different images have that many drawn.
    """
    _check(q, label, domain)
    generator, found = resolve(generator), []
    for d in torch.unique(domain):
        cells = [torch.nonzero((domain == d) & (label == c)).flatten() for c in torch.unique(label)]
        means = []
        for rows in (cell for cell in cells if len(cell) > 1):
            first, second = (rows[p.to(rows.device)] for p in _pairs(len(rows), generator))
            means.append(js_divergence(q[first].double(), q[second].double()).mean() / math.log(2))
        found.append(torch.stack(means).mean() if means else torch.tensor(math.nan, dtype=torch.float64))
    return torch.stack([value.to(q.device) for value in found])


def _pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of different numbers below `count`: all of them, or `PAIRS` drawn."""
    if count * (count - 1) // 2 <= PAIRS:
        first, second = torch.triu_indices(count, count, 1)
        return first, second
    first = integers(count, PAIRS, generator=generator)
    return first, (first + 1 + integers(count - 1, PAIRS, generator=generator)) % count


def idd(q: Tensor, label: Tensor, domain: Tensor) -> Tensor:
    """(D, D) how unlike the domains are, ascending by id; 0 on the diagonal, NaN for two that share no class."""
    _check(q, label, domain)
    _, c = torch.unique(label, return_inverse=True)
    _, d = torch.unique(domain, return_inverse=True)
    classes, domains = int(c.max()) + 1, int(d.max()) + 1
    cell, size = d * classes + c, classes * domains
    counts = torch.bincount(cell, minlength=size)
    total = torch.zeros(size, q.shape[1], dtype=torch.float64, device=q.device).index_add(0, cell, q.double())
    mean = (total / counts.clamp(min=1).unsqueeze(1)).view(domains, classes, -1)
    there = (counts > 0).view(domains, classes)
    both = (there.unsqueeze(1) & there.unsqueeze(0)).double()
    rows = [js_divergence(one.unsqueeze(0), mean) / math.log(2) for one in mean]  # a domain at a time saves memory
    return (torch.stack(rows) * both).sum(dim=2) / both.sum(dim=2)


def idd_floor(q: Tensor, label: Tensor, domain: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(D,) the IDD of two random halves of each domain, split class by class: what chance alone gives."""
    _check(q, label, domain)
    generator = resolve(generator)
    order = permutation(len(q), generator).to(q.device)
    place = torch.zeros(len(q), dtype=torch.long, device=q.device)
    for d in torch.unique(domain):
        for c in torch.unique(label):
            rows = order[(domain[order] == d) & (label[order] == c)]
            place[rows] = torch.arange(len(rows), device=q.device) % 2
    halves = idd(q, label, 2 * torch.unique(domain, return_inverse=True)[1] + place)
    return torch.stack([halves[2 * d, 2 * d + 1] for d in range(len(halves) // 2)])


def idd_interval(
    q: Tensor, label: Tensor, domain: Tensor, draws: int = 200, generator: torch.Generator | None = None
) -> Tensor:
    """(2, D, D) the 2.5 % and 97.5 % quantiles of the IDD over bootstrap draws of images within each cell."""
    generator = resolve(generator)
    cells = torch.unique(torch.stack((domain, label)), dim=1, return_inverse=True)[1]
    order, counts = cells.argsort(stable=True), torch.bincount(cells)
    start = (counts.cumsum(0) - counts)[cells[order]]
    found = []
    for _ in range(at_least("draws", draws, 1)):
        u = torch.rand(len(q), generator=generator, device=generator.device, dtype=torch.float64).to(q.device)
        rows = order[start + (u * counts[cells[order]]).long()]
        found.append(idd(q[rows], label[rows], domain[rows]))
    return torch.stack(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64, device=q.device), dim=0)


def _check(q: Tensor, label: Tensor, domain: Tensor) -> None:
    shapes = [tuple(t.shape) for t in (q, label, domain)]
    if q.ndim != 2 or shapes[1] != shapes[2] or shapes[1] != shapes[0][:1]:
        raise ValueError(f"q must be (N, K), label and domain (N,), got {shapes}")
    if bool((q < 0).any()) or bool(((q.double().sum(dim=1) - 1).abs() > 1e-3).any()):
        raise ValueError("the rows of q must be probabilities: none negative, each with the sum 1")
