"""Feed-forward networks are found in every kind of model, swapped and put back; rows go to their experts."""

import copy

import pytest
import torch
from torch import nn

from omnimix.models.experts.base import Route, Routing, Slot, feed_forwards, logits_of, replace, slots, thaw, train_only
from omnimix.networks.language_model import LanguageModel

TOKENS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))


def tiny(kind: str) -> nn.Module:
    """A random model of a kind, in evaluation mode."""
    torch.manual_seed(0)
    if kind == "ours":
        return LanguageModel(11, width=8, heads=2, layers=2).eval()
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    plain = {**size, "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
    build = {
        "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=8, **size)),
        "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(intermediate_size=12, **plain)),
        "mistral": lambda t: t.MistralForCausalLM(
            t.MistralConfig(intermediate_size=12, num_key_value_heads=1, head_dim=4, **plain)
        ),
        "bert": lambda t: t.BertForMaskedLM(t.BertConfig(intermediate_size=12, **plain)),
        "opt": lambda t: t.OPTForCausalLM(t.OPTConfig(ffn_dim=12, word_embed_proj_dim=8, **plain)),
    }
    return build[kind](transformers).eval()


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama", "mistral", "bert", "opt"])
@torch.no_grad()
def test_equal_experts_are_the_dense_model_and_swapping_back_is_exact(kind):
    model, route, before = tiny(kind), Route(), {}
    expected, names = logits_of(model(TOKENS)), [*model.state_dict()]
    networks = feed_forwards(model)
    assert len(networks) == 2
    for network in networks:
        parts = network.modules(model)
        before |= replace(model, slots({"a": parts, "b": copy.deepcopy(parts)}, network, route))
    with pytest.raises(RuntimeError, match="before its experts were chosen"):
        model(TOKENS)
    routings = [Routing(only=1)]
    if kind != "opt":  # which joins the axes of sequences and tokens
        each, token = torch.tensor([[0, 1]]).repeat(4, 1), torch.arange(24).view(4, 6, 1) % 2
        share = torch.tensor([[0.3, 0.7]]).repeat(4, 1)
        routings += [Routing.of(token[0, :4], 2), Routing.of(each, 2, share), Routing.of(token, 2)]
    for routing in routings:
        route.routing = routing
        torch.testing.assert_close(logits_of(model(TOKENS)), expected, atol=1e-6, rtol=1e-5)
    copy.deepcopy(model)  # what the last pass left in the route does not hinder copies
    replace(model, before)
    assert [*model.state_dict()] == names
    assert torch.equal(logits_of(model(TOKENS)), expected)


def test_rows_see_their_own_experts_and_nothing_else():
    generator = torch.Generator().manual_seed(1)
    experts = {name: nn.Linear(3, 5) for name in "abc"}
    x = torch.randn(7, 2, 3, generator=generator, requires_grad=True)
    expert = torch.tensor([[0, 2], [2, 0], [0, 0], [2, 2], [0, 2], [2, 0], [0, 2]])
    weight = torch.rand(7, 2, generator=generator)
    route = Route()
    slot = Slot(experts, route)
    route.routing = Routing.of(expert, 3, weight)
    found = slot(x)
    oracle = torch.stack([
        sum(w * [*experts.values()][j](row) for j, w in zip(ids.tolist(), own, strict=True))
        for row, ids, own in zip(x, expert, weight, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(found, oracle)
    found.sum().backward()
    assert experts["b"].weight.grad is None
    torch.testing.assert_close(x.grad, torch.autograd.grad(oracle.sum(), x)[0])


def test_two_parts_of_tokens_are_one_network():
    up, down = nn.Linear(3, 6), nn.Linear(6, 3)
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"up": up, "down": down})])})
    (network,) = feed_forwards(model, ("blocks.*.up", "blocks.*.down"))
    other = copy.deepcopy([up, down])
    other[1].weight.data.neg_()
    route = Route()
    made = slots({"a": (up, down), "b": other}, network, route)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    expert = torch.arange(10).view(2, 5, 1) % 2
    route.routing = Routing.of(expert, 2)
    found = made[network.parts[1]](made[network.parts[0]](x).relu())
    whole = torch.where(expert == 0, down(up(x).relu()), other[1](other[0](x).relu()))
    torch.testing.assert_close(found, whole)


def test_what_does_not_fit_is_named():
    model = LanguageModel(11, width=8, heads=2)
    with pytest.raises(ValueError, match=r"fits no module; there are embed, blocks"):
        feed_forwards(model, "h.*.mlp")
    with pytest.raises(ValueError, match=r"fit different blocks; without a partner: .*norm"):
        feed_forwards(model, ("norm", "blocks.*.down"))
    with pytest.raises(ValueError, match=r"pattern must be given for Linear .* known are llama"):
        feed_forwards(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"expert must lie in 0\.\.1, 2 of 3 do not"):
        Routing.of(torch.tensor([[0], [2], [-1]]), 2)
    with pytest.raises(ValueError, match=r"shape \(2,\), a feed-forward network was given \(3, 1\)"):
        Routing.of(torch.tensor([[0], [1]]), 2).gather(torch.ones(3, 1))
    for name in ("a.b", "keys", ""):
        with pytest.raises(ValueError, match="names of experts"):
            Slot({name: nn.Linear(2, 2)}, Route())


def test_a_pattern_takes_no_namesake_elsewhere():
    bert = tiny("bert")
    assert feed_forwards(bert)[0].parts == (
        "bert.encoder.layer.0.intermediate",
        "bert.encoder.layer.0.output.dense",
    )  # not attention.output.dense


def test_freezing_is_undone_as_it_was():
    model = LanguageModel(11, width=8, heads=2)
    model.embed.requires_grad_(False)
    before = train_only(model, [model.blocks[0].up])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["blocks.0.up.weight", "blocks.0.up.bias"]
    thaw(model, before)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["embed.weight"]


class Added(nn.Module):
    """A network that adds the residual itself, as in Bloom."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x, residual, *, scale):
        return self.map(x) * scale + residual


def test_further_arguments_go_with_their_rows():
    experts, route = {name: Added() for name in "ab"}, Route()
    slot, a, b = Slot(experts, route), *experts.values()
    x, residual = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12.0).view(2, 2, 3)
    for ids in ([[0], [1]], [[1], [0]]):  # one row an expert: the whole residual would broadcast
        route.routing = Routing.of(torch.tensor(ids), 2)
        wanted = [(a, b)[i[0]](x[r], residual[r], scale=2.0) for r, i in enumerate(ids)]
        torch.testing.assert_close(slot(x, residual, scale=2.0), torch.stack(wanted))
    route.routing = Routing.of(torch.tensor([[0, 1], [1, 0]]), 2, torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    first, second = (one(x, residual, scale=2.0) for one in (a, b))
    wanted = torch.stack([0.25 * first[0] + 0.75 * second[0], 0.5 * (first[1] + second[1])])
    torch.testing.assert_close(slot(x, residual, scale=2.0), wanted)


def test_an_empty_batch_stays_empty():
    route, empty = Route(), torch.zeros(0, 2, dtype=torch.long)
    route.routing = Routing.of(empty, 2, torch.zeros(0, 2))
    assert Slot({"a": nn.Linear(3, 5), "b": nn.Linear(3, 5)}, route)(torch.zeros(0, 4, 3)).shape == (0, 4, 5)
