import pytest
import torch

from omnimix.networks.patch_cnn import PatchCNN, alignment, smoothed_relu


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_smoothed_relu_hand_values():
    found = smoothed_relu(torch.tensor([0.05, 0.1, 0.2, -1.0, 0.0]), rho=0.1, q=3)
    assert found.tolist() == pytest.approx([0.0041667, 0.0333333, 0.1333333, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0, 11.0])
def test_value_and_slope_are_continuous_at_rho_and_gradients_finite(q):
    s = torch.tensor([0.1 - 1e-9, 0.1, 0.1 + 1e-9, -50.0, 0.0, 90.0], dtype=torch.float64, requires_grad=True)
    value = smoothed_relu(s, 0.1, q)
    assert value[:3].tolist() == pytest.approx([0.1 / q] * 3, abs=1e-8)
    (slope,) = torch.autograd.grad(value.sum(), s)
    assert slope.tolist() == pytest.approx([1, 1, 1, 0, 0, 1], abs=1e-6)


@pytest.mark.parametrize("activation", ["quadratic", "smoothed-relu"])
def test_logits_sum_the_classes_own_filters_over_patches(activation):
    model = PatchCNN(5, 3, 2, activation, std=1.0, generator=seeded())
    x = torch.randn(4, 6, 5, generator=seeded(1))
    expected = torch.zeros(4, 3)
    for n in range(4):
        for k in range(3):
            for r in range(2):
                for p in range(6):
                    s = model.weight[k, r] @ x[n, p]
                    expected[n, k] += s**2 if activation == "quadratic" else smoothed_relu(s, 1 / 3, 3.0)
    assert torch.allclose(model(x), expected, atol=1e-4)


@pytest.mark.parametrize("activation", ["quadratic", "smoothed-relu"])
def test_gradient_by_finite_differences(activation):
    model = PatchCNN(3, 2, 2, activation, std=0.5, generator=seeded()).double()
    x = torch.randn(4, 3, 3, generator=seeded(1), dtype=torch.float64)

    def loss(weight):
        output = torch.func.functional_call(model, {"weight": weight}, (x,))
        return torch.nn.functional.cross_entropy(output, torch.tensor([0, 1, 0, 1]))

    assert torch.autograd.gradcheck(loss, (model.weight.detach().requires_grad_(),))


def test_the_quadratic_network_does_not_see_the_sign_of_its_filters():
    model = PatchCNN(5, 2, 3, "quadratic", std=1.0, generator=seeded())
    x = torch.randn(4, 2, 5, generator=seeded(1))
    before = model(x)
    with torch.no_grad():
        model.weight[0, 1].neg_()
    assert torch.equal(model(x), before)


def test_alignment_is_the_best_filter_of_each_class():
    weight = torch.tensor([[[1.0, 0.0], [0.0, -3.0]], [[0.5, 0.2], [-0.1, 0.1]]])
    assert torch.allclose(alignment(weight, torch.eye(2)), torch.tensor([[1.0, 3.0], [0.5, 0.2]]))


def test_initial_weights_come_from_the_generator_and_bad_arguments_are_refused():
    a, b = (PatchCNN(50, 2, 4, std=0.3, generator=seeded(3)).weight for _ in range(2))
    assert torch.equal(a, b)
    assert a.std().item() == pytest.approx(0.3, rel=0.1)
    for options in ({"q": 1.0}, {"rho": 0.0}, {"std": 0}, {"activation": "tanh"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            PatchCNN(5, 2, 2, **options)
    with pytest.raises(ValueError, match="patches"):
        PatchCNN(5, 2, 2)(torch.zeros(3, 5))
