"""Where the norms sit, by hand and in the limits; the diagnostics by depth."""

import itertools
import math

import pytest
import torch
from torch import nn

from omnimix.models.regularize.depth import angular_distances, block_influence, deletion_costs, gradient_norms
from omnimix.models.regularize.mix_ln import MixLanguageModel, NormBlock, placements
from omnimix.networks.language_model import LanguageModel, token_losses


def model(placement, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MixLanguageModel(30, placement, width=16, heads=2).double()


def tokens(seed=0):
    return torch.randint(30, (3, 7), generator=torch.Generator().manual_seed(seed))


class Nothing(nn.Module):
    def forward(self, h, *args):
        return torch.zeros_like(h)


def still(placement, layers=4):
    return NormBlock(placement, Nothing(), Nothing(), lambda: nn.RMSNorm(2, eps=1e-12), layers)


def test_how_many_layers_come_first():
    assert [placements(n).count("post") for n in (12, 24, 32)] == [3, 6, 8]
    assert placements(100, 0.29).count("post") == 29
    assert placements(4, 0.5) == ["post", "post", "pre", "pre"]
    assert placements(4, 0.25, early="pre", late="post") == ["pre", "post", "post", "post"]
    with pytest.warns(UserWarning, match="less than one"):
        assert placements(3) == ["pre"] * 3


def test_silent_sublayers_by_hand():
    x = torch.tensor([[[3.0, 4.0]]])
    assert torch.equal(still("pre")(x), x)
    assert torch.equal(still("sandwich")(x), x)
    expected = torch.tensor([[[0.848528, 1.131371]]])
    torch.testing.assert_close(still("post")(x), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(still("deep")(x), expected, atol=1e-6, rtol=0)


def test_the_equations_of_each_placement():
    f, g = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def built(placement):
        block = NormBlock(placement, f, g, lambda: nn.RMSNorm(2), 8)
        norms = block.norms[placement]
        for i, norm in enumerate(norms):
            nn.init.constant_(norm.weight, 0.5 + i)
        return block(x), norms

    with torch.no_grad():
        out, (n1, n2) = built("pre")
        h = x + f(n1(x))
        torch.testing.assert_close(out, h + g(n2(h)))
        out, (n1, n2) = built("post")
        h = n1(x + f(x))
        torch.testing.assert_close(out, n2(h + g(h)))
        out, (n1, n2) = built("deep")
        h = n1(2 * x + f(x))  # (2 * 8) ** (1 / 4)
        torch.testing.assert_close(out, n2(2 * h + g(h)))
        out, (n1, n2, n3, n4) = built("sandwich")
        h = x + n3(f(n1(x)))
        torch.testing.assert_close(out, h + n4(g(n2(h))))


def test_post_layers_hand_on_a_normalised_stream():
    network = model(placements(4, 0.5))
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.square().mean(-1).sqrt()))
    network(tokens())
    for rms in seen[:2]:
        torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-4, rtol=0)
    assert (seen[-1] - 1).abs().max() > 1e-3


def test_pre_is_the_plain_language_model():
    plain = LanguageModel(30, width=16, layers=2, heads=2, tied=False).double()
    blocks = []
    for block in plain.blocks:

        class Feed(nn.Module):
            def __init__(self, block):
                super().__init__()
                self.up, self.down = block.up, block.down

            def forward(self, h):
                return self.down(nn.functional.gelu(self.up(h), approximate="tanh"))

        norms = iter((block.norm1, block.norm2))
        blocks.append(NormBlock("pre", block.attention, Feed(block), lambda norms=norms: next(norms), 2))
    expected = plain(tokens())
    plain.blocks = nn.ModuleList(blocks)
    assert torch.equal(plain(tokens()), expected)


def test_the_ends_of_alpha_and_equal_sizes():
    sizes = {sum(p.numel() for p in model(placements(4, alpha)).parameters()) for alpha in (0, 0.25, 0.5, 1)}
    assert len(sizes) == 1
    logits = [model(p)(tokens()) for p in (placements(4, 0), placements(4, 1), placements(4, 0.5))]
    assert torch.equal(logits[0], model(["pre"] * 4)(tokens()))
    assert torch.equal(logits[1], model(["post"] * 4)(tokens()))
    assert not torch.allclose(logits[2], logits[0])
    assert not torch.allclose(logits[2], logits[1])


def test_the_reference_code_with_the_same_weights():
    """Logits and gradients of pixeli99/MixLN at ff45826 (NORM_TYPE=post_pre, POST_NUM=1), recorded from its layers."""
    with torch.random.fork_rng():
        network = MixLanguageModel(30, ["post", "pre", "pre", "pre"], width=16, heads=2, inner=24).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, p in sorted(network.named_parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64) + (1 if p.ndim == 1 else 0))
    logits = network(tokens(1))
    for found, expected in (
        (logits[0, -1, :4], [1.4197289, 0.4268466, -1.3899537, -0.4224130]),
        (logits[2, 3, :4], [-0.7370500, 1.0678511, -1.3753336, 0.1731155]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected).double(), atol=2e-6, rtol=0)
    total = logits.logsumexp(-1).sum()
    assert float(total.detach()) == pytest.approx(83.0751026, abs=1e-4)
    total.backward()
    expected = torch.tensor([24.4577679, 21.8417851, 20.5660380, 16.6195355]).double()
    torch.testing.assert_close(gradient_norms(network.blocks), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_and_norms_in_float32(dtype):
    class Small(nn.Module):
        def forward(self, h):
            assert h.dtype == dtype
            return torch.full_like(h, 2**-10)

    block = NormBlock("pre", Small(), Small(), lambda: nn.LayerNorm(4, dtype=dtype), 1)
    stream = torch.ones(1, 1, 4)
    for _ in range(8):
        stream = block(stream)
    assert torch.equal(stream, torch.full_like(stream, 1 + 2**-6))
    assert block(stream.to(dtype)).dtype == dtype
    post = NormBlock("post", Small(), Small(), lambda: nn.LayerNorm(4, dtype=dtype), 1)
    wide = 3 * torch.arange(4.0) + 300  # the sum has more digits than half precision
    found = post(wide.view(1, 1, 4))
    plain = nn.functional.layer_norm(nn.functional.layer_norm(wide + 2**-10, (4,)) + 2**-10, (4,))
    torch.testing.assert_close(found[0, 0], plain)


@torch.no_grad()
def test_the_stream_of_a_model_in_bfloat16_is_float32():
    network = MixLanguageModel(30, placements(4, 0.5), width=16, heads=2).bfloat16()
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    assert network(tokens()).dtype == torch.bfloat16
    assert seen == [torch.float32] * 4


def test_initial_weights():
    network = MixLanguageModel(3000, ["post", "deep"], width=64, heads=4)
    assert float(network.embed.weight.std()) == pytest.approx(math.sqrt(0.4), rel=0.02)
    assert float(network.head.weight.std()) == pytest.approx(0.02, rel=0.02)
    post, deep = network.blocks
    assert float(post.feed.gate.weight.std()) == pytest.approx(0.02, rel=0.05)
    query, _, value = deep.attention.qkv.weight.chunk(3)
    assert float(query.std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(value.std()) == pytest.approx(1 / 8 * 16**-0.25, rel=0.05)


def test_weights_of_another_placement_do_not_load():
    first, second = model(["post", "pre"]), model(["post", "pre"], seed=1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(tokens()), second(tokens()))
    for other in (["pre", "pre"], ["deep", "pre"]):
        with pytest.raises(RuntimeError, match="norms"):
            model(other).load_state_dict(first.state_dict())


def test_refusals():
    with pytest.raises(ValueError, match="alpha must be"):
        placements(4, 1.5)
    with pytest.raises(ValueError, match="placement must be one of"):
        model(["pre", "middle"])
    with pytest.raises(ValueError, match="number of placements"):
        model([])


def test_squares_of_gradient_norms_add_up():
    network = model(placements(4, 0.5))
    with pytest.raises(ValueError, match="block 0 has no gradients"):
        gradient_norms(network.blocks)
    token_losses(network(tokens()), tokens(1)).mean().backward()
    norms = gradient_norms(network.blocks)
    assert norms.shape == (4,)
    rest = [network.embed, network.head, network.norm]
    total = torch.nn.utils.get_total_norm([p.grad for p in network.parameters()])
    torch.testing.assert_close(norms.square().sum() + gradient_norms(rest).square().sum(), total.square())


class Turn(nn.Module):
    def __init__(self, degrees):
        super().__init__()
        a = math.radians(degrees)
        self.matrix = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])

    def forward(self, h):
        return h @ self.matrix.T * 3


def test_angular_distance_and_influence_by_hand():
    blocks = nn.Sequential(Turn(0), Turn(90), Turn(180), Turn(60))
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    for last in (True, False):
        found = angular_distances(blocks, lambda: blocks(x), last=last)
        torch.testing.assert_close(found, torch.tensor([0, 0.5, 1, 1 / 3]), atol=1e-5, rtol=0)
        found = block_influence(blocks, lambda: blocks(x), last=last)
        torch.testing.assert_close(found, torch.tensor([0, 1, 2, 0.5]), atol=1e-5, rtol=0)


def test_only_valid_tokens_count():
    class Some(nn.Module):
        def forward(self, h):
            return torch.cat((h[:, :2], -h[:, 2:3], h[:, 3:]), dim=1), None

    block, x = Some(), torch.ones(2, 4, 3)
    valid = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    for last, expected in ((True, 1 / 2), (False, 1 / 5)):
        found = angular_distances([block], lambda: block(x), valid=valid, last=last)
        torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-6, rtol=0)
    assert float(angular_distances([block], lambda: block(x))) == 0
    with pytest.raises(ValueError, match="at least one token"):
        angular_distances([block], lambda: block(x), valid=valid * 0)
    with pytest.raises(ValueError, match="valid must have the shape"):
        angular_distances([block], lambda: block(x), valid=valid[:, :2])
    with pytest.raises(ValueError, match=r"did not call \[1\]"):
        angular_distances([block, Turn(0)], lambda: block(x))


def test_deleting_a_layer_is_leaving_it_out():
    network = model(["post", "pre", "pre"])

    def loss():
        return float(token_losses(network(tokens()), tokens(1)).mean().detach())

    whole, costs = loss(), deletion_costs(network.blocks, loss)
    blocks = network.blocks
    for cost, kept in zip(costs, reversed(list(itertools.combinations(blocks, 2))), strict=True):
        network.blocks = nn.ModuleList(kept)
        assert cost == pytest.approx(loss() - whole, abs=1e-6)
    network.blocks = blocks
    assert loss() == whole
