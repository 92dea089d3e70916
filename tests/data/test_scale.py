import pytest
import torch

from omnimix import Regression
from omnimix.data import Scaler, Source

NAN = float("nan")


def test_standard_scores_of_the_training_rows() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    scaler = Scaler.fit(x)
    assert torch.allclose(scaler(x)[:, 0], torch.tensor([-1.5, 0.0, 1.5]).mul((2 / 3) ** 0.5))
    assert scaler(x)[:, 1].tolist() == [0, 0, 0]
    assert scaler(torch.tensor([[3.0, 7.0]])).tolist() == [[0, 2]]  # a constant column keeps scale 1


def test_minmax_brings_the_training_rows_to_the_unit_interval() -> None:
    x = torch.tensor([[2.0, 4.0], [6.0, 4.0], [3.0, 4.0]])
    scaler = Scaler.fit(x, "minmax")
    assert scaler(x).tolist() == [[0, 0], [1, 0], [0.25, 0]]
    assert scaler(torch.tensor([[10.0, 5.0]])).tolist() == [[2, 1]]


def test_gaps_become_the_median_of_the_training_rows() -> None:
    x = torch.tensor([[1.0, NAN], [NAN, NAN], [2.0, NAN], [9.0, NAN], [4.0, NAN]])
    scaler = Scaler.fit(x, "none")
    assert scaler(x).tolist() == [[1, 0], [3, 0], [2, 0], [9, 0], [4, 0]]
    assert scaler(torch.tensor([[NAN, 7.0]])).tolist() == [[3, 7]]


def test_standard_scores_count_imputed_values() -> None:
    x = torch.tensor([[0.0], [4.0], [NAN], [NAN]])
    assert Scaler.fit(x)(x).flatten().tolist() == pytest.approx([-(2**0.5), 2**0.5, 0, 0])


@pytest.mark.parametrize("kind", ["standard", "minmax", "none"])
def test_scaling_leaves_its_input_alone(kind) -> None:
    x = torch.tensor([[1.0, NAN], [3.0, 4.0]])
    kept = x.clone()
    Scaler.fit(x, kind)(x)
    assert torch.equal(x.nan_to_num(7), kept.nan_to_num(7))


def test_a_constant_that_has_no_exact_mean_keeps_scale_1() -> None:
    x = torch.full((1001, 1), 0.1)
    assert Scaler.fit(x)(x).abs().max() < 1e-6
    images = torch.full((77, 1, 3, 3), 0.1)
    assert Scaler.fit(images)(images).abs().max() < 1e-6


def test_images_have_one_mean_and_deviation_a_channel_whatever_the_chunks() -> None:
    x = torch.rand(50, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    scaler = Scaler.fit_images(x.split(7))
    assert torch.allclose(scaler.shift, x.mean(dim=(0, 2, 3)))
    assert torch.allclose(scaler.scale, x.std(dim=(0, 2, 3), correction=0))
    assert torch.allclose(scaler(x), Scaler.fit(x)(x))
    low = Scaler.fit_images(x.split(7), "minmax")(x)
    assert low.amin(dim=(0, 2, 3)).tolist() == [0, 0, 0]
    assert low.amax(dim=(0, 2, 3)).tolist() == [1, 1, 1]


def test_a_source_scales_by_the_rows_it_is_given() -> None:
    x = torch.tensor([[0.0], [2.0], [NAN], [1000.0]])
    scaler = Source("s", x, torch.zeros(4), Regression(1), "table").scaler(torch.tensor([0, 1, 2]), "minmax")
    assert scaler(x).flatten().tolist() == [0, 1, 0.5, 500]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="'robust'"):
        Scaler.fit(torch.ones(2, 1), "robust")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n > 0"):
        Scaler.fit(torch.ones(0, 1))
    with pytest.raises(ValueError, match="no images"):
        Scaler.fit_images([])
