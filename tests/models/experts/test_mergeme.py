"""MergeME: hand values, limiting cases, brute force, on `LanguageModel` and on models of transformers."""

import copy
import warnings

import pytest
import torch
from torch import nn

from omnimix.models.experts.base import Slot, train_only
from omnimix.models.experts.mergeme import (
    Body,
    HeterogeneousMixture,
    Mixture,
    gate,
    gate_weights,
    log_likelihoods,
    mixture,
)  # fmt: skip
from omnimix.models.experts.router import Routed, balance, load_balance, top_k
from omnimix.models.merge import DareLinear, Linear, TaskArithmetic, Ties
from omnimix.networks.language_model import LanguageModel, rotation, token_losses


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


TOKENS = torch.randint(0, 20, (3, 7), generator=seeded())


def small():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel(20, width=8, layers=2, heads=2)


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2} | changes
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def moved(model, seed, size=0.3):
    """A copy whose weights went elsewhere."""
    other, g = copy.deepcopy(model), seeded(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=g))
    return other


def logits(out):
    return out if isinstance(out, torch.Tensor) else out.logits


def one_hot(i, n=2):
    return torch.eye(n)[i].expand(len(TOKENS), n)


@pytest.mark.parametrize(("make", "merger"), [(small, DareLinear()), (small, Linear()), (small, None), (llama, Ties())])
@torch.no_grad()
def test_experts_equal_to_the_base_are_the_base(make, merger):
    base = make()
    want = logits(base(TOKENS))
    for separate in (False, True):
        made = mixture(base, [copy.deepcopy(base) for _ in range(3)], merger, separate=separate)
        for rule, k in (("perplexity", 2), ("posterior", None), ("uniform", None)):
            weights = gate([base] * 3, TOKENS, rule=rule, k=k)
            torch.testing.assert_close(logits(made(TOKENS, weights=weights)), want)
        assert torch.equal(logits(made(TOKENS, weights=one_hot(1, 3))), want)
    trained = mixture(base, [copy.deepcopy(base) for _ in range(3)], merger, router=True)
    torch.testing.assert_close(logits(trained(TOKENS)), want)


@pytest.mark.parametrize("make", [small, llama])
@torch.no_grad()
def test_one_expert_with_all_its_own_modules_is_that_model(make):
    base = make()
    experts = {"a": moved(base, 1), "b": moved(base, 2)}
    if make is small:
        everything = ("blocks.*.attention", "blocks.*.norm1", "blocks.*.norm2", "norm", "embed", "head")
    else:
        everything = ("layers.*.self_attn", "layers.*.*norm", "norm", "embed_tokens", "lm_head")
    made = mixture(base, experts, separate=everything)
    for i, model in enumerate(experts.values()):
        assert torch.equal(logits(made(TOKENS, weights=one_hot(i))), logits(model(TOKENS)))
    alone = mixture(base, {"a": experts["a"]}, Linear())
    torch.testing.assert_close(logits(alone(TOKENS, weights=torch.ones(3, 1))), logits(experts["a"](TOKENS)))


def test_other_weights_are_merged_and_vectors_averaged():
    base = small()
    experts = [moved(base, 1), moved(base, 2)]
    made = mixture(base, experts, TaskArithmetic(lam=0.3), average=("*.qkv.*",)).model
    held, start, (a, b) = made.state_dict(), base.state_dict(), [one.state_dict() for one in experts]
    name = "blocks.0.attention.out.weight"
    torch.testing.assert_close(held[name], start[name] + 0.3 * (a[name] + b[name] - 2 * start[name]))
    for name in ("blocks.0.norm1.weight", "norm.bias", "blocks.1.attention.qkv.weight"):
        torch.testing.assert_close(held[name], (a[name] + b[name]) / 2)
    assert made.head.weight is made.embed.weight
    name = "embed.weight"  # tied to the head: merged once, under its first name, which seeds what DARE drops
    torch.testing.assert_close(held["head.weight"], start[name] + 0.3 * (a[name] + b[name] - 2 * start[name]))
    mean = mixture(base, experts, TaskArithmetic(lam=0.3), average=("head*",)).model.embed.weight
    torch.testing.assert_close(mean, (a[name] + b[name]) / 2)  # any of its names
    dropped = DareLinear()([{name: a[name]}, {name: b[name]}], {name: start[name]})
    assert torch.equal(mixture(base, experts, DareLinear()).model.head.weight, dropped[name])
    assert torch.equal(held["blocks.1.up.experts.1.weight"], b["blocks.1.up.weight"])
    assert torch.equal(base.state_dict()["norm.bias"], start["norm.bias"])


def test_weights_of_experts_by_brute_force():
    base, weights = small(), torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    experts = [copy.deepcopy(base) for _ in range(2)]
    for seed, model in enumerate(experts):
        for block in model.blocks:
            block.up, block.down = moved(block.up, seed), moved(block.down, seed)
    made = mixture(base, experts)
    h = base.embed(TOKENS)
    angles = rotation(TOKENS.shape[1], base.head_size, h)
    for block, first, second in zip(base.blocks, experts[0].blocks, experts[1].blocks, strict=True):
        h = h + block.attention(block.norm1(h), *angles)
        inner = block.norm2(h)
        outs = [one.down(nn.functional.gelu(one.up(inner), approximate="tanh")) for one in (first, second)]
        h = h + weights[:, 0, None, None] * outs[0] + weights[:, 1, None, None] * outs[1]
    torch.testing.assert_close(made(TOKENS, weights=weights), base.head(base.norm(h)))


def test_two_experts_of_disjoint_units_are_one_of_double_width_with_half_the_output():
    base = llama()
    experts = [moved(base, 1), moved(base, 2)]
    made = mixture(base, experts, Linear())
    block = made.model.model.layers[0].mlp
    x = torch.randn(3, 7, 8, generator=seeded(5))
    made.shares.set(torch.full((3, 2), 0.5))
    a, b = (one.model.layers[0].mlp for one in experts)
    gated = torch.cat([nn.functional.silu(m.gate_proj(x)) * m.up_proj(x) for m in (a, b)], -1)
    wide = gated @ torch.cat([a.down_proj.weight, b.down_proj.weight], 1).T / 2
    torch.testing.assert_close(block(x), wide)


def test_perplexities_by_hand():
    t = torch.tensor([10])
    nats = -10 * torch.tensor([[20.0, 40.0, 100.0]]).log()
    torch.testing.assert_close(gate_weights(nats, t, k=2), torch.tensor([[0.506250, 0.493750, 0.0]]), atol=1e-6, rtol=0)
    weights = gate_weights(nats, t, rule="posterior", k=2)
    assert float(weights[0, 0] / weights[0, 1]) == pytest.approx(1024, rel=1e-3)
    sharper = gate_weights(nats, t, k=2, temperature=0.01)
    assert float(sharper[0, 0]) == pytest.approx(1 / (1 + 2.718281828**-2.5), rel=1e-5)
    assert torch.equal(gate_weights(nats, t, k=1), torch.tensor([[1.0, 0, 0]]))
    tie = gate_weights(torch.tensor([[-3.0, -3.0, -3.0]]), torch.tensor([2]), k=2)
    assert torch.equal(tie, torch.tensor([[0.5, 0.5, 0]]))
    silent = gate_weights(torch.zeros(1, 3), torch.tensor([0]), k=2)
    torch.testing.assert_close(silent, torch.full((1, 3), 1 / 3))
    chosen, weight = top_k(torch.tensor([0.0, 2.0, 1.0]), 2)
    assert chosen.tolist() == [1, 2]
    torch.testing.assert_close(weight, torch.tensor([2.0, 1.0]).softmax(0))


@pytest.mark.parametrize("rule", ["perplexity", "posterior", "uniform"])
def test_weights_sum_to_one_over_the_best_and_are_the_same_in_every_layer(rule):
    nats, size = -30 * torch.rand(6, 4, generator=seeded(3)), torch.tensor([9, 9, 1, 5, 0, 2])
    for k in (1, 2, 4):
        weights = gate_weights(nats, size, rule=rule, k=k)
        torch.testing.assert_close(weights.sum(1), torch.ones(6))
        known = size > 0
        assert ((weights > 0).sum(1)[known] == k).all()
        best = nats.argsort(descending=True) if rule != "uniform" else torch.arange(4).expand(6, 4)
        assert all({*best[i, :k].tolist()} == {*weights[i].nonzero()[:, 0].tolist()} for i in range(6) if known[i])
    base = small()
    made = mixture(base, [moved(base, 1), moved(base, 2)])
    assert len({id(part.route) for part in made.modules() if isinstance(part, Slot)}) == 1


def test_likelihoods_are_of_the_prompt_alone():
    g = [small(), moved(small(), 3)]
    lengths = torch.tensor([7, 4, 1])
    found, size = log_likelihoods(g, TOKENS, lengths)
    assert size.tolist() == [6, 3, 0]
    for i, one in enumerate(g):
        for row, length in enumerate(lengths.tolist()):
            logs = one(TOKENS[row : row + 1]).log_softmax(-1)[0]
            want = sum(float(logs[j - 1, TOKENS[row, j]].detach()) for j in range(1, length))
            assert float(found[row, i]) == pytest.approx(want, abs=1e-4)
    changed = TOKENS.clone()
    changed[1, 4:] = 0
    assert torch.equal(log_likelihoods(g, changed, lengths)[0], found)
    assert g[0].training


def test_a_router_learns_and_is_balanced():
    base = small()
    made = mixture(base, [moved(base, 1), moved(base, 2)], Linear(), router=True, k=1, generator=seeded(1))
    again = mixture(base, [moved(base, 1), moved(base, 2)], Linear(), router=True, k=1, generator=seeded(1))
    assert torch.equal(made(TOKENS), again(TOKENS))
    both = mixture(base, [moved(base, 1), moved(base, 2)], Linear(), router=True, k=2)
    train_only(both, [part.router for part in both.modules() if isinstance(part, Routed)])
    out = both(TOKENS)
    (token_losses(out[:, :-1], TOKENS[:, 1:]).mean() + 0.01 * balance(both)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in both.parameters() if p.requires_grad)
    assert sum(p.requires_grad for p in both.parameters()) == 2
    even = torch.zeros(4, 2)
    assert float(load_balance(even, torch.tensor([[0], [1], [0], [1]]))) == pytest.approx(1)
    sure = torch.tensor([[50.0, -50.0]]).expand(4, 2)
    assert float(load_balance(sure, torch.zeros(4, 1, dtype=torch.long))) == pytest.approx(2)


def test_generation_and_caches():
    base = llama()
    experts = [moved(base, 1), moved(base, 2)]
    weights = torch.tensor([[0.3, 0.7]]).expand(3, 2)
    for separate in (False, True):
        made = mixture(base, experts, separate=separate)
        with made.routed(weights) as model:
            said = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=3, do_sample=False)
        with pytest.raises(RuntimeError, match="before its experts were chosen"):
            made.model(TOKENS)
        tokens = TOKENS
        for _ in range(3):  # without any cache
            tokens = torch.cat([tokens, made(tokens, weights=weights, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(said, tokens)
    with pytest.raises(ValueError, match="cannot share a cache"):
        made(TOKENS, weights=weights, use_cache=True)


def test_several_architectures():
    one, two = llama(), llama(hidden_size=12, num_hidden_layers=1)
    bodies = {"one": Body(one), "two": Body(two)}
    with torch.no_grad():
        alone = HeterogeneousMixture({"one": Body(one)}, one.get_input_embeddings(), one.lm_head)
        torch.testing.assert_close(alone(TOKENS), one(TOKENS).logits)
    made = HeterogeneousMixture(bodies, one.get_input_embeddings(), one.lm_head, k=2, hidden=5, generator=seeded())
    token_losses(made(TOKENS)[:, :-1], TOKENS[:, 1:]).mean().backward()
    given = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {n.split(".")[0] for n in given} == {"embedding", "experts", "router", "head"}
    assert not any(".body." in name for name in given)
    assert {f"experts.{n}.{way}.{i}.weight" for n in bodies for way in ("inwards", "outwards") for i in (0, 2)} <= given
    made.train()
    assert not made.experts["one"].body.training
    chosen, weight = made.gate(made.embedding(TOKENS))
    z = [made.experts[name](made.embedding(TOKENS), None) for name in bodies]
    h = sum((weight * (chosen == i)).sum(1)[:, None, None] * z[i] for i in range(2))
    torch.testing.assert_close(made(TOKENS), made.head(h))
    assert torch.equal(copy.deepcopy(made)(TOKENS), made(TOKENS))  # its last pass does not hinder copies


@pytest.mark.parametrize("make", [small, llama])
def test_padding_on_the_left_is_no_part_of_the_prompt(make):
    models = [make(), moved(make(), 3)]
    lengths = torch.tensor([7, 4, 1])
    expected, size = log_likelihoods(models, TOKENS, lengths)
    padded = torch.zeros(3, 9, dtype=torch.long)
    valid = torch.arange(9) >= 9 - lengths[:, None]
    for row, length in enumerate(lengths.tolist()):
        padded[row, 9 - length :] = TOKENS[row, :length]
    found, same = log_likelihoods(models, padded, valid=valid.long())
    torch.testing.assert_close(found, expected)
    assert torch.equal(same, size)
    torch.testing.assert_close(gate(models, padded, valid=valid), gate(models, TOKENS, lengths))
    right = torch.arange(7) < lengths[:, None]
    torch.testing.assert_close(log_likelihoods(models, TOKENS, valid=right)[0], expected)


def test_padding_does_not_count_for_the_balance():
    base = small()
    made = mixture(base, [moved(base, 1), moved(base, 2)], Linear(), router=True, k=1)
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, Routed):
                part.router.weight.normal_(generator=seeded(2))
    padded = torch.cat((TOKENS, torch.zeros(3, 5, dtype=torch.long)), 1)
    valid = torch.arange(12).expand(3, 12) < 7
    made(TOKENS)
    expected = balance(made)
    made(padded)  # what comes later is not seen by what comes before
    torch.testing.assert_close(balance(made, valid), expected)
    assert abs((balance(made) - expected).item()) > 1e-3
    with pytest.raises(ValueError, match="valid must say of 36 tokens"):
        balance(made, valid[:2])


@torch.no_grad()
def test_a_body_in_half_precision_keeps_its_positions():
    one = llama()
    frequencies = one.model.rotary_emb.inv_freq
    for parameter in one.parameters():  # as when it is read from a file: buffers stay
        parameter.data = parameter.data.bfloat16()
    made = HeterogeneousMixture({"one": Body(one)}, one.get_input_embeddings(), one.lm_head)
    assert torch.equal(made.experts["one"].body.layers.rotary_emb.inv_freq, frequencies)
    assert torch.equal(made(TOKENS), one(TOKENS).logits)
    other = HeterogeneousMixture({"one": Body(llama())}, one.get_input_embeddings(), one.lm_head)
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    assert other(TOKENS).dtype == torch.bfloat16


@torch.no_grad()
def test_an_empty_batch_stays_empty():
    base, none = small(), TOKENS[:0]
    for separate in (False, True):
        made = mixture(base, [base, moved(base, 1)], separate=separate)
        assert made(none, weights=torch.zeros(0, 2)).shape == (0, 7, 20)
    made = mixture(base, [base, moved(base, 1)], router=True)
    assert made(none).shape == (0, 7, 20)
    assert float(balance(made)) == 0
    several = HeterogeneousMixture({"a": nn.Linear(8, 8)}, base.embed, base.head, widths={"a": 8})
    assert several(none).shape == (0, 7, 20)


def test_the_sequence_router_does_not_see_padding():
    one = llama()
    made = HeterogeneousMixture({"a": Body(one), "b": Body(moved(one, 1))}, one.get_input_embeddings(), one.lm_head)
    valid = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    full = made(TOKENS, valid)
    for row, length in enumerate((7, 4, 2)):
        torch.testing.assert_close(full[row, :length], made(TOKENS[row : row + 1, :length])[0])


def test_what_does_not_fit_is_refused():
    base = small()
    for call, message in (
        (lambda: mixture(base, []), "experts must hold at least one"),
        (lambda: mixture(base, {"a.b": base}), "names of experts"),
        (lambda: mixture(base, [base], separate="nothing"), "pattern 'nothing' fits no module"),
        (lambda: mixture(base, [base], average=["nothing*"]), r"average: pattern 'nothing\*' fits no weight"),
        (lambda: mixture(base, [base], router=True, separate=True), "leave router=False"),
        (lambda: mixture(base, [base], router=True, k=2), "k must be at most the number of experts, 1"),
        (lambda: mixture(base, [LanguageModel(20, width=8, layers=1, heads=2)]), "only some have"),
        (lambda: mixture(llama(), [llama(num_key_value_heads=1)]), "num_key_value_heads 1 for 2"),
        (lambda: mixture(base, [base])(TOKENS), "weights must be given"),
        (lambda: mixture(base, [base])(TOKENS, weights=torch.ones(3, 2)), r"weights must be \(B, 1\), got \(3, 2\)"),
        (lambda: mixture(base, [base])(TOKENS, weights=torch.full((3, 1), 0.5)), "sum to 1 in every row"),
        (lambda: gate([base], TOKENS, k=2), "k must lie between 1 and the number of experts, 1, got 2"),
        (lambda: gate([base], TOKENS, torch.ones(3), valid=TOKENS > 0), "not both"),
        (lambda: gate([base], TOKENS, valid=TOKENS[0] > 0), "shape of tokens"),
        (lambda: gate([base], TOKENS, rule="best"), "rule must be one of"),
        (lambda: HeterogeneousMixture({"a": nn.Linear(3, 3)}, base.embed, base.head), "widths must name 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert isinstance(mixture(base, [base]), Mixture)
