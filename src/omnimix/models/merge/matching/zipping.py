"""Join networks whose units are put into clusters: units of one cluster become one unit, in all tensors that hold it.

A tensor of the result is M blockdiag(W_1, W_2, ...) U: what makes a unit is the mean over its cluster (M), what reads
it is the sum (U), as in Stoica et al., "ZipIt!", ICLR 2024, arXiv:2305.03053. A permutation is the case of pairs;
clusters of a single unit keep it as it is, next to the others, and the network becomes wider.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..source import working
from .permutation import Axis, Permutations, PermutationSpec

Here = list[tuple[Axis, Tensor]]
"""The groups along an axis, with their clusters."""
Clusters = Mapping[str, Tensor]
"""For each group (models, n): the new unit, 0 to the largest, that each unit of each model becomes part of."""


def paired(spec: PermutationSpec, permutations: Permutations) -> dict[str, Tensor]:
    """The clusters of two networks that are averaged after permuting the second."""
    found = {}
    for name, group in spec.items():
        first = torch.arange(group.size)
        second = torch.empty_like(first)
        second[permutations[name].cpu()] = first
        found[name] = torch.stack([first, second])
    return found


def zip_states(states: Sequence[Mapping[str, Tensor]], spec: PermutationSpec, clusters: Clusters) -> dict[str, Tensor]:
    """The state dict of the joined network, in the dtypes of the first.

    Axes in no group are shared: their entries are averaged. Integer buffers are the first's.
    """
    held: dict[str, Here] = {}
    for group_name, group in spec.items():
        for axis in group.axes:
            held.setdefault(axis.name, []).append((axis, clusters[group_name]))
    merged = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            merged[name] = first.clone()
            continue
        work = working(first.dtype)
        total: Any = 0.0
        for i, state in enumerate(states):
            value = state[name].to(work)
            averaged = False
            for dim in {axis.dim for axis, _ in held.get(name, ())}:
                here = [(axis, cluster) for axis, cluster in held[name] if axis.dim == dim]
                value = _moved(value, dim, here, i)
                averaged |= not here[0][0].incoming
            value = value if averaged else value / len(states)
            total = total + value
        merged[name] = total.to(first.dtype)
    return merged


def _moved(value: Tensor, dim: int, here: Here, model: int) -> Tensor:
    """Entries along dim sent to their new places; divided by the size of the cluster where they are made."""
    target, share, size = new_places(value.shape[dim], here, model)
    front = value.movedim(dim, 0)
    if not here[0][0].incoming:
        front = front * share.to(value).reshape(-1, *[1] * (front.dim() - 1))
    moved = front.new_zeros(size, *front.shape[1:])
    return moved.index_add_(0, target.to(value.device), front).movedim(0, dim)


def new_places(length: int, here: Here, model: int) -> tuple[Tensor, Tensor, int]:
    """For each entry of an axis its new place, 1 / (units in its cluster), and the new length.

    Groups along one axis keep their order; entries in no group stay, shared by all models.
    """
    target, share = torch.full((length,), -1), torch.ones(length)
    start, at = 0, 0
    for axis, cluster in sorted(here, key=lambda pair: int(pair[0].places.min())):
        low, high = int(axis.places.min()), int(axis.places.max()) + 1
        free = low - at
        if free:
            target[at:low], share[at:low] = torch.arange(start, start + free), 1 / len(cluster)
            start += free
        new, m = int(cluster.max()) + 1, axis.places.shape[1]
        # the layout of a unit's entries: side by side, or far apart as in fused projections
        offsets = _layout(axis.places, new)
        target[axis.places] = start + offsets[cluster[model]]
        share[axis.places] = 1.0 / torch.bincount(cluster.reshape(-1), minlength=new)[cluster[model]][:, None].float()
        start, at = start + new * m, high
    free = length - at
    if free:
        target[at:], share[at:] = torch.arange(start, start + free), 1 / len(here[0][1])
    return target, share, start + free


def _layout(places: Tensor, new: int) -> Tensor:
    """(new, m): the places of each unit if there were `new` of them, from the first place on."""
    n, m = places.shape
    if new == n:
        return places - places.min()
    step = int(places[1, 0] - places[0, 0]) if n > 1 else m
    inner = places[0] - places.min()
    # as in fused projections, entries may lie in several runs over all units, each of which grows
    return torch.arange(new)[:, None] * step + inner // (step * n) * (step * new) + inner % (step * n)


SIZES = {
    nn.Linear: (("out_features", "weight", 0), ("in_features", "weight", 1)),
    nn.Conv1d: (("out_channels", "weight", 0), ("in_channels", "weight", 1)),
    nn.Conv2d: (("out_channels", "weight", 0), ("in_channels", "weight", 1)),
    nn.Conv3d: (("out_channels", "weight", 0), ("in_channels", "weight", 1)),
    nn.ConvTranspose2d: (("in_channels", "weight", 0), ("out_channels", "weight", 1)),
    nn.BatchNorm1d: (("num_features", "weight", 0),),
    nn.BatchNorm2d: (("num_features", "weight", 0),),
    nn.Embedding: (("embedding_dim", "weight", 1),),
    nn.GroupNorm: (("num_channels", "weight", 0),),
    nn.PReLU: (("num_parameters", "weight", 0),),
}


def rebuilt(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network that holds a state dict of other widths; its layers say their new sizes."""
    new = copy.deepcopy(model)
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        module = new.get_submodule(owner)
        old = getattr(module, leaf)
        if old.shape != value.shape:
            fresh = value.clone().to(old)
            if isinstance(old, nn.Parameter):
                setattr(module, leaf, nn.Parameter(fresh, requires_grad=old.requires_grad))
            else:
                module.register_buffer(leaf, fresh)
    new.load_state_dict(dict(state))
    for module in new.modules():
        for kind, sizes in SIZES.items():
            if isinstance(module, kind):
                _resize(module, sizes)
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
    return new


def _resize(module: Any, sizes: tuple[tuple[str, str, int], ...]) -> None:
    depthwise = getattr(module, "groups", 1) > 1 and module.groups == module.in_channels
    each = module.out_channels // module.groups if depthwise else 1
    for attribute, tensor, dim in sizes:
        value = getattr(module, tensor, None)
        if value is not None and value.numel() > 1:
            setattr(module, attribute, value.shape[dim])
    if depthwise:
        module.in_channels = module.groups = module.weight.shape[0] // each
