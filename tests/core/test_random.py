import torch

from omnimix.core.random import repeated, uniform


def test_repeated_calls_draw_the_same():
    generator = torch.Generator().manual_seed(0)
    call = repeated(lambda n: uniform(n, generator=generator), generator)
    first = call(3)
    between = uniform(2, generator=generator)
    assert torch.equal(call(3), first)
    assert not torch.equal(uniform(2, generator=generator), between)
    twin = torch.Generator().manual_seed(0)
    assert torch.equal(uniform(3, generator=twin), first)
    assert torch.equal(uniform(2, generator=twin), between)
