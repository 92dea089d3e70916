import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import Tiles, mosaic
from omnimix.samples.operation.mosaic import Corners


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def middle_of_the_canvas(images, corner, h, w):
    """Four images (C, H, W) around the point (h, w) of the middle of a canvas of twice the side.

    corner: which end of rows and of columns the first of them takes.
    """
    channels, height, width = images[0].shape
    canvas = torch.full((channels, 2 * height, 2 * width), 114.0)
    y, x = height // 2 + h, width // 2 + w
    for k, image in enumerate(images):
        down, right = (k // 2) ^ corner[0], (k % 2) ^ corner[1]
        top, left = (y if down else y - height), (x if right else x - width)
        for r in range(height):
            for c in range(width):
                if 0 <= top + r < 2 * height and 0 <= left + c < 2 * width:
                    canvas[:, top + r, left + c] = image[:, r, c]
    return canvas[:, height // 2 : height // 2 + height, width // 2 : width // 2 + width]


@pytest.mark.parametrize("per_sample", [False, True])
def test_it_is_the_middle_of_the_canvas_of_twice_the_side(per_sample):
    x, y = torch.rand(5, 2, 8, 12, generator=draw()), torch.arange(5)
    corners = set()
    for seed in range(8):
        mixed = mosaic(x, y, 0.2, per_sample=per_sample, generator=draw(seed))
        mask, recipe = mixed.recipe.mask.expand(5, -1, -1, -1)[:, 0], mixed.recipe
        for i in range(5):
            rows, columns = mask[i].amax(dim=1), mask[i].amax(dim=0)
            corner = int(rows[0] == 0), int(columns[0] == 0)
            h = int(rows.sum()) if corner[0] == 0 else 8 - int(rows.sum())
            w = int(columns.sum()) if corner[1] == 0 else 12 - int(columns.sum())
            expected = middle_of_the_canvas([x[p] for p in recipe.partner[i].tolist()], corner, h, w)
            assert torch.equal(mixed.x[i], expected)
            corners.add(corner)
        torch.testing.assert_close(recipe.lam, mask.flatten(1).mean(dim=1))
        torch.testing.assert_close(recipe.share.sum(dim=1), torch.ones(5))
    assert len(corners) == 4


def test_shares_by_hand():
    x, partner = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 10, 20), torch.arange(4).unsqueeze(0)
    share = torch.tensor([[0.3 * 0.75, 0.3 * 0.25, 0.7 * 0.75, 0.7 * 0.25]])
    mixed, applied = Tiles()(x, om.Recipe(partner, share), Context(draw()))
    torch.testing.assert_close(applied.share, share)
    counts = torch.bincount(mixed.long().flatten(), minlength=4) / 200
    torch.testing.assert_close(counts, share[0])
    logits, y = torch.randn(1, 4, generator=draw()), torch.arange(4)
    losses = -(logits.log_softmax(dim=1)[0] * share[0]).sum()
    torch.testing.assert_close(om.Mixed(mixed, y, applied).loss(F.cross_entropy, logits), losses)


def test_corners_are_products_of_uniforms():
    share = Corners(0.25, per_sample=True)(4000, 4, draw())
    h, w = share[:, 0] + share[:, 1], share[:, 0] + share[:, 2]
    torch.testing.assert_close(share[:, 3], (1 - h) * (1 - w))
    for side in (h, w):
        assert side.min() >= 0.25 - 1e-6
        assert side.max() <= 0.75 + 1e-6
        assert abs(float(side.mean()) - 0.5) < 0.01
    assert len(Corners()(6, 4, draw()).unique(dim=0)) == 1


def test_whole_share_gives_the_sample():
    x = torch.rand(3, 1, 5, 7, generator=draw())
    partner = torch.stack([torch.arange(3).roll(k) for k in range(4)], dim=1)
    for seed in range(6):
        recipe = om.Recipe(partner, torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4))
        mixed, applied = Tiles()(x, recipe, Context(draw(seed)))
        assert torch.equal(mixed, x)
        assert applied.lam.tolist() == [1, 1, 1]


def test_memory_format_and_refusals():
    x = torch.rand(4, 3, 6, 6, generator=draw()).to(memory_format=torch.channels_last)
    found = mosaic(x, torch.arange(4), generator=draw(1)).x
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert mosaic(x.contiguous(), torch.arange(4), generator=draw(1)).x.is_contiguous()
    with pytest.raises(ValueError, match="k = 2"):
        Tiles()(x, om.Recipe(torch.zeros(4, 2).long(), torch.full((4, 2), 0.5)), Context(draw()))
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        mosaic(torch.zeros(4, 3), torch.arange(4))
    with pytest.raises(ValueError, match=r"margin must be a number in \[0, 0.5\], got 0.7"):
        mosaic(x, torch.arange(4), 0.7)


@pytest.mark.parametrize("size", [(11,), (4, 6, 5)])
def test_signals_and_volumes_meet_at_a_point(size):
    """Along every axis each of the two halves begins where they meet, or ends there."""
    count, axes = 2 ** len(size), len(size)
    place = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).float()
    x = torch.cat((torch.arange(8.0).view(8, 1, *[1] * axes).expand(8, 1, *size), place.expand(8, -1, *size)), dim=1)
    for seed in range(6):
        mixed = mosaic(x, torch.arange(8), per_sample=True, generator=draw(seed))
        assert mixed.recipe.share.shape == (8, count)
        seen = torch.stack([(mixed.x[:, :1] == row).flatten(1).float().mean(dim=1) for row in range(8)], dim=1)
        torch.testing.assert_close(seen, mixed.soft_target(8))
        for axis, side in enumerate(size):
            moved = (mixed.x[:, 1 + axis] - place[axis]).remainder(side).flatten(1)
            assert (moved == moved[:, :1]).all()  # one meeting point a sample
    method = om.Mosaic(axes=axes).setup(torch.nn.Linear(1, 2), om.Classification(8), generator=draw())
    batch = om.Batch(x, torch.arange(8))
    assert method.mix(batch, method.recipe(batch)).x.shape == x.shape
    with pytest.raises(ValueError, match=f"joins {count} samples, got k = 3"):
        Tiles()(x, om.Recipe(torch.zeros(8, 3).long(), torch.full((8, 3), 1 / 3)), Context(draw()))
