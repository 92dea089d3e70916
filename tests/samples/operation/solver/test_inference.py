import torch

from omnimix.samples.operation.solver import block_transport, convex_labels, distances
from omnimix.samples.operation.solver.inference import in_inference_mode
from omnimix.samples.operation.solver.joint import joint_masks


def draw():
    return torch.Generator().manual_seed(0)


def solved():
    cost, start = -torch.rand(2, 3, 2, 2, generator=draw()), torch.zeros(2, 3, 4, dtype=torch.long)
    yield joint_masks(cost, torch.eye(3).expand(2, 3, 3), start=start)
    labels = convex_labels(torch.rand(2, 3, 2, 2, generator=draw()), [torch.ones(2, 1, 2), torch.ones(2, 2, 1)])
    yield labels
    yield block_transport(labels, torch.rand(2, 2, 2, generator=draw()))


def test_results_may_be_part_of_what_is_trained():
    for result in solved():
        weight = torch.ones((), requires_grad=True)
        (weight * result).sum().backward()  # an inference tensor could not be kept for this
        assert float(weight.grad) == float(result.sum())


def test_what_is_cached_may_be_as_well():
    distances.cache_clear()
    list(solved())
    weight = torch.ones((), requires_grad=True)
    (weight * distances((2, 2), torch.device("cpu"))).sum().backward()
    assert float(weight.grad) == 16


def test_solvers_see_no_gradient():
    x = torch.ones(2, requires_grad=True)
    assert not in_inference_mode(lambda t: t * 2)(x).requires_grad
