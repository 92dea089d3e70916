import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.networks import create
from omnimix.samples.saliency import Attention, attention, watch_attention


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Plain(nn.Module):
    """Two layers of attention over patches of 4 x 4 behind `prefix` tokens, in any way that is known."""

    def __init__(self, way="product", prefix=1, registers=0, conv=True, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patch = nn.Conv2d(2, 12, 4, stride=4) if conv else nn.Linear(32, 12)
            self.cls_token = nn.Parameter(torch.randn(1, prefix - registers, 12))
            self.reg_token = nn.Parameter(torch.randn(1, registers, 12))
            self.layers = nn.ModuleList([nn.Linear(12, 36) for _ in range(2)])
            self.head = nn.Linear(12, 4)
        self.way, self.conv, self.dropout = way, conv, nn.Dropout(dropout)

    def forward(self, x):
        h = self.patch(x).flatten(2).mT if self.conv else self.patch(F.unfold(x, 4, stride=4).mT)
        h = torch.cat([t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token)] + [h], dim=1)
        self.pairs = []
        for layer in self.layers:
            q, k, v = layer(h).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            self.pairs.append((q.detach(), k.detach()))
            if self.way == "product":
                mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 * self.training, scale=3.0)
            else:
                scores = 3.0 * q @ k.mT
                softmax = {"method": torch.Tensor.softmax, "functional": F.softmax, "torch": torch.softmax}[self.way]
                mixed = self.dropout(softmax(scores, -1)) @ v
            h = h + mixed.transpose(1, 2).flatten(2)
        return self.head(h[:, 0])

    def weights(self, layer=-1):
        q, k = self.pairs[layer]
        return (3.0 * q @ k.mT).softmax(dim=-1)


X = torch.randn(5, 2, 8, 12, generator=draw())


@pytest.mark.parametrize("way", ["product", "method", "functional", "torch"])
def test_the_class_token_looks_at_patches(way):
    model = Plain(way)
    maps = attention(model, X)
    assert maps.shape == (5, 1, 2, 3)
    torch.testing.assert_close(maps.flatten(1), model.weights().mean(dim=1)[:, 0, 1:])
    torch.testing.assert_close(attention(model, X, patches=True).flatten(1), model.weights()[:, :, 1:, 1:].mean((1, 2)))


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize(("prefix", "registers"), [(0, 0), (1, 0), (2, 0), (4, 4), (5, 4)])
def test_tokens_before_the_patches(prefix, registers, conv):
    model = Plain(prefix=prefix, registers=registers, conv=conv)
    maps, weights = attention(model, X), model.weights().mean(dim=1)
    looks = weights[:, 0] if prefix > registers else weights[:, prefix:].mean(dim=1)
    assert maps.shape == (5, 1, 2, 3)
    torch.testing.assert_close(maps.flatten(1), looks[:, prefix:])


def test_a_training_pass_is_watched_as_it_is():
    model = Plain("functional", dropout=0.5)
    outputs = []
    for watched in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            if watched:
                with watch_attention(model) as seen:
                    outputs.append(model(X))
            else:
                outputs.append(model(X))
    assert torch.equal(*outputs)
    maps = seen.maps(5, (8, 12))
    torch.testing.assert_close(maps.flatten(1), model.weights().mean(dim=1)[:, 0, 1:])  # without the dropout
    assert not maps.requires_grad
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_block_by_name_and_networks_of_this_package():
    model = create("vit", (2, 8, 12), 4, seed=0, depth=3, width=16)
    last = [attention(model, X, block) for block in (None, "block3", "block1")]
    assert torch.equal(last[0], last[1])
    assert not torch.equal(last[0], last[2])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    h = model.block2(model.block1(model.tokens(X)))
    norm, layer = model.block3.attention
    q, k, _ = layer.qkv(norm(h)).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 2).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(last[0].flatten(1), weights[:, 0, 1:])
    with pytest.raises(ValueError, match="block must be one of"):
        attention(model, X, "block4")
    with pytest.raises(ValueError, match="no attention"):
        attention(model, X, "tokens")


def test_masks_and_groups_of_keys():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = torch.tensor([[False, True, True, True, False, True]])

        def forward(self, x):
            k = x.flatten(2).mT.unsqueeze(1)
            q = k.mean(dim=2, keepdim=True).expand(-1, 2, -1, -1)
            return F.scaled_dot_product_attention(q, k, k, self.mask, enable_gqa=True).flatten(1)

    x = torch.randn(2, 4, 2, 3, generator=draw())
    maps = attention(Pooled(), x)  # a query alone pools the patches
    k = x.flatten(2)
    scores = torch.einsum("bd,bdn->bn", k.mean(dim=2), k) / 2
    expected = scores.masked_fill(~Pooled().mask, -torch.inf).softmax(dim=1)
    torch.testing.assert_close(maps.flatten(1), expected)


def test_looking_leaves_no_trace():
    model = Plain("functional", dropout=0.5)
    state = torch.get_rng_state()
    maps = Attention()(X, Context(draw(), torch.arange(5) % 4, om.Split(model), om.Classification(4)))
    assert torch.equal(maps, Attention(model)(X, Context(draw())))
    assert Attention(model).needs == ()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not maps.requires_grad


def test_half_precision_gives_float32():
    for dtype in (torch.bfloat16, torch.float16):
        model = Plain().to(dtype)
        maps = attention(model, X.to(dtype))
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, attention(Plain(), X), atol=0.05, rtol=0.1)


def test_refusals():
    with pytest.raises(ValueError, match=r"no attention between the patches.*'vit'"):
        attention(create("small-cnn", (2, 8, 12), 3), X)
    with pytest.raises(ValueError, match="has been set up"):
        Attention()(X, Context(draw()))
    with pytest.raises(ValueError, match="teacher"):
        Attention("vit")

    class Odd(nn.Module):
        def forward(self, x):
            q = torch.ones(len(x), 1, 52, 2)
            return F.scaled_dot_product_attention(q, q, q)

    with pytest.raises(ValueError, match="52 tokens of Odd are no grid"):
        attention(Odd(), torch.ones(1, 2, 7, 7))


TIMM = [
    ("deit_tiny_patch16_224", {}, 0),
    ("deit_tiny_distilled_patch16_224", {}, 0),
    ("vit_tiny_patch16_224", {"reg_tokens": 4, "qk_norm": True}, 0),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "reg_tokens": 4}, 4),
    ("eva02_tiny_patch14_224", {"patch_size": 16}, 0),
]


@pytest.mark.parametrize(("name", "options", "first"), TIMM)
def test_timm_fused_and_not(name, options, first):
    timm = pytest.importorskip("timm")
    small = {"img_size": (32, 48), "num_classes": 3, "depth": 2, "embed_dim": 24, "num_heads": 3, "in_chans": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, **small, **options)
        x = torch.randn(2, 2, 32, 48)
    layer, found, dropped = model.blocks[-1].attn, [], []
    for fused in (True, False):
        layer.fused_attn = fused
        handle = layer.attn_drop.register_forward_hook(lambda *seen: dropped.append(seen[1][0]))
        found.append(attention(model, x))
        handle.remove()
    torch.testing.assert_close(*found)
    before = dropped[0].shape[-1] - 6
    looks = dropped[0].mean(dim=1)
    looks = looks[:, 0] if not first else looks[:, first:].mean(dim=1)
    torch.testing.assert_close(found[0].flatten(1), looks[:, before:])
    assert found[0].shape == (2, 1, 2, 3)


@pytest.mark.parametrize("registers", [0, 2])
def test_transformers_tell_the_same(registers):
    t = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3, "image_size": 16}
    small |= {"patch_size": 8, "attn_implementation": "eager"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if registers:
            config = t.Dinov2WithRegistersConfig(**small, num_register_tokens=registers)
            model = t.Dinov2WithRegistersForImageClassification(config)
        else:
            model = t.ViTForImageClassification(t.ViTConfig(**small, intermediate_size=32))
        x = torch.randn(2, 3, 16, 16)
    told = model.eval()(x, output_attentions=True).attentions[-1].mean(dim=1)[:, 0, -4:]
    for way in ("eager", "sdpa"):
        model.set_attn_implementation(way)
        torch.testing.assert_close(attention(model, x).flatten(1), told)


def test_torchvision_in_both_modes():
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.VisionTransformer(16, 8, 2, 4, 16, 16, num_classes=3)
        x = torch.randn(2, 3, 16, 16)
    maps = attention(model, x)
    model.train()
    with watch_attention(model) as seen:
        model(x)
    torch.testing.assert_close(seen.maps(2, (16, 16)), maps)
    inputs = []
    last = model.encoder.layers[-1].self_attention
    last.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model(x)
    told = last(inputs[0], inputs[0], inputs[0], need_weights=True)[1]
    torch.testing.assert_close(maps.flatten(1), told[:, 0, 1:])
