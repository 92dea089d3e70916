import pytest
import torch

from omnimix.samples.operation.solver import block_transport, distances


def slow_transport(mask, saliency, eps, rounds):
    """The rounds of claims spelled out for one image; None where a place stays empty."""
    cells = mask.numel()
    cost = eps * distances(tuple(mask.shape)) - saliency.reshape(-1, 1) * (mask.reshape(1, -1) > 0)
    winners = {}
    for _ in range(rounds):
        claims, winners = {}, {}
        for i in range(cells):
            claims.setdefault(int(cost[i].argmin()), []).append(i)
        for j, blocks in claims.items():
            winner = min(blocks, key=lambda i: (float(cost[i, j]), i))
            winners[j] = winner
            for i in blocks:
                if i != winner:
                    cost[i, j] += 1
    return winners


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (3, 5), (7,), (2, 3, 2)])
@pytest.mark.parametrize("eps", [0.02, 0.2, 0.8])
def test_shown_places_get_the_blocks_of_the_rounds_of_claims(grid, eps):
    g = torch.Generator().manual_seed(0)
    mask = (torch.rand(12, *grid, generator=g) * 3).floor() / 2
    saliency = torch.rand(12, *grid, generator=g) ** 4
    saliency = saliency / saliency.flatten(1).sum(dim=1).view(-1, *[1] * len(grid))
    found = block_transport(mask, saliency, eps).flatten(1)
    for i in range(12):
        expected = slow_transport(mask[i], saliency[i], eps, max(grid))
        shown = mask[i].flatten().nonzero()[:, 0].tolist()
        assert [int(found[i, j]) for j in shown] == [expected[j] for j in shown]


def test_hand_case():
    saliency, mask = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert block_transport(mask, saliency, eps=10.0).flatten().tolist() == [0, 1, 2, 3]
    moved = block_transport(mask, saliency, eps=0.05).flatten().tolist()
    assert (moved[0], moved[3]) == (2, 3)


def test_a_whole_mask_and_an_empty_one_move_nothing():
    saliency = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    still = torch.arange(16).view(4, 4).expand(3, 4, 4)
    assert torch.equal(block_transport(torch.ones(3, 4, 4), saliency), still)
    assert torch.equal(block_transport(torch.zeros(3, 4, 4), saliency), still)


def test_no_block_shows_twice_where_all_is_salient():
    g = torch.Generator().manual_seed(1)
    mask = (torch.rand(20, 8, 8, generator=g) > 0.5).float()
    saliency = torch.rand(20, 8, 8, generator=g) / 32
    moved = block_transport(mask, saliency)
    for plan, shown in zip(moved, mask > 0, strict=True):
        used = plan[shown].tolist()
        assert len(set(used)) == len(used)


def test_distances_are_of_the_longest_side():
    assert distances((2, 3)).tolist()[0] == [0.0, 0.25, 1.0, 0.25, 0.5, 1.25]
    assert distances((1,)).tolist() == [[0.0]]
