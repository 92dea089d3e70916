"""Noisy mixup: mix two samples, then add Gaussian noise that grows as the mix nears the midpoint.

    x~ = lam x_i + (1 - lam) x_j + sigma * 4 lam (1 - lam) * n,   n ~ N(0, 1)

The whole plug-in: an Operation says how samples are mixed, a Mix names it. `pip install` makes it known to omnimix by
the entry point in pyproject.toml; then `omnimix methods`, `omnimix compare --methods erm,noisy-mixup` and
`omnimix.testing.check_method("noisy-mixup")` all know it.
"""

import torch

from omnimix import Beta, Interpolate, Mix, register
from omnimix.core.checks import non_negative
from omnimix.core.recipe import rowwise


class NoisyInterpolate(Interpolate):
    """Interpolation plus noise of standard deviation sigma at lam = 1/2, none at lam = 0 or 1."""

    def __init__(self, sigma: float) -> None:
        self.sigma = non_negative("sigma", sigma)

    def __call__(self, x, recipe, context):
        mixed, recipe = super().__call__(x, recipe, context)
        noise = torch.randn(mixed.shape, generator=context.generator, device=context.generator.device)
        scale = self.sigma * 4 * recipe.lam * (1 - recipe.lam)
        return mixed + (rowwise(scale, mixed) * noise.to(mixed.device)).to(mixed.dtype), recipe


@register("noisy-mixup", paper="an example, not a published method")
class NoisyMixup(Mix):
    """Mixup with Gaussian noise that grows towards the midpoint."""

    def __init__(self, alpha: float = 1.0, sigma: float = 0.1) -> None:
        super().__init__(ratio=Beta(alpha), operation=NoisyInterpolate(sigma))
