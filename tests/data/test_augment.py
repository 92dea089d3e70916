import pytest
import torch
import torch.nn.functional as F

from omnimix.data import crop_and_flip


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fill", ["reflect", "zero"])
@pytest.mark.parametrize("padding", [0, 2])
def test_each_image_is_one_of_the_crops_of_the_padded_image(fill, padding: int) -> None:
    x = torch.rand(64, 3, 5, 7, generator=_generator())
    out = crop_and_flip(x, _generator(1), padding, fill)
    padded = F.pad(x, [padding] * 4, mode="reflect" if fill == "reflect" else "constant")
    used = set()
    for i in range(len(x)):
        crops = {
            (top, left, flip): padded[i, :, top : top + 5, left : left + 7].flip(2 if flip else ())
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flip in (False, True)
        }
        hits = [key for key, crop in crops.items() if torch.equal(crop, out[i])]
        assert len(hits) == 1
        used.add(hits[0])
    assert len(used) > (25 if padding else 1)


def test_places_and_flips_are_uniform() -> None:
    x = torch.zeros(20_000, 1, 9, 9)
    x[:, 0, 4, 3] = 1
    out = crop_and_flip(x, _generator(), padding=1, fill="zero").flatten(1).argmax(dim=1)
    counts = torch.bincount(out)
    counts = counts[counts > 0].double()
    assert len(counts) == 15  # rows 3..5, columns 2..4 or, flipped, 4..6; column 4 twice
    expected = torch.tensor([1, 1, 2, 1, 1] * 3) * 20_000 / 18
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # chi-square, 14 degrees of freedom, p = 0.001


def test_the_generator_decides_and_the_input_stays() -> None:
    x = torch.rand(8, 3, 6, 6, generator=_generator())
    kept = x.clone()
    one = crop_and_flip(x, _generator(1))
    assert torch.equal(one, crop_and_flip(x, _generator(1)))
    assert not torch.equal(one, crop_and_flip(x, _generator(2)))
    assert torch.equal(x, kept)


def test_flips_can_be_left_out() -> None:
    x = torch.arange(4.0).expand(16, 1, 3, 4)
    assert torch.equal(crop_and_flip(x, _generator(), padding=0, flip=False), x)


def test_bytes_stay_bytes() -> None:
    x = torch.randint(256, (4, 3, 8, 8), generator=_generator()).to(torch.uint8)
    assert crop_and_flip(x, _generator()).dtype == torch.uint8


def test_refusals() -> None:
    with pytest.raises(ValueError, match="padding must be < 4"):
        crop_and_flip(torch.zeros(1, 1, 4, 9), _generator())
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        crop_and_flip(torch.zeros(4, 9), _generator())
    with pytest.raises(ValueError, match="'mirror'"):
        crop_and_flip(torch.zeros(1, 1, 9, 9), _generator(), fill="mirror")  # type: ignore[arg-type]
