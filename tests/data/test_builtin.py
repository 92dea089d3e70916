import pytest
import torch

from omnimix import Classification, Regression
from omnimix.data import BUILTIN, friedman, load, two_moons

SHAPES = {
    "airfoil": (1503, (5,), Regression, 1),
    "no2": (500, (7,), Regression, 1),
    "digits": (1797, (1, 8, 8), Classification, 10),
    "diabetes": (442, (10,), Regression, 1),
    "wine": (178, (13,), Classification, 3),
    "breast-cancer": (569, (30,), Classification, 2),
    "friedman": (1000, (10,), Regression, 1),
    "two-moons": (1000, (2,), Classification, 2),
}


def test_all_built_in_sets_are_tested() -> None:
    assert set(BUILTIN) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_tasks(name: str) -> None:
    count, shape, task, outputs = SHAPES[name]
    before = torch.get_rng_state()
    source = load(name)
    assert torch.equal(before, torch.get_rng_state())
    assert (source.name, len(source), source.input_shape) == (name, count, shape)
    assert type(source.task) is task
    assert source.task.outputs == outputs
    assert len(source.class_names) == (outputs if task is Classification else 0)
    assert source.x.dtype == torch.float32
    assert bool(source.x.isfinite().all())
    if source.kind == "table":
        assert len(source.feature_names) == shape[0]
    assert source.digest == load(name).digest


def test_targets_are_in_raw_units_and_the_right_column() -> None:
    airfoil = load("airfoil")
    assert airfoil.x[0].tolist() == pytest.approx([800, 0, 0.3048, 71.3, 0.00266337])
    assert airfoil.y[0].item() == pytest.approx(126.201)
    assert airfoil.y.std().item() == pytest.approx(6.899, abs=1e-3)
    no2 = load("no2")
    assert no2.y[0].item() == pytest.approx(3.71844)
    assert no2.x[0].tolist() == pytest.approx([7.6912, 9.2, 4.8, -0.1, 74.4, 20, 600])


def test_digits_are_images_between_0_and_1() -> None:
    digits = load("digits")
    assert digits.kind == "image"
    assert digits.x.min() == 0
    assert digits.x.max() == 1
    assert digits.y[:10].tolist() == list(range(10))


def test_synthetic_sets_follow_their_formula_and_seed() -> None:
    exact = friedman(50, features=6, noise=0.0, seed=3)
    x = exact.x.double()
    y = 10 * (torch.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    assert torch.allclose(exact.y.double(), y, atol=1e-4)
    assert friedman(50, seed=3).digest == friedman(50, seed=3).digest
    assert friedman(50, seed=3).digest != friedman(50, seed=4).digest
    moons = two_moons(200, noise=0.0)
    outer = moons.x[moons.y == 0]
    assert torch.allclose(outer.norm(dim=1), torch.ones(100), atol=1e-5)
    with pytest.raises(ValueError, match="features"):
        friedman(50, features=4)
