"""What a trained network is tried with: attacked, corrupted and occluded inputs, to be scored as clean ones are.

    FGSM: x + epsilon sign(grad_x loss(f(x), y))

Sources: Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572 (FGSM); Hendrycks, Dietterich, ICLR 2019, arXiv
1903.12261 (noise, blur, contrast); Naseer et al., NeurIPS 2021, arXiv 2105.10497 (patches removed at random). Pure
functions of images (B, C, H, W); all but `fgsm` take pixels in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import at_least, in_unit, non_negative, positive
from ..core.random import resolve
from ..core.split import evaluating
from ..core.task import Task


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    task: Task,
    epsilon: float | Tensor,
    low: float | Tensor = -math.inf,
    high: float | Tensor = math.inf,
) -> Tensor:
    """Inputs (B, ...) after one step of `epsilon` against the network, which is used in evaluation mode.

    epsilon, low, high: the step and the range of the result, in the scale of x (2/255 of pixels that were divided by
    std is 2/255/std), numbers or tensors that broadcast. The weights' gradients are left alone.
    """
    with evaluating(model), torch.enable_grad():
        inputs = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(task.losses(model(inputs), y).sum(), inputs)
    moved = x + torch.as_tensor(epsilon, device=x.device, dtype=x.dtype) * gradient.sign()
    low, high = (torch.as_tensor(edge, device=x.device, dtype=x.dtype) for edge in (low, high))
    return moved.clamp(low, high)


def noise(x: Tensor, sd: float = 0.08, *, generator: torch.Generator | None = None) -> Tensor:
    """Gaussian noise of standard deviation `sd` on every value, cut off at 0 and 1."""
    source = resolve(generator)
    drawn = torch.randn(x.shape, generator=source, device=source.device, dtype=x.dtype).to(x.device)
    return (x + non_negative("sd", sd) * drawn).clamp(0, 1)


def blur(x: Tensor, sd: float = 1.0) -> Tensor:
    """The images smoothed by a Gaussian of standard deviation `sd` > 0 pixels; borders are mirrored."""
    reach = min(math.ceil(3 * positive("sd", sd)), min(x.shape[2:]) - 1)
    place = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = (-place.square() / (2 * sd**2)).exp()
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    x = F.conv2d(x, kernel.unsqueeze(2), groups=x.shape[1])
    return F.conv2d(x, kernel.unsqueeze(3), groups=x.shape[1])


def contrast(x: Tensor, factor: float = 0.4) -> Tensor:
    """Differences to the mean of each image's channel times `factor`, in [0, 1]."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return mean + in_unit("factor", factor) * (x - mean)


def occluded(
    x: Tensor,
    share: float = 0.5,
    grid: int = 4,
    fill: float | Tensor = 0.0,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The images without round(share * grid^2) of their grid x grid patches, others in each; `fill` is there instead.

    fill: a number or a tensor that broadcasts. ValueError where a side has fewer than `grid` pixels.
    """
    source, (height, width) = resolve(generator), x.shape[2:]
    if at_least("grid", grid, 1) > min(height, width):
        raise ValueError(f"grid must not be above the sides {height} x {width}, got {grid}")
    gone = round(in_unit("share", share) * grid**2)
    order = torch.rand(len(x), grid**2, generator=source, device=source.device).argsort(dim=1).to(x.device)
    hidden = (order < gone).view(-1, 1, grid, grid)
    rows, columns = (torch.arange(side, device=x.device) * grid // side for side in (height, width))
    return torch.where(hidden[:, :, rows][..., columns], torch.as_tensor(fill, device=x.device, dtype=x.dtype), x)
