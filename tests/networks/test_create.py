import re
import sys

import pytest
import torch
from torch import nn

from omnimix import Mix, split
from omnimix.core.task import Classification
from omnimix.networks import NETWORKS, create

CASES = [
    ("mlp", (5,), {}),
    ("mlp", (1, 8, 8), {"hidden": (16, 12, 8), "activation": "relu"}),
    ("small-cnn", (3, 16, 16), {}),
    ("small-cnn", (1, 8, 8), {}),
    ("preact-resnet18", (3, 8, 10), {"width": 4}),
    ("wrn-10-1", (1, 8, 8), {"dropout": 0.3}),
    ("vit", (3, 8, 12), {"width": 16, "depth": 3}),
]


def _make(name: str, shape: tuple[int, ...], options: dict, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    return create(name, shape, 3, seed=seed, **options), x


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
def test_networks_map_batches_to_outputs_and_learn_in_all_weights(name, shape, options) -> None:
    model, x = _make(name, shape, options)
    output = model(x)
    assert output.shape == (4, 3)
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    assert model(x[:1]).shape == (1, 3)


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
def test_the_rest_of_the_network_consumes_exactly_what_a_tap_gives(name, shape, options) -> None:
    model, x = _make(name, shape, options)
    model.eval()
    parts = dict(model.named_children())
    assert list(parts)[-1] == "head"
    assert len(model.taps) == 2
    for tap in model.taps:
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(tap).register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        whole = model(x)
        handle.remove()
        z, order = x, list(parts)
        for part in order[: order.index(tap) + 1]:
            z = parts[part](z)
        assert torch.equal(z, seen[0])
        for part in order[order.index(tap) + 1 :]:
            z = parts[part](z)
        assert torch.equal(z, whole)


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
def test_hidden_mixing_works_at_every_tap_and_head_is_found(name, shape, options) -> None:
    model, x = _make(name, shape, options)
    assert split(model).head_name == "head"
    assert split(model).taps == model.taps
    for tap in model.taps:
        method = Mix(places=(tap,))
        method.setup(model, Classification(3), generator=torch.Generator().manual_seed(0))
        assert method.loss(model, (x, torch.tensor([0, 1, 2, 0]))).isfinite()


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
def test_the_seed_decides_and_the_global_state_stays(name, shape, options) -> None:
    before = torch.get_rng_state()
    one, two, other = (_make(name, shape, options, seed)[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_without_a_seed_the_global_state_decides() -> None:
    state = torch.get_rng_state()
    one = create("mlp", (2,), 1)
    two = create("mlp", (2,), 1)
    torch.set_rng_state(state)
    again = create("mlp", (2,), 1)
    torch.set_rng_state(state)
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, two.head.weight)


@pytest.mark.parametrize(
    ("name", "shape", "options", "said"),
    [
        ("preact-resnet", (3, 8, 8), {}, "did you mean 'preact-resnet18'"),
        ("wrn-28", (3, 8, 8), {}, "wrn-DEPTH-K"),
        ("wrn-15-2", (3, 8, 8), {}, "nearest is 16"),
        ("wrn-16-0", (3, 8, 8), {}, "k must be"),
        ("wrn-16-1", (3, 8, 8), {"drop": 0.1}, "did you mean 'dropout'"),
        ("wrn-16-1", (3, 8, 8), {"dropout": 2}, "dropout"),
        ("mlp", (5,), {"hiden": (3,)}, "did you mean 'hidden'"),
        ("mlp", (5,), {"hidden": ()}, "hidden"),
        ("mlp", (5,), {"hidden": (0,)}, "hidden"),
        ("mlp", (5,), {"activation": "gelu"}, "'relu'"),
        ("small-cnn", (5,), {}, "images"),
        ("small-cnn", (1, 3, 8), {}, "sides >= 4"),
        ("preact-resnet18", (5,), {}, "images"),
        ("timm:resnet18", (5,), {}, "images"),
        ("vit", (5,), {}, "images"),
        ("vit", (3, 8, 12), {"patch": 3}, "must divide"),
        ("vit", (3, 8, 8), {"width": 30}, "multiple of heads"),
    ],
)
def test_refusals(name: str, shape: tuple[int, ...], options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        create(name, shape, 3, **options)


def test_outputs_must_be_positive() -> None:
    with pytest.raises(ValueError, match="outputs"):
        create("mlp", (5,), 0)


def test_published_sizes() -> None:
    def size(name: str, shape: tuple[int, ...] = (3, 32, 32)) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in create(name, shape, 10).parameters())

    assert size("wrn-28-10") == 36_479_194
    assert size("wrn-16-4") == 2_748_890
    assert size("preact-resnet18") == 11_172_170
    assert 70_000 < size("small-cnn") < 90_000
    assert size("mlp", (5,)) == 6 * 128 + 129 * 128 + 129 * 10


def test_residual_blocks_add_their_input() -> None:
    model = create("preact-resnet18", (3, 8, 8), 2, seed=0, width=4)
    block = model.layer1[0]
    nn.init.zeros_(block.rest[-1].weight)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sizes = [z.shape[-1] for z in (model.layer1(model.stem(x)), model.layer2(model.layer1(model.stem(x))))]
    assert sizes == [8, 4]


def test_every_listed_network_is_made() -> None:
    for name in NETWORKS:
        with torch.device("meta"):
            assert create(name, (3, 32, 32), 2).taps


def test_timm_networks_by_name(tmp_path) -> None:
    pytest.importorskip("timm")
    from safetensors.torch import save_file

    model = create("timm:resnet10t", (1, 32, 32), 5, seed=0)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert model.taps == ("layer1", "layer2")
    assert split(model).head_name == "fc"
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    tuned = create("timm:resnet10t", (1, 32, 32), 7, seed=1, weights=tmp_path / "w.safetensors")
    assert torch.equal(tuned.conv1[0].weight, model.conv1[0].weight)
    assert tuned(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    for options, said in (
        ({"pretrained": True}, "nothing is downloaded"),
        ({"weights": tmp_path / "w.pth"}, "safetensors"),
        ({"colour": 3}, "colour"),
    ):
        with pytest.raises(ValueError, match=said):
            create("timm:resnet10t", (1, 32, 32), 5, **options)
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        create("timm:resnet81", (3, 32, 32), 5)
    with pytest.raises(ValueError, match="fits only"):
        create("timm:mobilenetv3_small_050", (3, 32, 32), 5, weights=tmp_path / "w.safetensors")


def test_without_timm_the_install_command_is_said(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=re.escape('pip install "omnimix[vision]"')):
        create("timm:resnet18", (3, 32, 32), 2)
