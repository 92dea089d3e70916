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


def test_the_design_of_weborganizer():
    tempered = MixtureDesign({"a": 0.64, "b": 0.32, "c": 0.04}).prior
    assert tempered == pytest.approx([0.510958, 0.361302, 0.127740], abs=1e-6)
    shares = {"cc": 0.9, "code": 0.0969, "papers": 0.003, "mail": 0.0001}
    design = MixtureDesign(shares, cap=20, reference="prior", apart=0.05)
    weights = design.draw(48, seeded())
    prior = np.sqrt(list(shares.values()))
    prior /= prior.sum()
    assert (weights <= 20 * prior + 1e-9).all()
    assert weights[:, 3].max() > 20 * shares["mail"]  # which the bound by the shares forbids
    distances = np.abs(weights[:, None] - weights[None]).max(2) + np.eye(48)
    assert distances.min() >= 0.05 - 1e-12
    assert ((weights == 0) | (weights >= 2e-4 - 1e-12)).all()
    assert np.allclose(weights.sum(1), 1, atol=1e-12)
    close = MixtureDesign(shares, cap=20, reference="prior").draw(48, seeded())
    assert (np.abs(close[:, None] - close[None]).max(2) + np.eye(48)).min() < 0.05
    with pytest.raises(ValueError, match=r"within the caps and 0\.5 apart, 48 were asked for.*smaller apart"):
        MixtureDesign(shares, apart=0.5).draw(48, seeded())
    spread = MixtureDesign(dict.fromkeys("abc", 1.0), kind="sobol", cap=None, apart=0.1).draw(12, seeded())
    assert (np.abs(spread[:, None] - spread[None]).max(2) + np.eye(12)).min() >= 0.1 - 1e-12


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
        ({"reference": "corpus"}, "reference must be one of"),
        ({"apart": 2.0}, "apart must be a number in"),
        ({"cap": 0.5}, "all domains together reach 0.5"),
        ({"minimum": 0.3}, r"below 1/k = 0.2"),
        ({"kind": "grid", "minimum": 0.15}, "a grid needs minimum = 1/n"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"prior": PRIOR, **arguments}
    with pytest.raises(ValueError, match=message):
        MixtureDesign(**given).draw(4, seeded())
