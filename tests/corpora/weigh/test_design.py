"""Designs: caps, steps, no doubles, the prior on average, the same seed the same runs."""

import numpy as np
import pytest
import torch

from omnimix.corpora.weigh.design import MixtureDesign

PRIOR = {"cc": 0.5, "code": 0.3, "papers": 0.15, "wiki": 0.04, "mail": 0.01}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_design_of_regmix():
    weights = MixtureDesign(PRIOR).draw(64, seeded())
    shares = np.array(list(PRIOR.values()))
    assert weights.shape == (64, 5)
    assert (weights <= np.minimum(15 * shares, 1) + 1e-12).all()
    assert ((weights == 0) | (weights >= 2e-4 - 1e-12)).all()
    assert (weights == 0).any()
    assert np.allclose(weights.sum(1), 1, atol=1e-12)
    assert np.allclose(weights / 2e-4, np.round(weights / 2e-4), atol=1e-6)
    distances = np.abs(weights[:, None] - weights[None]).sum(2) + np.eye(64)
    assert distances.min() > 1e-5


def test_same_seed_same_design():
    first, again, other = (MixtureDesign(PRIOR).draw(8, seeded(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_average_to_the_tempered_prior(temperature):
    design = MixtureDesign(PRIOR, temperature=temperature, cap=None)
    mean = design.candidates(40_000, seeded()).mean(0)
    tempered = np.array(list(PRIOR.values())) ** (1 / temperature)
    assert mean == pytest.approx(tempered / tempered.sum(), abs=0.006)


def test_strength_decides_the_spread():
    near = MixtureDesign(PRIOR, strength=(1000, 1000), cap=None).candidates(1000, seeded())
    corners = MixtureDesign(PRIOR, strength=(0.01, 0.01), cap=None).candidates(1000, seeded())
    assert near.std(0).max() < 0.03
    assert np.median(corners.max(1)) > 0.99
    assert np.isfinite(corners).all()


def test_grid_of_the_fine_tuning_paper():
    grid = MixtureDesign({"if": 1, "math": 1, "code": 1}, kind="grid", minimum=1 / 8).draw(45, seeded())
    inside = grid[(grid > 0).all(1)]
    assert len(inside) == 21  # all of {0.125, ..., 0.75}^3 that sum to 1
    assert inside.min() == 0.125
    assert inside.max() == 0.75
    with pytest.raises(ValueError, match="only 45 different mixtures"):
        MixtureDesign({"if": 1, "math": 1, "code": 1}, kind="grid", minimum=1 / 8).draw(46, seeded())


def test_sobol_covers_the_simplex_better_than_dirichlet():
    def hole(kind, **rest):
        runs = MixtureDesign(dict.fromkeys("abc", 1.0), kind=kind, cap=None, **rest).draw(32, seeded())
        probes = np.random.default_rng(0).dirichlet(np.ones(3), 2000)
        return np.abs(probes[:, None] - runs[None]).sum(2).min(1).max()

    assert hole("sobol") < hole("dirichlet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": {"a": 1.0}}, "two domains or more"),
        ({"prior": {"a": 1.0, "b": 0.0}}, "share > 0 each"),
        ({"kind": "latin"}, "kind must be one of"),
        ({"temperature": 0.5}, "temperature must be >= 1"),
        ({"strength": (2.0, 1.0)}, "low <= high"),
        ({"cap": 0.5}, "all domains together reach 0.5"),
        ({"minimum": 0.3}, r"below 1/k = 0.2"),
        ({"kind": "grid", "minimum": 0.15}, "a grid needs minimum = 1/n"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"prior": PRIOR, **arguments}
    with pytest.raises(ValueError, match=message):
        MixtureDesign(**given).draw(4, seeded())
