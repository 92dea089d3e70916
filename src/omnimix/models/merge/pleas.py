"""PLeaS: fuse the units of two networks that match, keep the others side by side, and solve every layer anew.

Of the matched pairs of a group the best (1 - r) n become one unit each; the rest keep both, so that the group has
n (1 + r) units. Then, layer by layer, W = argmin sum |W z - t|^2 with z the joined inputs and t the joined outputs of
the two networks, and weights between units of different networks at 0. Nasery et al., "PLeaS: merging models with
permutations and least squares", CVPR 2025, arXiv:2407.02447. The paper solves by Adam; here the normal equations are
solved exactly, with a ridge toward the fused weights. Cost: two forward passes of each network over some inputs, which
need no labels and need not be of the task ("PLeaS-free").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import in_unit, non_negative, one_of
from .matching.activation_matching import moments, similarity
from .matching.permutation import PermutationSpec
from .matching.recalibrate import recalibrate
from .matching.weight_matching import assignment, similarities, weight_matching
from .matching.zipping import Here, new_places, rebuilt, zip_states
from .patches import outputs, patches, solvable, watching

MATCHINGS = ("weights", "activations")


def pleas(
    a: nn.Module,
    b: nn.Module,
    spec: PermutationSpec,
    inputs: Sequence[Any],
    *,
    matching: str = "weights",
    ratios: float | Mapping[str, float] = 0.0,
    solve: bool = True,
    ridge: float = 1e-6,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The merged network; its batch statistics are taken anew.

    spec: see `permutation_spec`. inputs: batches x that both take, gone through up to four times. matching: by
    "weights" or "activations". ratios: share r of units kept apart, for all groups or by group (0 where one is not
    named); 0 gives a network of the same size, 1 one of two independent halves; see `ratios_for`. solve: whether to
    solve the layers; else the weights are the fused ones (with r = 0, those of Git Re-Basin). ridge: weight of the pull
    to them, relative to the mean square of a layer's inputs. generator: of the order of weight matching. ValueError for
    ratios outside [0, 1] and for groups that must keep their size.
    """
    one_of("matching", matching, MATCHINGS)
    states = [a.state_dict(), b.state_dict()]
    pairs: dict[str, Tensor] = {}
    alike: dict[str, Tensor] = {}
    if matching == "weights":
        pairs = weight_matching(states[0], states[1], spec, generator=generator)
        moved = spec.apply(states[1], pairs)
        alike = {name: similarities(states[0], moved, spec, name).diagonal() for name in spec}
    else:
        for name, one in moments([a, b], spec, inputs).items():
            found = similarity(one, "distance")
            pairs[name] = assignment(found)
            alike[name] = found[torch.arange(len(found)), pairs[name]]
    given = {name: ratios if isinstance(ratios, (int, float)) else ratios.get(name, 0.0) for name in spec}
    clusters = {name: partial(pairs[name], alike[name], ratio(spec, name, given[name])) for name in spec}
    merged = rebuilt(a, zip_states(states, spec, clusters))
    if solve:
        _solve(merged, [a, b], spec, clusters, inputs, non_negative("ridge", ridge))
    return recalibrate(merged, inputs)


def ratio(spec: PermutationSpec, name: str, value: float) -> float:
    """`value` in [0, 1]; ValueError if the group cannot grow. A number for all groups spares those."""
    in_unit(f"the ratio of group {name!r}", value)
    return 0.0 if spec[name].rigid else value


def partial(pairs: Tensor, alike: Tensor, r: float) -> Tensor:
    """(2, n) clusters: fused units first, in the order of similarity, then what only the first has, then the second.

    pairs: (n,) the second's unit for each of the first's. alike: (n,) how well they match. r: share kept apart, to the
    nearest unit.
    """
    n = len(pairs)
    apart = round(r * n)
    order = alike.argsort(descending=True, stable=True)
    first, second = torch.empty(n, dtype=torch.long), torch.empty(n, dtype=torch.long)
    first[order] = torch.arange(n)
    second[pairs[order]] = torch.cat([torch.arange(n - apart), torch.arange(n, n + apart)])
    return torch.stack([first, second])


def _solve(
    merged: nn.Module,
    models: Sequence[nn.Module],
    spec: PermutationSpec,
    clusters: Mapping[str, Tensor],
    inputs: Sequence[Any],
    ridge: float,
) -> None:
    """Put the least-squares weights and biases into all linear and convolution layers that run, in place."""
    layers = {name: module for name, module in models[0].named_modules() if solvable(module)}
    held: dict[tuple[str, int], Here] = {}
    for name, group in spec.items():
        for axis in group.axes:
            held.setdefault((axis.name, axis.dim), []).append((axis, clusters[name]))
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    seen: list[dict[str, tuple[Tensor, Tensor]]] = [{}, {}]

    def note(i: int) -> Any:
        return lambda name, layer, given, out: seen[i].__setitem__(name, (given.detach(), out.detach()))

    for x in inputs:
        for i, model in enumerate(models):
            with watching(model, {name: model.get_submodule(name) for name in layers}, note(i)):
                model(x)
        for name in seen[0]:
            layer = models[0].get_submodule(name)
            at = 1 if isinstance(layer, nn.Conv2d) else -1
            z = _joined([one[name][0] for one in seen], at, held.get((f"{name}.weight", 1), []))
            t = _joined([one[name][1] for one in seen], at, held.get((f"{name}.weight", 0), []))
            rows, wanted = patches(layer, z), outputs(layer, t)
            if layer.bias is not None:
                rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            gram, cross = rows.T @ rows, rows.T @ wanted
            before = sums.get(name)
            sums[name] = (gram, cross) if before is None else (before[0] + gram, before[1] + cross)
    with torch.no_grad():
        for name, (gram, cross) in sums.items():
            out, into = (held.get((f"{name}.weight", dim), []) for dim in (0, 1))
            _put(merged.get_submodule(name), gram, cross, out, into, ridge)


def _joined(values: Sequence[Tensor], at: int, here: Here) -> Tensor:
    """Activations of both networks as the merged one should have them: the mean over each cluster along dim `at`."""
    if not here:
        return (values[0] + values[1]) / 2
    parts = []
    for i, value in enumerate(values):
        target, share, size = new_places(value.shape[at], here, i)
        front = value.movedim(at, 0) * share.to(value).reshape(-1, *[1] * (value.dim() - 1))
        moved = front.new_zeros(size, *front.shape[1:]).index_add_(0, target.to(value.device), front)
        parts.append(moved.movedim(0, at))
    return parts[0] + parts[1]


def _owners(length: int, here: Here) -> Tensor:
    """(length, 2): which networks have a part in each entry of a merged axis."""
    owners = torch.ones(length, 2, dtype=torch.bool)
    if here:
        owners[:] = False
        before = sum(axis.places.numel() for axis, _ in here)
        old = length - sum((int(c.max()) + 1) * axis.places.shape[1] for axis, c in here) + before
        for i in range(2):
            owners[new_places(old, here, i)[0], i] = True
    return owners


def _put(layer: Any, gram: Tensor, cross: Tensor, out: Here, into: Here, ridge: float) -> None:
    """Solve a layer by the blocks of its outputs: fused ones read all, others the fused and their own network's."""
    weight = layer.weight.double().flatten(1)
    spread = weight.shape[1] // layer.weight.shape[1]
    columns = _owners(layer.weight.shape[1], into).repeat_interleave(spread, 0)
    rows = _owners(layer.weight.shape[0], out)
    start = weight
    if layer.bias is not None:
        columns = torch.cat([columns, torch.ones(1, 2, dtype=torch.bool)])
        start = torch.cat([weight, layer.bias.double()[:, None]], 1)
    solved = torch.zeros_like(start)
    pull = ridge * float(gram.diagonal().mean())
    for kind in torch.tensor(sorted(set(map(tuple, rows.tolist())))):
        these = (rows == kind).all(1).nonzero()[:, 0].to(weight.device)
        read = (columns & kind).any(1).nonzero()[:, 0].to(weight.device)
        own = gram[read[:, None], read]
        own.diagonal().add_(pull)
        wanted = cross[read[:, None], these] + pull * start[these[:, None], read].T
        try:
            solved[these[:, None], read] = torch.linalg.solve(own, wanted).T
        except RuntimeError:
            raise ValueError(
                "a layer has no unique solution on these inputs; give a ridge > 0, or more inputs"
            ) from None
    if layer.bias is not None:
        layer.bias.copy_(solved[:, -1])
        solved = solved[:, :-1]
    layer.weight.copy_(solved.reshape(layer.weight.shape))


class Cost:
    """What a network costs, as multiples of one network, when shares of its groups are kept apart."""

    def __init__(self, model: nn.Module, spec: PermutationSpec, x: Any) -> None:
        """x: one batch; the cost of a layer is its multiplications."""
        sizes: dict[str, int] = {}
        layers = {name: module for name, module in model.named_modules() if solvable(module)}
        with watching(model, layers, lambda name, layer, given, out: sizes.__setitem__(name, len(outputs(layer, out)))):
            model(x)
        where = {(axis.name, axis.dim): name for name, group in spec.items() for axis in group.axes}
        self.names = [*spec]
        self.terms = [
            (
                sizes[name] * layers[name].weight.numel(),
                where.get((f"{name}.weight", 0)),
                where.get((f"{name}.weight", 1)),
            )
            for name in sizes
        ]

    def __call__(self, ratios: Mapping[str, float]) -> float:
        """sum c ((1 + r_out) (1 + r_in) - 2 r_out r_in) / sum c: blocks between two networks are 0 and cost nothing."""
        total = 0.0
        for size, out, into in self.terms:
            r, s = ratios.get(out or "", 0.0), ratios.get(into or "", 0.0)
            total += size * ((1 + r) * (1 + s) - 2 * r * s)
        return total / float(sum(size for size, *_ in self.terms))


def ratios_for(
    model: nn.Module, spec: PermutationSpec, x: Any, budget: float, *, gains: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The shares to keep apart for a budget: max sum_k gains_k r_k with cost at most `budget` times one network.

    x: one batch that `model(x)` takes. budget in [1, 2]. gains: what keeping a group apart is worth, default 1 for all.
    The problem is not convex; it is climbed from the best equal share. ValueError for a budget out of range.
    """
    from scipy.optimize import minimize

    if not 1 <= budget <= 2:
        raise ValueError(f"budget must be a number in [1, 2], got {budget!r}")
    cost = Cost(model, spec, x)
    free = [name for name in cost.names if not spec[name].rigid]
    worth = [1.0 if gains is None else gains.get(name, 0.0) for name in free]

    def at(values: Sequence[float]) -> dict[str, float]:
        return dict(zip(free, map(float, values), strict=True))

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at([middle] * len(free))) <= budget else (low, middle)
    start = [low] * len(free)
    found = minimize(
        lambda values: -sum(w * v for w, v in zip(worth, values, strict=True)),
        start,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(free),
        constraints={"type": "ineq", "fun": lambda values: budget - cost(at(values))},
    )
    best = at(found.x.clip(0, 1))
    return best if found.success and cost(best) <= budget * (1 + 1e-6) else at(start)
