"""Branch-train-mix: limits, a brute-force oracle, routers that learn."""

import copy

import pytest
import torch

from omnimix.models.experts.base import train_only
from omnimix.models.experts.btx import BTX
from omnimix.networks.language_model import LanguageModel, token_losses

TOKENS = torch.randint(0, 13, (3, 7), generator=torch.Generator().manual_seed(0))


def branches(spread: float = 0.3, layers: int = 1) -> dict[str, LanguageModel]:
    """Three branches of one model."""
    torch.manual_seed(0)
    seed = LanguageModel(13, width=8, layers=layers, heads=2)
    made = {name: copy.deepcopy(seed) for name in ("law", "news", "code")}
    for place, model in enumerate(made.values()):
        generator = torch.Generator().manual_seed(place)
        for value in model.parameters():
            value.data.add_(torch.randn(value.shape, generator=generator), alpha=spread)
    return made


@pytest.mark.parametrize("top", [1, 2, 3])
@torch.no_grad()
def test_equal_branches_are_their_seed_under_any_router(top):
    seed = branches()["law"]
    btx = BTX({"a": seed, "b": copy.deepcopy(seed), "c": copy.deepcopy(seed)}, top=top)
    for router in btx.routers:
        router.weight.normal_(std=3)
    torch.testing.assert_close(btx(TOKENS), seed(TOKENS), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_experts_are_the_branches_and_the_rest_is_their_mean():
    made = branches()
    before = {name: copy.deepcopy(model.state_dict()) for name, model in made.items()}
    state = BTX(made).state_dict()
    for name, model in made.items():
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before[name].items())
        assert torch.equal(state[f"model.blocks.0.up.experts.{name}.weight"], before[name]["blocks.0.up.weight"])
        assert torch.equal(state[f"model.blocks.0.down.experts.{name}.bias"], before[name]["blocks.0.down.bias"])
    for key in ("embed.weight", "blocks.0.attention.qkv.weight", "blocks.0.norm2.bias"):
        torch.testing.assert_close(state[f"model.{key}"], torch.stack([one[key] for one in before.values()]).mean(0))


@torch.no_grad()
def test_each_token_by_a_loop():
    btx = BTX(branches(), top=2, generator=torch.Generator().manual_seed(3))
    btx.routers[0].weight.mul_(50)
    block, inner = btx.model.blocks[0], {}
    block.norm2.register_forward_hook(lambda module, given, out: inner.update(x=out))
    block.down.register_forward_hook(lambda module, given, out: inner.update(y=out))
    btx(TOKENS)
    shares = torch.zeros(3)
    for x, y in zip(inner["x"].flatten(0, 1), inner["y"].flatten(0, 1), strict=True):
        scores = btx.routers[0](x)
        best = scores.argsort(descending=True)[:2]
        gates = scores[best].exp() / scores[best].exp().sum()
        expected = 0
        for gate, i in zip(gates, best.tolist(), strict=True):
            name = ("law", "news", "code")[i]
            hidden = torch.nn.functional.gelu(block.up.experts[name](x), approximate="tanh")
            expected = expected + gate * block.down.experts[name](hidden)
            shares[i] += 1 / (2 * 21)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
    probability = btx.routers[0](inner["x"]).softmax(-1).mean((0, 1))
    assert btx.balance_loss().item() == pytest.approx(0.01 * 3 * (shares * probability).sum().item(), rel=1e-5)


def test_even_routing_has_balance_one_and_one_for_all_has_n():
    btx = BTX(branches(), alpha=1.0, top=1)
    with torch.no_grad():
        btx.routers[0].weight.zero_()
        btx(TOKENS)
        assert btx.balance_loss().item() == pytest.approx(1)
        btx.model.blocks[0].norm2.bias.fill_(1)
        btx.routers[0].weight[0].fill_(100)
        btx.model.blocks[0].norm2.weight.zero_()
        btx(TOKENS)
        assert btx.balance_loss().item() == pytest.approx(3)


def test_routers_learn_alone_and_copies_are_their_own():
    btx = BTX(branches(layers=2), generator=torch.Generator().manual_seed(0))
    train_only(btx, btx.routers)
    names = [name for name, value in btx.named_parameters() if value.requires_grad]
    assert names == [f"model.blocks.{i}.up.router.weight" for i in range(2)]
    optimizer = torch.optim.Adam(btx.parameters(), 0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = token_losses(btx(TOKENS[:, :-1]), TOKENS[:, 1:]).mean()
        (loss + btx.balance_loss()).backward()
        assert all(router.weight.grad.abs().max() > 0 for router in btx.routers)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    twin = copy.deepcopy(btx)
    assert torch.equal(twin(TOKENS), btx(TOKENS))
    twin.routers[0].weight.data.add_(1)
    assert not torch.equal(twin.state_dict()["model.blocks.0.up.router.weight"], btx.routers[0].weight)
    again = BTX(branches(layers=2), generator=torch.Generator().manual_seed(1))
    again.load_state_dict(btx.state_dict())
    assert torch.equal(again(TOKENS), btx(TOKENS))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers_models(kind):
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 13, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=8, **size)
    else:
        plain = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
        config = transformers.LlamaConfig(**plain, **size)
    seed = transformers.AutoModelForCausalLM.from_config(config).eval()
    btx = BTX({"a": seed, "b": copy.deepcopy(seed)})
    torch.testing.assert_close(btx(TOKENS).logits, seed(TOKENS).logits, atol=1e-6, rtol=1e-5)
    (btx(TOKENS, labels=TOKENS).loss + btx.balance_loss()).backward()
    assert btx.routers[0].weight.grad.abs().max() > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one model"):
        BTX({})
    with pytest.raises(ValueError, match="k must be at most the number of experts, 3, got 4"):
        BTX(branches(), top=4)
    with pytest.raises(ValueError, match="not called yet"):
        BTX(branches()).balance_loss()
    with pytest.raises(ValueError, match="alpha"):
        BTX(branches(), alpha=-1)
    with pytest.raises(ValueError, match="same weights"):
        BTX({"a": branches()["law"], "b": branches(layers=2)["law"]})
