"""BSS: spectra before and after against the full transform, limits of the box, and hand values of the contrast."""

import colorsys
import math

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.domains.generalize.bss import exchange_amplitudes, jitter_colours, turn_hue, view_contrast
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.rand(4, 3, 6, 9, generator=draw(), dtype=torch.float64)


def exchange(x, donor, ratio):
    count = len(x)
    return exchange_amplitudes(x, torch.as_tensor(donor).expand(count), torch.tensor(ratio).expand(count))


def test_whole_spectrum():
    found = exchange(X, 2, 1.0)
    before, after = torch.fft.fft2(X), torch.fft.fft2(found)
    assert torch.allclose(after.abs(), before[2].abs().expand_as(after))
    assert torch.allclose(after / after.abs(), before / before.abs(), atol=1e-6)
    assert torch.allclose(found[2], X[2])


def test_the_mean_alone():
    found = exchange(X, 1, 0.0)
    mean = X.mean((2, 3), keepdim=True)
    assert torch.allclose(found, X - mean + mean[1])


@pytest.mark.parametrize("size", [(6, 9), (7, 8), (5, 5), (8, 8)])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.8])
def test_the_box_in_the_full_spectrum(size, ratio):
    x = torch.rand(3, 2, *size, generator=draw(1), dtype=torch.float64)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3))
    amplitude = spectrum.abs()
    for i in range(size[0]):
        for j in range(size[1]):
            rows, columns = abs(i - size[0] // 2), abs(j - size[1] // 2)
            if rows <= math.sqrt(ratio) * size[0] / 2 and columns <= math.sqrt(ratio) * size[1] / 2:
                amplitude[:, :, i, j] = amplitude[1, :, i, j].clone()
    expected = torch.fft.ifft2(torch.fft.ifftshift(torch.polar(amplitude, spectrum.angle()), dim=(2, 3)))
    assert expected.imag.abs().max() < 1e-5
    assert torch.allclose(exchange(x, 1, ratio), expected.real)


def test_alone_permuted_and_own_donors():
    assert torch.allclose(exchange(X[:1], 0, 0.5), X[:1])
    order = torch.tensor([3, 0, 2, 1])
    assert torch.allclose(exchange(X[order], 0, 0.3), exchange(X, 3, 0.3)[order])
    each = exchange_amplitudes(X, torch.tensor([1, 2, 3, 0]), torch.tensor([0.1, 0.3, 0.6, 1.0]))
    for i, ratio in enumerate((0.1, 0.3, 0.6, 1.0)):
        assert torch.allclose(each[i], exchange(X, (i + 1) % 4, ratio)[i])


def test_signals_and_volumes():
    for size in ((10,), (4, 5, 6)):
        x = torch.rand(3, 2, *size, generator=draw(2), dtype=torch.float64)
        axes = tuple(range(2, x.ndim))
        amplitude = torch.fft.fftn(exchange(x, 1, 1.0), dim=axes).abs()
        assert torch.allclose(amplitude, torch.fft.fftn(x, dim=axes)[1].abs().expand_as(amplitude))


def test_contrast_by_hand():
    z = torch.eye(2).expand(2, 2, 2)  # both views alike, the two samples at right angles
    assert view_contrast(z).item() == pytest.approx(0.126928, abs=1e-6)
    assert view_contrast(z, negatives="all views").item() == pytest.approx(0.239545, abs=1e-6)


def test_contrast_against_a_loop():
    z = nn.functional.normalize(torch.randn(3, 4, 5, generator=draw(), dtype=torch.float64), dim=2)
    same, every = [], []
    for v in range(3):
        for w in range(3):
            for i in range(4):
                if v != w:
                    pull = (z[v, i] @ z[w, i] / 0.7).exp()
                    own = sum((z[v, i] @ z[v, j] / 0.7).exp() for j in range(4) if j != i)
                    pair = sum((z[v, i] @ z[w, j] / 0.7).exp() for j in range(4) if j != i)
                    same.append(-(pull / (pull + own)).log())
                    every.append(-(pull / (pull + own + pair)).log())
    assert torch.allclose(view_contrast(2 * z, 0.7), torch.stack(same).mean())
    assert torch.allclose(view_contrast(z, 0.7, "all views"), torch.stack(every).mean())


def make(model, **parameters):
    return om.create("bss", **parameters).setup(model, om.Classification(3), generator=draw())


def test_one_style_a_view_and_another_in_the_next():
    method = make(nn.Sequential(nn.Flatten(), nn.Linear(162, 3)), ratio=(0.3, 0.3), black=0.0)
    views = [torch.fft.fft2(method.view(X)).abs()[:, :, :2, :2] for _ in range(3)]
    for view in views:
        assert torch.allclose(view, view[:1].expand_as(view))
    assert not all(torch.allclose(views[0], other) for other in views[1:])
    twin = make(method.given.model, ratio=(0.3, 0.3), black=0.0)
    assert torch.equal(torch.fft.fft2(twin.view(X)).abs()[:, :, :2, :2], views[0])


def test_plain_exchanges_come_first():
    method = make(nn.Sequential(nn.Flatten(), nn.Linear(162, 3)), ratio=(0.3, 0.3), black=0.0, fourier=True)
    donor = torch.randint(4, (4,), generator=draw())
    mixed = exchange_amplitudes(X, donor, torch.full((4,), 0.3))
    found = method.view(X)
    assert any(torch.allclose(found, exchange(mixed, k, 0.3)) for k in range(4))
    check_method("bss", fourier=True)


def test_normalised_inputs_give_normalised_results():
    scale, offset = torch.tensor([2.0, 0.5, 3.0]).view(3, 1, 1), torch.tensor([-1.0, -0.4, -2.0]).view(3, 1, 1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(162, 3))
    raw = make(network, black=0.0).view(X)
    normalised = make(network, black=offset.flatten().tolist()).view(scale * X + offset)
    assert torch.allclose(normalised, scale * raw + offset)
    dark = X - X.amin(dim=(0, 2, 3), keepdim=True)
    assert torch.allclose(make(network).view(dark), make(network, black=0.0).view(dark))


def test_jitter_is_shared_within_a_view():
    twins = X[:1].expand(2, -1, -1, -1)
    first, second = (jitter_colours(twins, 0.4, draw(seed)) for seed in (0, 1))
    assert torch.equal(first[0], first[1])
    assert not torch.allclose(first, second)
    assert torch.allclose(jitter_colours(X, 0.0, draw()), X)
    assert jitter_colours(X[:, :2], 0.4, draw()).shape == (4, 2, 6, 9)


def test_hues_turn_as_in_the_standard_library():
    pixels = torch.cat((X.permute(0, 2, 3, 1).reshape(-1, 3), torch.tensor([[0.0, 0, 0], [0.4, 0.4, 0.4], [1, 0, 0]])))
    x = pixels.T.view(1, 3, 1, -1)
    for turn in (0.0, 0.3, -0.45, 0.5):
        found = turn_hue(x, turn)[0, :, 0].T
        hsv = [colorsys.rgb_to_hsv(*row) for row in pixels.tolist()]
        wanted = torch.tensor([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv], dtype=torch.float64)
        assert torch.allclose(found, wanted, atol=1e-9)
        assert torch.allclose(turn_hue(5 * x, turn)[0, :, 0].T, 5 * wanted)
    first, second = (jitter_colours(X[:1].expand(2, -1, -1, -1), 0.0, draw(seed), 0.5) for seed in (0, 1))
    assert torch.equal(first[0], first[1])
    assert not torch.allclose(first, second)
    assert torch.equal(jitter_colours(X[:, :2], 0.0, draw(), 0.5), X[:, :2])


def test_the_loss_joins_labels_and_contrast():
    model = nn.Sequential(nn.Flatten(), nn.Linear(162, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    y = torch.tensor([0, 1, 2, 0])
    views = [(twin := make(model)).view(X), twin.view(X)]
    z = torch.stack([model[:3](view) for view in views])
    plain = nn.functional.cross_entropy(model[3](z.flatten(0, 1)), torch.cat((y, y)))
    assert torch.allclose(make(model, weight=0.3).loss(model, (X, y)), plain + 0.3 * view_contrast(z))
    assert torch.allclose(make(model, labels=False).loss(model, (X, y)), view_contrast(z))


def test_contract():
    assert len(check_method("bss")) >= 10
    check_method("bss", jitter=0.4, hue=0.1, views=3)


def test_refusals():
    for name, value in (
        ("ratio", (0.5, 0.1)),
        ("views", 1),
        ("weight", -1.0),
        ("negatives", "none"),
        ("jitter", 2),
        ("hue", 0.6),
    ):
        with pytest.raises(ValueError, match=name):
            om.create("bss", **{name: value})
