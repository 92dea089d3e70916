import pytest
import torch

from omnimix import Regression
from omnimix.data import BUILTIN, DataError, Source, load


def test_take_gives_floats_and_leaves_the_pixels_alone() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    source = Source("s", pixels, torch.zeros(3), Regression(1), "image")
    taken = source.take(torch.tensor([2, 0, 1]))
    assert taken.flatten().tolist() == [1, 0, torch.tensor(0.2).item()]
    assert taken.dtype == torch.float32
    taken.fill_(9)
    assert source.x.flatten().tolist() == [0, 51, 255]
    assert source.input_shape == (1, 1, 1)


def test_the_digest_sees_values_shapes_targets_and_domains() -> None:
    def make(x: list, y: list, domain: list | None = None) -> str:
        ids = None if domain is None else torch.tensor(domain)
        return Source("s", torch.tensor(x), torch.tensor(y), Regression(1), "table", ids).digest

    base = make([[1.0], [2.0]], [0.0, 1.0])
    assert base == make([[1.0], [2.0]], [0.0, 1.0])
    others = [
        make([[1.0], [2.5]], [0.0, 1.0]),
        make([[1.0], [2.0]], [0.0, 1.5]),
        make([[1.0], [2.0]], [[0.0], [1.0]]),
        make([[1.0], [2.0]], [0.0, 1.0], [0, 1]),
        make([[1.0], [2.0]], [0.0, 1.0], [1, 0]),
    ]
    assert len({base, *others}) == 6


def test_domains_and_classes_have_different_names() -> None:
    for what in ("domain", "class"):
        with pytest.raises(DataError, match=f"two {what} names are 'a'"):
            Source("s", torch.zeros(2, 1), torch.zeros(2), Regression(1), "table", **{f"{what}_names": ("a", "b", "a")})


def test_only_built_in_sets_say_that_they_are() -> None:
    assert all(load(name).builtin for name in BUILTIN)
    assert not Source("digits", torch.zeros(2, 1), torch.zeros(2), Regression(1), "table").builtin
