import itertools

import pytest
import torch
import torch.nn.functional as F

from omnimix.samples.operation.solver.joint import above, joint_masks, joint_objective, push_apart


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(groups=4, inputs=5, side=3, seed=0):
    """Costs, minus saliency that sums to 1, the compatibility of unrelated inputs, and a start."""
    g = draw(seed)
    saliency = torch.rand(groups, inputs, side, side, generator=g) ** 3
    cost = -saliency / saliency.flatten(2).sum(dim=2).view(groups, inputs, 1, 1)
    start = torch.randint(inputs, (groups, inputs, side * side), generator=g)
    return cost, torch.eye(inputs).expand(groups, inputs, inputs), start


def shown(start, side):
    inputs = start.shape[1]
    return F.one_hot(start, inputs).float().mT.reshape(*start.shape[:2], inputs, side, side)


def test_hand_computed_objective():
    saliency = torch.tensor([[[[0.4, 0.1], [0.3, 0.2]], [[0.1, 0.2], [0.3, 0.4]]]])
    mask = shown(torch.tensor([[[0, 1, 0, 1], [1, 0, 0, 1]]]), 2)
    value = joint_objective(mask, -saliency, torch.eye(2).unsqueeze(0), beta=0.32, gamma=1.0, tau=0.0)
    assert float(value) == pytest.approx(-2.2 + 0.48 + 4, abs=1e-6)  # six edges, twice 2 * 2 + 2 * 2 blocks


def test_without_other_terms_each_block_shows_its_most_salient_input():
    cost, compat, start = problem()
    masks = joint_masks(cost, compat, beta=0.0, gamma=0.0, soft=False, start=start)
    best = F.one_hot(cost.argmin(dim=1), 5).float().movedim(-1, 1)
    assert torch.equal(masks, best.unsqueeze(1).expand_as(masks))


def test_great_smoothness_gives_single_inputs_and_diversity_shares_them_out():
    cost, compat, start = problem()
    masks = joint_masks(cost, compat, beta=1e3, gamma=1.0, tau=0.0, start=start)
    assert bool((masks.flatten(3).amax(dim=3) == masks.flatten(3).amin(dim=3)).all())
    used = masks.flatten(3)[..., 0]
    assert torch.equal(used.sum(dim=1), torch.ones(4, 5))  # each input in one output


@pytest.mark.parametrize("beta", [0.1, 0.32, 1.0])
def test_sweeps_never_raise_the_objective(beta):
    cost, compat, start = problem(60, 2)
    options = {"beta": beta, "gamma": 0.3, "tau": 0.0}
    values = [joint_objective(shown(start, 3), cost, compat, **options)]
    for sweeps in range(1, 5):
        masks = joint_masks(cost, compat, sweeps=sweeps, soft=False, resolve=False, start=start, **options)
        values.append(joint_objective(masks, cost, compat, **options))
    rises = torch.stack(values).diff(dim=0)
    assert float(rises.max()) < 1e-3


def test_near_the_best_of_all_assignments():
    cost, compat, _ = problem(100, 2, 2, seed=7)
    options = {"beta": 0.32, "gamma": 0.3, "tau": 0.0}
    every = torch.tensor(list(itertools.product(range(2), repeat=8))).view(-1, 2, 4)
    masks = shown(every, 2)
    best = torch.stack(
        [joint_objective(masks, c.expand(256, 2, 2, 2), torch.eye(2).expand(256, 2, 2), **options).min() for c in cost]
    )
    found = torch.full((100,), torch.inf)
    for seed in range(12):  # as any descent, one output after the other, it may end in a local minimum
        start = torch.randint(2, (100, 2, 4), generator=draw(seed))
        masks = joint_masks(cost, compat, soft=False, resolve=False, start=start, **options)
        found = torch.minimum(found, joint_objective(masks, cost, compat, **options))
    assert float((found - best).min()) > -1e-5
    assert float(((found - best) / best.abs()).max()) < 0.01


def test_groups_that_have_settled_are_not_pushed_apart():
    """Outputs of equal inputs may be the best there is; the push comes only where the sweeps still change something."""
    cost = -torch.rand(100, 2, 2, 2, generator=draw())
    cost = cost / cost.flatten(2).sum(dim=2).abs()[..., None, None]
    compat, start = torch.eye(2).expand(100, -1, -1), torch.randint(2, (100, 2, 4), generator=draw())
    pushed, free = (joint_masks(cost, compat, start=start, resolve=resolve) for resolve in (True, False))
    worse = joint_objective(pushed, cost, compat) - joint_objective(free, cost, compat)
    assert worse.abs().max() < 0.3
    assert worse.mean() < 0.01


def test_a_single_output_is_nearly_optimal():
    """3 inputs on 3 x 3 blocks, without the diversity term: all 3^9 masks are looked at."""
    cost, compat, start = problem(30, 3)
    every = torch.tensor(list(itertools.product(range(3), repeat=9)))
    masks = F.one_hot(every, 3).float().mT.reshape(-1, 1, 3, 3, 3)
    found = joint_masks(cost, compat, gamma=0.0, soft=False, start=start[:, :1])
    value = joint_objective(found, cost, compat, gamma=0.0)
    ones = torch.eye(3).expand(len(masks), 3, 3)
    best = torch.stack([joint_objective(masks, c.expand(len(masks), 3, 3, 3), ones, gamma=0.0).min() for c in cost])
    excess = (value - best) / best.abs()
    assert float(excess.min()) > -1e-5
    assert float(excess.mean()) < 1e-3
    assert float(excess.max()) < 0.02


def test_masks_are_inputs_or_halves_of_two():
    cost, compat, start = problem(8, 6, 4)
    masks = joint_masks(cost, compat, start=start)
    torch.testing.assert_close(masks.sum(dim=2), torch.ones(8, 6, 4, 4))
    assert set(masks.unique().tolist()) == {0.0, 0.5, 1.0}
    hard = joint_masks(cost, compat, soft=False, start=start)
    assert set(hard.unique().tolist()) == {0.0, 1.0}


def test_diversity_spreads_the_inputs():
    cost, compat, start = problem(6, 8, 4)
    sets = []
    for gamma in (0.0, 1.0):
        used = joint_masks(cost, compat, gamma=gamma, start=start).flatten(3).amax(dim=3) > 0
        sets.append(sum(len({tuple(row) for row in group.tolist()}) for group in used))
    assert sets[0] < 0.6 * sets[1]
    assert sets[1] > 6 * 7


def test_groups_are_solved_apart():
    cost, compat, start = problem(3)
    alone = [joint_masks(cost[i : i + 1], compat[i : i + 1], start=start[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(joint_masks(cost, compat, start=start), torch.cat(alone))


def test_equal_outputs_are_pushed_apart():
    used = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 1, 0]]]).bool()
    assert push_apart(used).tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]]
    assert not push_apart(torch.eye(3).bool().unsqueeze(0)).any()


def test_a_bias_keeps_inputs_out():
    cost, compat, start = problem()
    bias = 1e4 * (1 - torch.eye(5)).expand(4, 5, 5)
    masks = joint_masks(cost, compat, bias, start=start)
    assert torch.equal(masks, torch.eye(5).view(1, 5, 5, 1, 1).expand_as(masks))


def test_the_soft_threshold_counts_the_excess():
    use = torch.tensor([0.5, 1.0, 3.0])
    assert above(use, 1.0, "hard").tolist() == [0, 0, 3]
    assert above(use, 1.0, "soft").tolist() == [0, 0, 2]
    mask = torch.zeros(1, 2, 2, 2, 2)
    mask[0, :, 0] = 1.0  # both outputs show input 0 in all of 4 blocks
    cost, compat = torch.zeros(1, 2, 2, 2), torch.eye(2).unsqueeze(0)
    energies = [float(joint_objective(mask, cost, compat, tau=0.5, threshold=how)) for how in ("hard", "soft")]
    assert energies == [8.0, 4.0]  # 2 outputs, 4 blocks / 4, times 4 or what it is above 2
