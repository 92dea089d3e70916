import torch

from omnimix import Regression
from omnimix.data import Source


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
