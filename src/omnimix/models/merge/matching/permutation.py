"""Which axes of a network's tensors can be reordered together without changing what the network computes.

A group is a set of hidden units; all axes that hold them (outgoing weights, biases, norms, incoming weights) must be
permuted alike. Ainsworth et al., "Git Re-Basin", ICLR 2023, arXiv:2209.04836; found from the graph as in Nasery et al.,
"PLeaS", CVPR 2025, arXiv:2407.02447. See `trace` for networks that torch.fx can trace, `transformer` for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Permutations = Mapping[str, Tensor]
"""For each group (n,): which unit goes to place i."""


class Axis(NamedTuple):
    """Where the units of a group lie in a tensor, or in the output of a module."""

    name: str
    """Of the tensor in the state dict, or of the module."""
    dim: int
    places: Tensor
    """(n, m): the m entries of this axis that belong to each unit."""
    incoming: bool = False
    """Whether the tensor reads the units (the weights of the next layer) and does not make them."""


@dataclass(frozen=True)
class Group:
    """Hidden units that move together."""

    size: int
    axes: tuple[Axis, ...]
    taps: tuple[Axis, ...] = ()
    """Modules whose outputs are these units."""
    rigid: bool = False
    """Whether their number must stay, as in torch's attention modules."""


class PermutationSpec(dict[str, Group]):
    """The groups of a network by name, that of the first tensor that holds the units."""

    fixed: tuple[str, ...] = ()
    """Operations that were not understood, whose units stay where they are."""

    @classmethod
    def of(cls, groups: Mapping[str, Iterable[tuple[str, int]]], state: Mapping[str, Tensor]) -> PermutationSpec:
        """A specification written by hand: group to (tensor name, dim) pairs, in the shapes of `state`.

        A dim of a tensor with at least two dims reads the units if it is dim 1. A longer axis holds each unit as many
        times as it is longer, side by side, as after flattening. ValueError for what is not there or does not fit.
        """
        spec = cls()
        for name, pairs in groups.items():
            listed = [*pairs]
            for tensor, dim in listed:
                if tensor not in state or not 0 <= dim < state[tensor].dim():
                    raise ValueError(f"group {name!r}: there is no dim {dim} of tensor {tensor!r}")
            size = min(state[tensor].shape[dim] for tensor, dim in listed)
            axes = []
            for tensor, dim in listed:
                have = state[tensor].shape[dim]
                if have % size:
                    raise ValueError(f"group {name!r}: dim {dim} of {tensor!r} has {have} entries for {size} units")
                axes.append(Axis(tensor, dim, torch.arange(have).reshape(size, -1), dim == 1))
            spec[name] = Group(size, tuple(axes))
        return spec

    def identity(self) -> dict[str, Tensor]:
        """The permutations that change nothing."""
        return {name: torch.arange(group.size) for name, group in self.items()}

    def apply(self, state: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
        """The state dict with its units reordered; it computes the same. ValueError for what is no permutation."""
        moved = dict(state)
        for name, permutation in permutations.items():
            group = self[name]
            if not torch.equal(permutation.sort().values, torch.arange(group.size, device=permutation.device)):
                raise ValueError(f"the permutation of group {name!r} must hold each of 0..{group.size - 1} once")
            for axis in group.axes:
                moved[axis.name] = reorder(moved[axis.name], axis, permutation)
        return moved


def reorder(value: Tensor, axis: Axis, permutation: Tensor) -> Tensor:
    """A tensor whose place i of `axis` holds unit permutation[i]."""
    order = torch.arange(value.shape[axis.dim])
    order[axis.places] = axis.places[permutation.cpu()]
    return value.index_select(axis.dim, order.to(value.device))


def units(value: Tensor, axis: Axis) -> Tensor:
    """(n, everything else): the entries of each unit."""
    front = value.movedim(axis.dim, 0)[axis.places.to(value.device)]
    return front.flatten(1)


def transformer(
    names: Mapping[str, Sequence[int]], heads: int, *, groups: int | None = None, stream: bool = True
) -> PermutationSpec:
    """The specification of transformers with the tensor names of Llama, Mistral, Qwen, BERT, RoBERTa and GPT-2.

    names: tensor to shape. heads: attention heads; groups: heads of keys and values, default as many. Whole heads move
    (with grouped keys, whole groups), the inner units of the feed-forward layers, and, with `stream`, the residual
    stream. ValueError for a tensor whose role is not known.
    """
    from .roles import role_of

    groups = heads if groups is None else groups
    found: dict[str, list[Axis]] = {}
    sizes: dict[str, int] = {}
    for name, shape in names.items():
        for dim, (role, layer, parts) in enumerate(role_of(name, len(shape))):
            if role is None or (role == "stream" and not stream):
                continue
            key = role if role == "stream" else f"{layer}.{role}"
            size = groups if role == "heads" else shape[dim] // parts
            if shape[dim] % (size * parts):
                raise ValueError(
                    f"tensor {name!r} has {shape[dim]} entries in dim {dim}, which {size} units do not share"
                )
            places = torch.arange(shape[dim]).reshape(parts, size, -1).movedim(1, 0).reshape(size, -1)
            if sizes.setdefault(key, size) != size:
                raise ValueError(
                    f"tensor {name!r}: dim {dim} has {size} units where the others of {key!r} have {sizes[key]}"
                )
            found.setdefault(key, []).append(Axis(name, dim, places, _incoming(name, dim, len(shape))))
    return PermutationSpec(
        {key: Group(sizes[key], tuple(axes), rigid=key.endswith("heads")) for key, axes in found.items()}
    )


def _incoming(name: str, dim: int, dims: int) -> bool:
    """Whether a dim of a transformer's tensor reads units: dim 1 of matrices, 0 of GPT-2's, never of embeddings."""
    if dims < 2 or any(part in name for part in ("embed_tokens", "embeddings", "wte", "wpe")):
        return False
    return dim == (0 if any(part in name for part in (".c_attn.", ".c_proj.", ".c_fc.")) else 1)
