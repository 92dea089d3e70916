import pytest
import torch

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import SalientBox, saliencymix
from omnimix.samples.operation.cutmix import cut_box
from omnimix.samples.operation.saliencymix import peaks
from omnimix.samples.saliency import InputGradient, SpectralResidual, input_gradient

SHAPES = [(40,), (24, 40), (6, 8, 10)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_peaks_in_one_to_three_dimensions():
    for size in SHAPES:
        maps = torch.rand(6, 1, *size, generator=draw())
        for m, place in zip(maps, peaks(maps).tolist(), strict=True):
            assert m[(0, *place)] == m.max()
    assert peaks(torch.zeros(1, 1, 3, 4)).tolist() == [[0, 0]]  # ties: the first


@pytest.mark.parametrize("size", SHAPES)
def test_boxes_are_those_of_cutmix_about_the_partners_peak(size):
    x, y = torch.randn(6, 3, *size, generator=draw()), torch.arange(6)
    maps, lam = torch.rand(6, 1, *size, generator=draw(1)), torch.rand(6, generator=draw(2))
    mixed = saliencymix(x, y, saliency=maps, lam=lam, generator=draw(3))
    partner = mixed.recipe.partner[:, 1]
    expected = x.clone()
    for i, p in enumerate(partner.tolist()):
        box = (slice(None), *cut_box(float(lam[i]), size, peaks(maps[p : p + 1])[0].tolist()))
        expected[i][box] = x[p][box]
    assert torch.equal(mixed.x, expected)
    torch.testing.assert_close(mixed.recipe.lam, mixed.recipe.mask.flatten(1).mean(dim=1))
    assert torch.equal(mixed.recipe.label_share, mixed.recipe.share)


def test_the_reference_cuts_one_box_from_the_first_partner():
    x, y, maps = torch.randn(5, 1, 12, 16, generator=draw()), torch.arange(5), torch.zeros(5, 1, 12, 16)
    maps[torch.arange(5), 0, [2, 9, 5, 3, 7], [12, 3, 8, 1, 14]] = 1
    partner = torch.tensor([3, 0, 4, 1, 2])
    mixed = saliencymix(x, y, saliency=maps, reference=True, lam=0.75, partner=partner, generator=draw())
    box = cut_box(0.75, (12, 16), (3, 1))
    expected = x.clone()
    expected[(slice(None), slice(None), *box)] = x[partner][(slice(None), slice(None), *box)]
    assert mixed.recipe.mask.shape[0] == 1
    assert torch.equal(mixed.x, expected)


def test_coarse_maps_are_brought_to_the_size_of_the_image():
    maps = torch.zeros(2, 1, 4, 4)
    maps[:, 0, 3, 0] = 1
    mask = saliencymix(torch.zeros(2, 1, 16, 16), torch.arange(2), saliency=maps, lam=0.9, generator=draw()).recipe.mask
    assert (mask[:, :, 14, 1] == 0).all()
    assert (mask[:, :, :8] == 1).all()


def test_the_object_is_pasted():
    x = torch.zeros(2, 3, 24, 24)
    x[:, :, 15:20, 4:9] = 3.0
    for saliency in (None, SpectralResidual()):
        mixed = saliencymix(x, torch.arange(2), saliency=saliency, lam=0.7, generator=draw())
        assert (mixed.recipe.mask[:, :, 16:19, 5:8] == 0).float().mean() > 0.5


def test_the_method_looks_through_its_network():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    x, y = torch.randn(6, 3, 8, 8, generator=draw()), torch.arange(6) % 3
    method = om.create("saliencymix", saliency=InputGradient()).setup(model, om.Classification(3), generator=draw(1))
    mixed = method.mix(om.Batch(x, y), method.recipe(om.Batch(x, y)))
    again = saliencymix(x, y, saliency=input_gradient(model, x, y), generator=draw(1))
    assert torch.equal(mixed.x, again.x)
    assert SalientBox(InputGradient()).needs == ("network",)
    assert SalientBox().needs == ()


def test_partners_may_be_guests():
    x = torch.randn(6, 1, 4, 4, generator=draw())
    recipe = om.Recipe(torch.tensor([[0, 3], [1, 4], [2, 5]]), torch.full((3, 2), 0.5))
    mixed, applied = SalientBox()(x, recipe, Context(draw()))
    assert torch.equal(mixed, applied.mask * x[:3] + (1 - applied.mask) * x[3:])
