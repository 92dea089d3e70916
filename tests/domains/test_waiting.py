"""A step waits for no number from the device: PyTorch's dispatch in Python watches the batch and the network.

Stands in for `torch.cuda.set_sync_debug_mode("error")` where there is no GPU.
"""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.registry import info

DRAW = torch.Generator().manual_seed(0)
X, Y, DOMAIN = torch.rand(12, 3, 6, 6, generator=DRAW), torch.arange(12) % 3, torch.arange(12) // 6
WAITS = {
    "item", "tolist", "numpy", "__array__", "cpu", "__bool__", "__float__", "__int__", "__index__", "__complex__",
    "nonzero", "argwhere", "unique", "unique_consecutive", "_unique2", "masked_select", "bincount", "equal", "allclose",
    "is_nonzero", "repeat_interleave", "__contains__", "multinomial",
}  # fmt: skip


class Waits(AssertionError):
    pass


class OnDevice(torch.Tensor):
    """What is computed of it is watched too; what needs its values on the host, or shapes that follow from them, fails.

    free: how many copies to the host are let through.
    """

    free = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "__deepcopy__":
            copied = args[0].detach().clone()
            return nn.Parameter(copied, args[0].requires_grad) if isinstance(args[0], nn.Parameter) else copied
        if name == "cpu" and cls.free:
            OnDevice.free -= 1
            return args[0].as_subclass(torch.Tensor)
        size_known = name == "repeat_interleave" and (isinstance(args[1], int) or "output_size" in kwargs)
        bare_where = name == "where" and len(args) == 1
        if (
            (name in WAITS and not size_known)
            or bare_where
            or (name == "to" and any(isinstance(a, str) for a in args[1:]))
        ):
            raise Waits(name)
        if name in ("__getitem__", "index") or (name == "__setitem__" and isinstance(args[2], torch.Tensor)):
            keys = args[1] if isinstance(args[1], (tuple, list)) else (args[1],)
            if any(isinstance(key, torch.Tensor) and key.dtype == torch.bool for key in keys):
                raise Waits(f"{name} with a mask")
        return super().__torch_function__(func, types, args, kwargs)


class Net(nn.Module):
    taps = ("one", "two")

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.two(self.norm(self.one(x)).relu()).relu().mean((2, 3)))


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def watched(model):
    for module in model.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = nn.Parameter(weight.detach().as_subclass(OnDevice))
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.as_subclass(OnDevice)
    return model


ROOM = [n for n in om.methods() if info(n).factory.__module__.startswith("omnimix.domains.generalize")]
FREE = {"fish": 1}
"""Batches of single domains have sizes that the host must know."""


@pytest.mark.parametrize("name", ROOM)
def test_a_step_waits_for_nothing(name, monkeypatch):
    monkeypatch.setattr("omnimix.domains.generalize.base.AT_ONCE", ())
    monkeypatch.setattr("omnimix.core.recipe._check_ids", lambda *_: None)  # this and the next are for the CPU alone
    monkeypatch.setattr("omnimix.core.pairing.Pairing.fill", lambda self, partners, own: partners)
    parameters = {
        "smos": {"precursor": watched(net())},
        "udim": {"warmup": 0.0},
        "qt-dog": {"start": 0.0},
        "tss": {"balance": 1.0},
        "domaindrop": {"probability": 1.0},
        "drm": {"by": "discriminator"},
        "dann": {"penalty": 1.0},
        "mode-f": {"steps": 1},
        "mode-a": {"steps": 1},
    }
    model, method = watched(net()), om.create(name, **parameters.get(name, {}))
    table = om.Table(domain=DOMAIN, label=Y)
    method.setup(model, om.Classification(3), table, steps=10, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    batch = om.Batch(X.as_subclass(OnDevice), Y.as_subclass(OnDevice), DOMAIN.as_subclass(OnDevice))
    method.steps_done = 4  # after the 1st, 2nd, 4th, 8th... step domains are checked
    for _ in range(2):
        OnDevice.free = FREE.get(name, 0)
        loss = method.step(model, batch, optimizer)
        method.after_step()
    assert isinstance(loss, OnDevice)


def test_the_watch_itself():
    x = torch.arange(4.0).as_subclass(OnDevice)
    for wait in (
        float, bool, torch.Tensor.tolist, torch.Tensor.cpu, torch.unique, torch.nonzero, lambda t: t[t > 1],
        lambda t: int((t + torch.ones(4)).sum()), lambda t: torch.bincount(t.long()), lambda t: torch.where(t > 1),
    ):  # fmt: skip
        with pytest.raises(Waits):
            wait(x[0] if wait in (float, bool) else x)
    assert isinstance(torch.where(x > 1, x, 0.0)[x.argmax()], OnDevice)
