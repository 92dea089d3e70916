import pytest
import torch

from omnimix.data.feature_patches import common_rare, multi_view, orthonormal


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_features_are_orthonormal():
    features = orthonormal(3, 2, 81, seeded()).flatten(0, 1)
    assert torch.allclose(features @ features.T, torch.eye(6), atol=1e-5)
    with pytest.raises(ValueError, match="dim"):
        orthonormal(3, 2, 5, seeded())


def test_training_strengths_mirror_each_other_and_noise_avoids_the_own_class():
    features = orthonormal(3, 2, 81, seeded())
    data = multi_view(500, features, seeded(1))
    assert data.x.shape == (500, 9, 81)
    along = torch.einsum("npd,kld->npkl", data.x, features)
    own = along[torch.arange(500), :, data.y]
    first, second = own[:, 0, 0], own[:, 1, 1]
    assert torch.allclose(first + second, torch.full((500,), 0.75), atol=1e-5)
    assert 0.25 - 1e-5 <= first.min() < 0.26
    assert 0.49 < first.max() <= 0.5 + 1e-5
    assert own[:, 2:].abs().max() < 1e-5
    assert own[:, 0, 1].abs().max() < 1e-5
    other = along[torch.arange(500), 2:, (data.y + 1) % 3] * 3**1.5 / 10
    assert 0.25 - 1e-4 <= other.min() < 0.26
    assert 0.74 < other.max() <= 0.75 + 1e-4


def test_test_inputs_show_one_feature_twice():
    features = orthonormal(3, 2, 81, seeded())
    data = multi_view(500, features, seeded(1), test=True)
    along = torch.einsum("npd,kld->npkl", data.x, features)[torch.arange(500), :2, data.y]
    shown, hidden = along[torch.arange(500), :, data.view], along[torch.arange(500), :, 1 - data.view]
    assert shown.min() > 0.24
    assert hidden.abs().max() < 1e-5
    assert not torch.allclose(shown[:, 0], shown[:, 1])
    assert 0.4 < data.view.float().mean() < 0.6


def test_common_and_rare():
    features = orthonormal(2, 2, 400, seeded())
    data = common_rare(4000, features, seeded(1), rare=0.1, patches=3)
    assert torch.equal(data.x[:, 0], features[data.y, data.view])
    assert data.view.float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert data.y.float().mean().item() == pytest.approx(0.5, abs=0.03)
    noise = data.x[:, 1:]
    assert (noise @ features.flatten(0, 1).T).abs().max() < 1e-4
    assert noise.square().sum(2).mean().item() == pytest.approx(12 * 396 / 400, rel=0.02)


def test_draws_come_from_the_generator_and_other_feature_counts_are_refused():
    features = orthonormal(2, 2, 10, seeded())
    for make in (common_rare, multi_view):
        assert torch.equal(make(20, features, seeded(2)).x, make(20, features, seeded(2)).x)
        with pytest.raises(ValueError, match=r"\(K, 2, d\)"):
            make(20, features[:, :1], seeded(2))
