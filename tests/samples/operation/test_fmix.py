import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import FMix, FourierMask, fmix
from omnimix.samples.operation.fmix import SizeBiased, binarise, fourier_fields, frequencies, whole_cells

SHAPES = [(40,), (23,), (24, 40), (9, 7), (6, 8, 10), (4, 3, 5)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def changes(mask, dim):
    return (mask.diff(dim=dim) != 0).float().sum(dim=dim).mean().item()


def width_energy(field):
    """Shares of the field's variance at the frequencies 0, 1, ... along the last axis."""
    wave = torch.fft.rfft(field - field.mean(dim=(1, 2), keepdim=True)).abs().square().sum(dim=(0, 1))
    wave[1:-1] *= 2
    return wave / wave.sum()


def test_hand_computed_mask():
    field = torch.tensor([[[0.1, 0.9], [0.4, 0.6]]])
    assert binarise(field, 0.5, generator=draw()).tolist() == [[[0, 1], [0, 1]]]
    assert binarise(field, 0.0, generator=draw()).sum() == 0
    assert binarise(field, 1.0, generator=draw()).sum() == 4
    assert torch.equal(field, torch.tensor([[[0.1, 0.9], [0.4, 0.6]]]))


def test_hand_computed_soft_mask():
    field = torch.arange(10.0).unsqueeze(0)
    mask = binarise(field, 0.5, max_soft=0.2, generator=draw())
    torch.testing.assert_close(mask, torch.tensor([[0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1]]))
    assert binarise(field, 0.0, max_soft=0.4, generator=draw()).sum() == 0
    assert binarise(field, 1.0, max_soft=0.4, generator=draw()).sum() == 10
    narrow = binarise(field, 0.9, max_soft=0.4, generator=draw())  # softness is held down to 1 - lam
    torch.testing.assert_close(narrow, torch.tensor([[0.0, 1, 1, 1, 1, 1, 1, 1, 1, 1]]))


@pytest.mark.parametrize("size", [(13,), (7, 9), (3, 4, 5)])
def test_the_kept_share_is_lam_up_to_one_cell(size):
    lam = torch.rand(1000, generator=draw())
    mask = binarise(fourier_fields(size, 1000, generator=draw(1)), lam, generator=draw(2)).flatten(1)
    cells = mask.shape[1]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    kept, exact = mask.sum(dim=1), lam * cells
    up = kept == exact.ceil()
    assert (up | (kept == exact.floor())).all()
    assert stats.binomtest(int(up.sum()), 1000, 0.5).pvalue > 0.01


def test_whole_numbers_of_cells_are_not_rounded():
    mask = binarise(torch.randn(200, 10, generator=draw()), torch.full((200,), 0.3), generator=draw())
    assert (mask.sum(dim=1) == 3).all()


def test_the_ramp_of_a_soft_mask_is_the_brute_force_one():
    field = torch.randn(1, 30, generator=draw())
    mask = binarise(field, 0.4, max_soft=0.25, round_up=torch.tensor([True]))[0]
    order = sorted(range(30), key=lambda i: -field[0, i].item())
    expected = [1.0] * 5 + np.linspace(1, 0, 14).tolist() + [0.0] * 11  # 12 cells kept, int(.25 * 30) = 7 on each side
    assert mask[order].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", SHAPES)
def test_fields_are_the_inverse_transform_of_the_decayed_noise(size):
    grid = [np.fft.fftfreq(side) for side in size[:-1]] + [np.fft.rfftfreq(size[-1])]
    freq = np.sqrt(sum(axis**2 for axis in np.meshgrid(*grid, indexing="ij")))
    noise = torch.randn(2, *freq.shape, 2, dtype=torch.float64, generator=draw())
    wave = (noise[..., 0] + 1j * noise[..., 1]).numpy() / np.maximum(freq, 1 / max(size)) ** 3
    expected = np.fft.irfftn(wave, s=size, axes=range(1, len(size) + 1))
    found = fourier_fields(size, noise=noise).numpy()
    assert found.shape == (2, *size)
    np.testing.assert_allclose(found, expected / max(size) ** 3, atol=1e-12)


# Masks of ecs-vlc/FMix: sample_mask after np.random.seed(seed); random.seed(seed), packed as bits, and its coin
REFERENCE = [
    (3, (40,), False, "01fff80000"),
    (3, (16, 16), False, "07e007e00fc03f807f00f800e003c00f001f003e003e007c00fc01f801f803f0"),
    (4, (12, 10), False, "9fe7f1fc7f1fc7f1fc7fbfe7f9fe7f"),
    (8, (9, 7), False, "ffffffffffff7efc"),
    (4, (5, 6, 4), False, "77777733777f77777777377ff377ff"),
    (5, (4, 3, 5), True, "1886377ffff8e630"),
]


def reference_draws(seed, size):
    random = np.random.RandomState(seed)
    lam = random.beta(1.0, 1.0)
    return lam, torch.from_numpy(random.randn(1, *frequencies(size, reference=True).shape, 2))


@pytest.mark.parametrize(("seed", "size", "coin", "bits"), REFERENCE)
def test_masks_of_the_reference_code(seed, size, coin, bits):
    lam, noise = reference_draws(seed, size)
    for dtype in (torch.float64, torch.float32):
        field = fourier_fields(size, noise=noise.to(dtype), reference=True)
        mask = binarise(field, lam, round_up=torch.tensor([coin]))
        assert np.packbits(mask.numpy().astype(bool)).tobytes().hex() == bits


def test_soft_mask_of_the_reference_code():
    lam, noise = reference_draws(12, (4, 5))
    field = fourier_fields((4, 5), noise=noise, reference=True)
    mask = binarise(field, lam, 0.2, round_up=torch.tensor([False])).flatten()
    expected = torch.zeros(20, dtype=torch.float64)
    expected[[18, 2, 3, 7, 19]] = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
    torch.testing.assert_close(mask, expected)


def test_masks_have_no_direction_but_those_of_the_reference_have():
    lam = torch.rand(500, generator=draw())
    field = fourier_fields((32, 32), 500, generator=draw(1))
    mask = binarise(field, lam, generator=draw(2))
    assert changes(mask, 1) == pytest.approx(changes(mask, 2), rel=0.35)
    assert width_energy(field)[2:].sum() > 0.01
    slip = width_energy(fourier_fields((32, 32), 500, reference=True, generator=draw(1)))
    assert slip[2:].sum() < 1e-6


def test_one_dimensional_masks_of_the_reference_are_single_intervals():
    def intervals(reference):
        field = fourier_fields((64,), 500, reference=reference, generator=draw())
        mask = binarise(field, 0.5, generator=draw(1))
        return (mask != mask.roll(1, dims=1)).sum(dim=1) // 2

    assert (intervals(True) == 1).all()
    assert 10 < (intervals(False) > 1).sum() < 100


def test_decay_goes_from_white_noise_to_the_first_frequency():
    white = binarise(fourier_fields((32, 32), 300, 0.0, generator=draw()), 0.3, generator=draw(1))
    assert changes(white, 2) == pytest.approx(2 * 0.3 * 0.7 * 31, rel=0.03)
    assert changes(white, 1) == pytest.approx(2 * 0.3 * 0.7 * 31, rel=0.03)
    first = torch.fft.rfft2(fourier_fields((16, 16), 50, 1e4, generator=draw())).abs()
    assert first[:, [0, 0, 1, -1], [0, 1, 0, 0]].min() > 0
    first[:, [0, 0, 1, -1], [0, 1, 0, 0]] = 0
    assert first.max() < 1e-5


def test_every_cell_is_kept_with_probability_lam():
    mask = binarise(fourier_fields((12, 10), 5000, generator=draw()), 0.3, generator=draw(1))
    torch.testing.assert_close(mask.mean(dim=0), torch.full((12, 10), 0.3), atol=0.03, rtol=0)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("options", [{}, {"per_sample": True}, {"per_sample": True, "max_soft": 0.3}])
def test_inputs_and_shares_follow_the_mask(size, options):
    x, y = torch.randn(6, 3, *size, generator=draw()), torch.arange(6)
    mixed = fmix(x, y, generator=draw(2), **options)
    mask, partner = mixed.recipe.mask, mixed.recipe.partner[:, 1]
    assert mask.shape == (6 if options else 1, 1, *size)
    torch.testing.assert_close(mixed.x, mask * x + (1 - mask) * x[partner])
    torch.testing.assert_close(mixed.recipe.lam, mask.flatten(1).mean(dim=1).expand(6))
    assert torch.equal(mixed.recipe.label_share, mixed.recipe.share)


def test_mean_of_a_black_and_a_white_image_is_the_label_weight():
    x = torch.stack([torch.zeros(1, 13, 17), torch.ones(1, 13, 17)])
    for seed in range(20):
        mixed = fmix(x, torch.tensor([0, 1]), per_sample=True, max_soft=0.2 * (seed % 2), generator=draw(seed))
        torch.testing.assert_close(mixed.x.flatten(1).mean(dim=1), mixed.soft_target(2)[:, 1])


def test_shares_of_one_and_zero():
    x, y, partner = torch.randn(4, 2, 5, 5, generator=draw()), torch.arange(4), torch.tensor([1, 2, 3, 0])
    assert torch.equal(fmix(x, y, lam=1.0, partner=partner).x, x)
    assert torch.equal(fmix(x, y, lam=0.0, partner=partner).x, x[partner])
    assert torch.equal(fmix(x, y, alpha=0.0).x, x)
    assert torch.equal(fmix(x, y, lam=1.0, max_soft=0.5).x, x)


def test_reference_weighs_labels_by_the_share_drawn():
    x, y = torch.randn(4, 1, 3, 3, generator=draw()), torch.arange(4)
    recipe = fmix(x, y, lam=0.4, reference=True, generator=draw()).recipe
    assert torch.equal(recipe.label_share[:, 0], torch.full((4,), 0.4))
    assert recipe.lam[0].item() in (pytest.approx(3 / 9), pytest.approx(4 / 9))


def test_reformulation_keeps_the_own_label_and_draws_more_of_it():
    x, y = torch.randn(5, 1, 6, 6, generator=draw()), torch.arange(5)
    mixed = fmix(x, y, reformulate=True, generator=draw(1))
    assert torch.equal(mixed.soft_target(5), torch.eye(5))
    assert not torch.equal(mixed.x, x)
    lam = SizeBiased(0.7, per_sample=True)(4000, 2, draw())[:, 0]
    assert stats.kstest(lam.numpy(), stats.beta(1.7, 0.7).cdf).pvalue > 0.01


class Net(nn.Module):
    taps = ("low", "high")

    def __init__(self):
        super().__init__()
        self.low = nn.Conv2d(1, 3, 3, padding=1)
        self.high = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.high(self.low(x).relu()).relu().mean(dim=(2, 3)))


def test_the_method_is_the_function_on_the_same_draws():
    x, y, model = torch.randn(6, 1, 8, 9, generator=draw()), torch.arange(6) % 3, Net()
    for options in ({"per_sample": True}, {"reformulate": True}, {"reference": True, "max_soft": 0.1}):
        method = om.create("fmix", **options).setup(model, om.Classification(3), generator=draw(1))
        mixed = fmix(x, y, generator=draw(1), **options)
        torch.testing.assert_close(method.loss(model, (x, y)), mixed.loss(F.cross_entropy, model(mixed.x)))


def test_masks_on_hidden_maps():
    model, x, y = Net(), torch.randn(5, 1, 6, 7, generator=draw()), torch.arange(5) % 3
    operation = FourierMask(per_sample=True)
    method = om.Mix(operation=operation, places=("low",)).setup(model, om.Classification(3), generator=draw(1))
    output, recipe = method.forward(model, om.Batch(x, y), method.recipe(om.Batch(x, y)))
    h = model.low(x)
    h = recipe.mask * h + (1 - recipe.mask) * h[recipe.partner[:, 1]]
    torch.testing.assert_close(output, model.fc(model.high(h.relu()).relu().mean(dim=(2, 3))))


def test_alternating_with_mixup():
    model, x, y = Net(), torch.randn(6, 1, 6, 7, generator=draw()), torch.arange(6) % 3
    both = om.Alternate([FMix(), om.Mixup()]).setup(model, om.Classification(3), generator=draw(1))
    masks = []
    for method in both.methods:
        method.mix = lambda batch, recipe, mix=method.mix: masks.append(mix(batch, recipe)) or masks[-1]
    for _ in range(4):
        both.loss(model, (x, y))
    assert [mixed.recipe.mask is not None for mixed in masks] == [True, False, True, False]


def test_memory_format_type_and_input_are_kept():
    x = torch.randn(4, 3, 6, 9, generator=draw()).to(memory_format=torch.channels_last)
    kept = x.clone()
    mixed = fmix(x, torch.arange(4), generator=draw(1)).x
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, kept)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(fmix(x.to(dtype), torch.arange(4), generator=draw(1)).x, mixed.to(dtype))


def test_gradients_reach_both_partners():
    x = torch.randn(2, 3, 6, 6, generator=draw(), requires_grad=True)
    mixed = fmix(x, torch.arange(2), lam=0.5, partner=torch.tensor([1, 1]), generator=draw(1))
    mixed.x.sum().backward()
    mask = mixed.recipe.mask[0].expand(3, 6, 6)
    assert torch.equal(x.grad[0], mask)
    assert torch.equal(x.grad[1], 2 - mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fmix(torch.zeros(2, 5), torch.arange(2)), "images"),
        (lambda: fmix(torch.zeros(2, 1, 3, dtype=torch.uint8), torch.arange(2)), "floating point"),
        (lambda: FMix(max_soft=0.6), "max_soft"),
        (lambda: FMix(decay=-1.0), "decay"),
        (lambda: FMix(alpha=-1.0), "alpha"),
        (lambda: fourier_fields((1, 5), reference=True), "first side"),
        (
            lambda: FourierMask()(
                torch.zeros(2, 1, 3), om.Recipe(torch.zeros(2, 3).long(), torch.zeros(2, 3)), Context(draw())
            ),
            "k = 3",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("round_up", [True, False])
def test_counts_of_many_cells_stay_within_them(round_up):
    count = whole_cells(torch.tensor([0.0, 1.0]).double(), 30_000_000, torch.tensor(round_up))
    assert 0 <= count[0] <= 3
    assert 30_000_000 - 3 <= count[1] <= 30_000_000


def test_all_of_ten_million_cells_can_be_kept():
    assert binarise(torch.zeros(1, 11_000_000), 1.0, round_up=torch.tensor([False])).min() == 1
