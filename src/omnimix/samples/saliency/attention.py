"""Attention of vision transformers: how much the class token looks at each patch.

    s_p = mean over heads of a_(cls, p),   a = softmax(q k^T / sqrt(d)) of the last layer of attention

Without a class token: the mean over the patches that look. It is read from a forward pass, whatever made it: torch's
scaled_dot_product_attention, which never forms the matrix (timm, transformers, this package), its MultiheadAttention
(torchvision), or a softmax over (R, heads, tokens, tokens). Source: Caron et al., "Emerging Properties in
Self-Supervised Vision Transformers", ICCV 2021, arXiv 2104.14294. Cost: one row of the matrix, or one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...core.checks import one_of
from ...core.operation import Context, Saliency
from ...core.split import evaluating

PREFIX = 16
"""The most tokens that may stand before the patches of a convolution."""
REGISTERS = ("reg_token", "register_tokens", "storage_tokens")
"""What parameters of tokens that are no class token are called."""
_SOFTMAX: tuple[Any, ...] = (F.softmax, torch.softmax, Tensor.softmax)
_CONVOLUTION: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_Weights = Callable[[slice], Tensor]
"""Some queries to their (R, heads, queries, keys) attention."""


class Watched(TorchFunctionMode):
    """The attention of a forward pass of `model`; see `watch_attention`."""

    def __init__(self, model: nn.Module, always: bool) -> None:
        super().__init__()
        registers = [p.shape[-2] for name, p in model.named_parameters() if name.rpartition(".")[2] in REGISTERS]
        self.registers, self.name, self.open = sum(registers), type(model).__name__, always
        self._kept = dict[int, tuple[int, int, _Weights]]()  # of each number of rows the last: queries, keys, weights
        self._grids = list[tuple[int, ...]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _CONVOLUTION:
            self._grids.append(tuple(out.shape[2:]))
        elif not self.open:
            pass
        elif func is F.scaled_dot_product_attention:
            self._product(*args, **kwargs)
        elif func is F.multi_head_attention_forward:
            self._multi_head(args, kwargs)
        elif func in _SOFTMAX and out.ndim == 4:
            weights = out.detach()
            self._keep(len(out), out.shape[2], out.shape[3], lambda queries: weights[:, :, queries])
        return out

    def _product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **more: Any,
    ) -> None:
        if query.ndim != 4 or is_causal:
            return
        q, k = query.detach(), key.detach()

        def weights(queries: slice) -> Tensor:
            keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1) if k.shape[1] != q.shape[1] else k
            scores = q[:, :, queries].float() @ keys.float().mT * (q.shape[-1] ** -0.5 if scale is None else scale)
            if attn_mask is not None:
                mask = attn_mask.detach()
                mask = mask.expand(*mask.shape[:-2], q.shape[2], k.shape[2])[..., queries, :]
                scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
            return scores.softmax(dim=-1)

        self._keep(len(q), q.shape[2], k.shape[2], weights)

    def _multi_head(self, args: Any, kwargs: Any) -> None:
        query, key = args[:2]  # (tokens, R, width)
        if query.ndim != 3:
            return

        def weights(queries: slice) -> Tensor:
            with torch.no_grad():
                again = {**kwargs, "training": False, "need_weights": True, "average_attn_weights": True}
                found: Tensor = F.multi_head_attention_forward(*args, **again)[1]  # type: ignore[assignment]
            return found[:, None, queries]

        self._keep(query.shape[1], query.shape[0], key.shape[0], weights)

    def _keep(self, rows: int, queries: int, keys: int, weights: _Weights) -> None:
        if queries in (1, keys) and keys > 1:
            self._kept[rows] = queries, keys, weights

    def maps(self, rows: int, size: Sequence[int], *, patches: bool = False) -> Tensor:
        """(rows, 1, *grid) float32 attention to the patches of inputs (rows, C, *size); ValueError if there was none.

        patches: the mean over the patches that look, also where there is a class token.
        """
        if rows not in self._kept:
            raise ValueError(
                f"{self.name} computes no attention between the patches of an image: this needs a vision transformer, "
                "such as the networks 'vit' and 'timm:deit_tiny_patch16_224', not compiled, whose attention is torch's "
                "scaled_dot_product_attention, MultiheadAttention or a softmax over (B, heads, tokens, tokens)"
            )
        queries, keys, weights = self._kept[rows]
        grid = self._grid(keys, size)
        before = keys - math.prod(grid)
        of_one = queries == 1 or (before > self.registers and not patches)
        found = weights(slice(0, 1) if of_one else slice(before, None))
        return found[..., before:].float().mean(dim=(1, 2)).view(rows, 1, *grid)

    def _grid(self, keys: int, size: Sequence[int]) -> tuple[int, ...]:
        """Of the patches: that of the last convolution which fits their number.

        Else one in proportion to the size, behind the registers and at most two more tokens.
        """
        for grid in reversed(self._grids):
            if len(grid) == len(size) and 0 <= keys - math.prod(grid) <= PREFIX:
                return grid
        for patches in range(keys - self.registers, max(keys - self.registers - 3, 0), -1):
            scale = (patches / math.prod(size)) ** (1 / len(size))
            grid = tuple(round(side * scale) for side in size)
            if math.prod(grid) == patches:
                return grid
        raise ValueError(f"the {keys} tokens of {self.name} are no grid of patches of inputs of size {tuple(size)}")


@contextmanager
def watch_attention(model: nn.Module, block: str | None = None) -> Iterator[Watched]:
    """Watch a forward pass: `with watch_attention(model) as seen: output = model(x)`, then `seen.maps(...)`.

    block: the name of a module, whose last attention is taken; None takes the last one of all. ValueError for a name
    that is none. The pass itself, its gradients and its random numbers stay as they are.
    """
    seen = Watched(model, always=block is None)
    handles = []
    if block is not None:
        module = dict(model.named_modules())[one_of("block", block, dict(model.named_modules()))]

        def turn(on: bool) -> Callable[..., None]:
            return lambda *_: setattr(seen, "open", on)

        handles = [module.register_forward_pre_hook(turn(True)), module.register_forward_hook(turn(False))]
    try:
        with seen:
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def attention(model: nn.Module, x: Tensor, block: str | None = None, *, patches: bool = False) -> Tensor:
    """(R, 1, *grid) float32 attention to the patches of x (R, C, *spatial), by a pass in evaluation mode.

    block: see `watch_attention`. patches: see `Watched.maps`.
    """
    with evaluating(model), torch.no_grad(), watch_attention(model, block) as seen:
        model(x)
    return seen.maps(len(x), x.shape[2:], patches=patches)


class Attention(Saliency):
    """See `attention`.

    teacher: a vision transformer with its weights, used in evaluation mode on the inputs' device; None: the network in
    training. block: see `watch_attention`. patches: see `Watched.maps`.
    """

    def __init__(self, teacher: nn.Module | None = None, block: str | None = None, *, patches: bool = False) -> None:
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise ValueError(f"teacher must be a torch.nn.Module or None, got {teacher!r}")
        self.teacher, self.block, self.patches = teacher, block, patches
        self.needs = ("network",) if teacher is None else ()

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        teacher = self.teacher
        model = context.trained("attention")[0].model if teacher is None else teacher.to(x.device)
        return attention(model, x, self.block, patches=self.patches)
