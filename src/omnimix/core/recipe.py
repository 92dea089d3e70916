"""Who is mixed with whom and how much, and the mixed batch that carries it to the loss."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .criterion import per_sample, sample_weight, total
from .tree import Tree

Target: TypeAlias = Literal["two-part", "soft"]
Views: TypeAlias = tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Recipe:
    """The mixing of one batch. B anchors, K samples mixed into one.

    partner: (B, K) rows of the batch; column 0 is the sample itself. share: (B, K) what each contributes to the input.
    label_share: (B, K) what each contributes to the label; None means `share`; it need not sum to 1. loss_weight: (B,)
    or None. mask: (B or 1, 1, *spatial), 1 where the sample itself shows, for spatial operations. place: "input" or the
    name of the tap where the mixing happened. moved: for operations that move cells: label maps (R, C, *spatial) to the
    tuple (own, partner's), each (B, C, *spatial), that `mask` joins, or to the one map (B, C, *spatial) that is shown,
    or to pairs of a map and its weights (B, 1, *spatial), where a cell may show any of K samples.
    A row whose partners are all itself is not mixed.
    """

    partner: Tensor
    share: Tensor
    label_share: Tensor = None  # type: ignore[assignment]  # set to share below
    loss_weight: Tensor | None = None
    mask: Tensor | None = None
    place: str = "input"
    moved: Callable[[Tensor], Views] | None = None

    def __post_init__(self) -> None:
        if self.partner.ndim != 2 or self.share.shape != self.partner.shape:
            raise ValueError(
                f"partner and share must both be (B, K), got {tuple(self.partner.shape)} and {tuple(self.share.shape)}"
            )
        if self.label_share is None:
            object.__setattr__(self, "label_share", self.share)

    def with_share(
        self, share: Tensor, mask: Tensor | None = None, moved: Callable[[Tensor], Views] | None = None
    ) -> Recipe:
        """The recipe that an operation really applied: inputs and labels both follow `share`."""
        return replace(self, share=share, label_share=share, mask=mask, moved=moved)

    def maps(self, y: Tensor) -> bool:
        """Whether targets (R, ...) are label maps, to be mixed by the mask, cell by cell."""
        axes = 0 if self.mask is None else self.mask.ndim - 2
        return axes > 0 and (y.ndim >= max(3, axes + 1) or (y.ndim == axes + 1 and not y.is_floating_point()))

    @property
    def unmixed(self) -> Tensor:
        """(B,) True where a row has no partner but itself."""
        return (self.partner == self.partner[:, :1]).all(dim=1)

    def halves(self, x: Tensor) -> bool:
        """Whether x (R, ...) holds the anchors and then, in the same order, the one partner of each."""
        count = self.partner.shape[0]  # len() of a tensor takes several times as long
        return x.shape[0] == 2 * count and self.partner is guest_layout(2, count, self.partner.device)

    @property
    def lam(self) -> Tensor:
        """(B,) the share of the sample itself in its input."""
        return self.share[:, 0]


def mix_labels(target: Tensor, recipe: Recipe) -> Tensor:
    """sum_k label_share[:, k] * target[partner[:, k]] for real-valued targets (R, ...); returns (B, ...)."""
    if not target.is_floating_point():
        raise ValueError(f"only real-valued targets can be averaged, got {target.dtype}; make class ids one-hot first")
    if recipe.maps(target):
        return sum_of(part * weight for part, weight in laid(target, recipe))
    share = recipe.label_share.to(target.dtype)
    if recipe.halves(target) and recipe.label_share is recipe.share:
        own, guest = target.view(2, -1, *target.shape[1:]).unbind()
        return torch.lerp(guest, own, rowwise(share[:, 0], target))
    parts = target[recipe.partner]
    if share.shape[1] == 2 and recipe.label_share is recipe.share:  # they sum to 1: equal labels stay exactly equal
        return torch.lerp(parts[:, 1], parts[:, 0], rowwise(share[:, 0], target))
    return (share.view(*share.shape, *[1] * (target.ndim - 1)) * parts).sum(dim=1)


def laid(y: Tensor, recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """What a mask shows of label maps y, ids (R, *spatial) or any (R, C, *spatial): [(maps (B, ...), weights)].

    The weights sum to 1 in every cell. Maps may be of another size than the mask, where cells were not moved;
    ValueError where they were.
    """
    assert recipe.mask is not None
    size, channels = recipe.mask.shape[2:], y.ndim == recipe.mask.ndim
    maps = y if channels else y.unsqueeze(1)
    if maps.ndim != recipe.mask.ndim:
        raise ValueError(f"label maps must be (B, *spatial) or (B, C, *spatial) for inputs of size {tuple(size)}")
    mask = recipe.mask.to(y.device, y.dtype if y.is_floating_point() else torch.float32)
    views: Views
    if recipe.moved is None:
        if recipe.partner.shape[1] != 2:
            raise ValueError(
                f"label maps follow masks of two samples, got k = {recipe.partner.shape[1]}; use cutmix, resizemix, "
                "mosaic or co-mixup"
            )
        views = maps[recipe.partner[:, 0]], maps[recipe.partner[:, 1]]
        if maps.shape[2:] != size:
            mask = torch.nn.functional.interpolate(mask, maps.shape[2:])
    elif maps.shape[2:] != size:
        raise ValueError(
            f"label maps must have the size {tuple(size)} of what is mixed, got {tuple(maps.shape[2:])}: the operation "
            "moves their cells"
        )
    else:
        views = recipe.moved(maps)
    weights = (mask, 1 - mask) if len(views) == 2 else (torch.ones_like(mask),)
    pairs = [
        view if isinstance(view, tuple) else (view, weight) for view, weight in itertools.zip_longest(views, weights)
    ]
    return pairs if channels else [(view[:, 0], weight[:, 0]) for view, weight in pairs]


@functools.lru_cache(maxsize=8)
def guest_layout(k: int, count: int, device: torch.device) -> Tensor:
    """(count, k) the partners in a batch that brings k - 1 guests for each anchor; one tensor for all such batches."""
    with torch.inference_mode(False):
        return torch.arange(k * count, device=device).view(k, count).T


def rowwise(value: Tensor, like: Tensor) -> Tensor:
    """(B,) values shaped to multiply a (B, ...) tensor row by row."""
    return value.view(-1, *[1] * (like.ndim - 1))


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of equal shape."""
    return functools.reduce(torch.add, parts)


@dataclass(frozen=True)
class Mixed:
    """A mixed batch: `x` (B, ...), the targets `y` of all rows (not mixed), and the `recipe` that joins them."""

    x: Tree
    y: Tensor
    recipe: Recipe

    def soft_target(self, num_classes: int | None = None) -> Tensor:
        """The mixed target: (B, num_classes) for class ids, (B, ...) for real-valued targets."""
        if self.y.is_floating_point():
            return mix_labels(self.y, self.recipe)
        if num_classes is None:
            raise ValueError("y holds class ids: soft_target needs num_classes")
        if self.y.ndim > 1:
            if self.recipe.maps(self.y):
                parts = laid(self.y, self.recipe)
                return sum_of(one_hot(ids, num_classes) * weight.unsqueeze(1) for ids, weight in parts)
            return mix_labels(one_hot(self.y, num_classes), self.recipe)
        share, labels = self.recipe.label_share, self.y[self.recipe.partner].long()
        try:
            return share.new_zeros(share.shape[0], num_classes).scatter_add_(1, labels, share)
        except RuntimeError:  # on the CPU it looks itself
            _check_ids(self.y, num_classes)
            raise

    def loss(self, criterion: Callable[..., Any], output: Tensor, target: Target | None = None) -> Tensor:
        """The mixed loss of the batch, a scalar.

        criterion: an `nn.Module` loss or a function such as `F.cross_entropy`; it is evaluated per sample and then
        reduced as it reduces itself, so that unmixed samples give its own value. Real-valued y (B,) fits outputs
        (B, 1). Label maps follow the mask, where there is one, cell by cell. target: "two-part" weighs the losses
        against each label, sum_k share_k * criterion(output, y_k); "soft" takes the loss against the mixed target. For
        losses linear in the target (cross-entropy without class weights, BCE with logits) both are equal; for squared
        error they differ by lam (1 - lam) (y_a - y_b)^2. Default: soft for real-valued y, two-part for class ids.
        ValueError if the criterion gives one number for the whole batch.
        """
        target = target or ("soft" if self.y.is_floating_point() else "two-part")
        recipe, scale = self.recipe, None
        if target == "soft":
            losses = per_sample(criterion, output, self.soft_target(output.shape[1] if output.ndim > 1 else None))
        elif target == "two-part":
            if recipe.maps(self.y):
                parts = laid(self.y, recipe)
                losses = sum_of(per_sample(criterion, output, y, weight) for y, weight in parts)
                counts = [w for w in (sample_weight(criterion, y, weight) for y, weight in parts) if w is not None]
                losses = losses if recipe.loss_weight is None else losses * recipe.loss_weight
                return total(criterion, losses, sum_of(counts) if counts else None)
            share = recipe.label_share
            labels = [self.y[recipe.partner[:, k]] for k in range(share.shape[1])]
            losses = sum_of(share[:, k] * per_sample(criterion, output, y) for k, y in enumerate(labels))
            weights = [w for w in (sample_weight(criterion, y) for y in labels) if w is not None]
            if weights:
                scale = sum_of(share[:, k] * w for k, w in enumerate(weights)) / share.sum(dim=1)
        else:
            raise ValueError(f"target must be 'two-part' or 'soft', got {target!r}")
        return total(criterion, losses if recipe.loss_weight is None else losses * recipe.loss_weight, scale)


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Class ids (R,) or (R, H, W) to floats (R, num_classes) or (R, num_classes, H, W); ValueError if out of range."""
    _check_ids(y, num_classes)
    out = torch.zeros(y.shape[0], num_classes, *y.shape[1:], device=y.device)
    return out.scatter_(1, y.long().unsqueeze(1), 1.0)


def _check_ids(y: Tensor, num_classes: int) -> None:
    if y.is_floating_point():
        raise ValueError(f"class ids must be integers, got {y.dtype}")
    if y.device.type != "cpu" or not y.numel():  # elsewhere it would wait for the device
        return
    low, high = map(int, y.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(f"class ids must lie in 0..{num_classes - 1}, got {low}..{high}")
