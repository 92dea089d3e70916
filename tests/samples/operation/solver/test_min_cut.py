import itertools

import pytest
import torch

from omnimix.samples.operation.solver import convex_labels, min_cut


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(size, n=20, labels=None, coupling=1.0, seed=0):
    """Random costs (n, [labels,] *size), convex in the label, and weights for each axis."""
    g = draw(seed)
    shape = (n, *size) if labels is None else (n, labels, *size)
    cost = torch.randn(shape, generator=g)
    if labels is not None:  # a line and a convex part
        level = torch.arange(labels).view(1, -1, *[1] * len(size)) / (labels - 1)
        bend = torch.rand((n, 1, *size), generator=g)
        cost = cost[:, :1] * level + bend * (level - torch.rand((n, 1, *size), generator=g)) ** 2
    weights = []
    for axis in range(len(size)):
        fewer = [side - (a == axis) for a, side in enumerate(size)]
        weights.append(coupling * torch.rand((n, *fewer), generator=g))
    return cost, weights


def energy(unary, weights, label):
    """(n,) of labels (n, *size)."""
    z = label.double() / max(unary.shape[1] - 1, 1)
    total = unary.double().gather(1, label.unsqueeze(1)).flatten(1).sum(dim=1)
    for axis, weight in enumerate(weights, start=1):
        total = total + (weight * z.diff(dim=axis) ** 2).flatten(1).sum(dim=1)
    return total


def best_energy(unary, weights):
    n, labels, *size = unary.shape
    cells = torch.Size(size).numel()
    every = torch.tensor(list(itertools.product(range(labels), repeat=cells))).view(-1, *size)
    lowest = []
    for i in range(n):
        some = unary[i : i + 1].expand(len(every), *unary.shape[1:])
        lowest.append(energy(some, [w[i : i + 1] for w in weights], every).min())
    return torch.stack(lowest)


@pytest.mark.parametrize("coupling", [0.0, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("size", [(3, 3), (2, 4), (9,), (1, 5), (2, 2, 2)])
def test_a_cut_costs_as_little_as_any(size, coupling):
    cost, weights = problem(size, coupling=coupling)
    unary = torch.stack((torch.zeros_like(cost), cost), dim=1)
    found = energy(unary, weights, min_cut(cost, weights).long())
    torch.testing.assert_close(found, best_energy(unary, weights), atol=1e-5, rtol=0)


@pytest.mark.parametrize("coupling", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("size", "labels"), [((2, 3), 3), ((2, 2), 4), ((5,), 5), ((3, 3), 2)])
def test_no_labelling_is_cheaper(size, labels, coupling):
    unary, weights = problem(size, 12, labels, coupling)
    found = energy(unary, weights, convex_labels(unary, weights))
    torch.testing.assert_close(found, best_energy(unary, weights), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (5, 11), (4, 4, 4)])
@pytest.mark.parametrize("coupling", [0.3, 1.0, 5.0])
def test_the_cut_equals_the_maximum_flow(size, coupling):
    """An edge for each side of a cell, a source to cells that gain by being in, those that lose to a sink."""
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    sparse = pytest.importorskip("scipy.sparse")
    scale = 10_000
    cost, weights = problem(size, 3, coupling=coupling)
    cost = (cost * scale).round()
    weights = [(w * scale).round() for w in weights]
    inside = min_cut(cost, weights)
    cells = torch.arange(torch.Size(size).numel()).view(size)
    for i in range(len(cost)):
        source, sink = cells.numel(), cells.numel() + 1
        flat = cost[i].flatten()
        start, end, capacity = [], [], []
        for axis, weight in enumerate(weights):
            one = cells.narrow(axis, 0, size[axis] - 1).flatten().tolist()
            two = cells.narrow(axis, 1, size[axis] - 1).flatten().tolist()
            start += one + two
            end += two + one
            capacity += 2 * weight[i].flatten().tolist()
        for cell, value in enumerate(flat.tolist()):
            start.append(source if value < 0 else cell)
            end.append(cell if value < 0 else sink)
            capacity.append(abs(value))
        graph = sparse.csr_matrix(
            (torch.tensor(capacity).int().numpy(), (start, end)), shape=(sink + 1, sink + 1), dtype="int32"
        )
        flow = csgraph.maximum_flow(graph, source, sink).flow_value
        unary = torch.stack((torch.zeros_like(cost), cost), dim=1)
        found = energy(unary[i : i + 1], [w[i : i + 1] for w in weights], inside[i : i + 1].long())
        assert float(found) == pytest.approx(flow + float(flat.clamp(max=0).sum()), abs=0.5)


def test_without_edges_every_cell_decides_for_itself():
    cost = torch.randn(5, 6, 7, generator=draw())
    none = [torch.zeros(5, 5, 7), torch.zeros(5, 6, 6)]
    assert torch.equal(min_cut(cost, none), cost < 0)


def test_one_grid_does_not_change_another():
    cost, weights = problem((6, 6), 8)
    cost[0] *= 1000
    alone = torch.cat([min_cut(cost[i : i + 1], [w[i : i + 1] for w in weights]) for i in range(8)])
    assert torch.equal(min_cut(cost, weights), alone)


def test_the_costs_are_left_as_they_were():
    unary, weights = problem((4, 4), 3, 3)
    before = unary.clone(), [w.clone() for w in weights]
    convex_labels(unary, weights)
    assert torch.equal(unary, before[0])
    assert all(map(torch.equal, weights, before[1]))
