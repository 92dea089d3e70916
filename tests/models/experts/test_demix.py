"""DEMix layers: hard routing, exact gradients, experts added and removed; tiny models throughout."""

import copy
import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from omnimix.models.experts.demix import DEMix
from omnimix.networks.language_model import LanguageModel, token_losses

DOMAINS = ("law", "news", "code")


def made(domains=DOMAINS, apart=True) -> DEMix:
    """A small model whose experts differ."""
    torch.manual_seed(0)
    demix = DEMix(LanguageModel(13, width=8, layers=2, heads=2), domains)
    if apart:
        for place, name in enumerate(domains):
            for part in demix.expert(name):
                for value in part.parameters():
                    value.data.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(place)), alpha=0.3)
    return demix


def batch(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 13, (rows, 6), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(model, inputs, targets, domain):
    return token_losses(model(inputs, domain=domain), targets).mean()


def gradients(model) -> dict[str, torch.Tensor | None]:
    return {name: value.grad for name, value in model.named_parameters()}


@torch.no_grad()
def test_rows_of_many_domains_are_as_each_alone():
    demix, (inputs, _) = made(), batch(6)
    ids = torch.tensor([2, 0, 1, 1, 2, 0])
    together = demix(inputs, domain=ids)
    alone = torch.cat([demix(row[None], domain=DOMAINS[i]) for row, i in zip(inputs, ids.tolist(), strict=True)])
    torch.testing.assert_close(together, alone)
    assert torch.equal(together, demix(inputs, domain=[DOMAINS[i] for i in ids]))
    assert (together - demix(inputs, domain="law")).abs().max() > 0.01


@torch.no_grad()
def test_experts_start_as_the_dense_model_and_come_back_as_one():
    torch.manual_seed(1)
    model = LanguageModel(13, width=8, layers=2, heads=2)
    (inputs, _), before = batch(3), model.state_dict()
    expected = model(inputs)
    demix = DEMix(model, DOMAINS)
    assert "model.blocks.1.down.experts.news.weight" in demix.state_dict()
    assert all(torch.equal(demix(inputs, domain=name), expected) for name in DOMAINS)
    demix.expert("news")[0].weight.add_(1)
    back = demix.dense("code")
    assert back.state_dict().keys() == before.keys()
    assert torch.equal(back(inputs), expected)


def test_one_pass_over_all_domains_has_the_gradients_of_one_pass_a_domain():
    one, each = made(), made()
    inputs, targets = batch(6)
    loss_of(one, inputs, targets, torch.arange(3).repeat(2)).backward()
    for place, name in enumerate(DOMAINS):
        (loss_of(each, inputs[place::3], targets[place::3], name) / 3).backward()
    for name, value in gradients(each).items():
        torch.testing.assert_close(value, gradients(one)[name], atol=1e-7, rtol=1e-4)
        assert value.abs().max() > 0


def test_a_step_on_one_domain_leaves_other_experts_and_their_moments_bit_for_bit():
    demix = made()
    optimizer = torch.optim.AdamW(demix.parameters(), 0.01, weight_decay=0.1)
    inputs, targets = batch(6)
    loss_of(demix, inputs, targets, torch.arange(3).repeat(2)).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy((demix.state_dict(), optimizer.state_dict()["state"]))
    loss_of(demix, inputs, targets, "news").backward()
    optimizer.step()
    after, moments = demix.state_dict(), optimizer.state_dict()["state"]
    for place, (name, _) in enumerate(demix.named_parameters()):
        idle = ".experts." in name and ".news." not in name
        assert torch.equal(before[0][name], after[name]) == idle, name
        assert torch.equal(before[1][place]["exp_avg"], moments[place]["exp_avg"]) == idle, name


def test_adapting_a_new_expert_changes_no_other_domain():
    demix, (inputs, targets) = made(), batch(4)
    old = {name: demix(inputs, domain=name).detach() for name in DOMAINS}
    demix.add("health", like="news")
    assert demix.domains == (*DOMAINS, "health")
    assert torch.equal(demix(inputs, domain="health"), old["news"])
    before = demix.adapt("health")
    optimizer = torch.optim.AdamW(demix.parameters(), 0.01, weight_decay=0.1)
    start = loss_of(demix, inputs, targets, "health").item()
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(demix, inputs, targets, "health").backward()
        optimizer.step()
    assert loss_of(demix, inputs, targets, "health").item() < start
    assert all(torch.equal(demix(inputs, domain=name), old[name]) for name in DOMAINS)
    assert {name for name, p in demix.named_parameters() if p.requires_grad} == {
        name for name, _ in demix.named_parameters() if ".health." in name
    }
    with pytest.raises(ValueError, match="has an expert already"):
        demix.add("health", like="law")
    assert all(before.values())


def test_removal_leaves_nothing_and_proves_it():
    demix, (inputs, targets) = made(), batch(6)
    optimizer = torch.optim.Adam(demix.parameters())
    loss_of(demix, inputs, targets, torch.arange(3).repeat(2)).backward()
    optimizer.step()
    gone = [value for part in demix.expert("news") for value in part.parameters()]
    demix.train()
    removal = demix.remove("news", probe=inputs, optimizer=optimizer)
    assert removal.proved
    assert demix.training
    assert (removal.tensors, removal.parameters) == (8, 2 * (8 * 32 + 32 + 32 * 8 + 8))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in demix.parameters()}
    assert not held & {id(p) for p in gone}
    assert not any(p in optimizer.state for p in gone)
    assert not any("news" in name for name in demix.state_dict())
    with pytest.raises(ValueError, match=r"'news' has no expert; there are law, code"):
        demix(inputs, domain="news")
    with pytest.raises(ValueError, match=r"expert must lie in 0\.\.1"):
        demix(inputs, domain=torch.tensor([0, 1, 2, 0, 1, 2]))
    demix.remove("law")
    with pytest.raises(ValueError, match="only expert"):
        demix.remove("code")


def test_a_copy_that_is_left_is_no_proof():
    demix = made()
    demix.add("copy", like="news")
    removal = demix.remove("news", probe=batch(2)[0])
    assert not removal.proved
    assert "model.blocks.0.up.experts.copy.weight" in removal.copies
    assert len(removal.sha256) == 64
    assert not demix.remove("copy").proved  # without a probe nothing is shown of the others


def test_what_cannot_be_is_refused():
    model = LanguageModel(13, width=8, layers=1, heads=2)
    for wrong in ("law", [], ["law", "law"]):
        with pytest.raises(ValueError, match="domains must be different names"):
            DEMix(model, wrong)
    with pytest.raises(ValueError, match=r"tensor \(B,\) of indices"):
        made()(batch(2)[0], domain=torch.zeros(2, 1, dtype=torch.long))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers_models_train_and_generate(kind):
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 13, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, n_positions=16, **size)
        model = transformers.GPT2LMHeadModel(config)
    else:
        plain = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**plain, **size))
    demix, tokens = DEMix(model, ("law", "news")), batch(4)[0]
    demix(tokens, labels=tokens, domain=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert all(part.weight.grad is not None for e in ("law", "news") for m in demix.expert(e) for part in linears(m))
    demix.eval().select("news")
    assert demix.model.generate(tokens[:, :2], max_new_tokens=3, do_sample=False).shape[1] <= 5
    assert demix.remove("law", probe=tokens).changed == ()


def linears(module):
    return [part for part in module.modules() if getattr(part, "weight", None) is not None]


def shard(rank: int, file: str, out: str) -> None:
    """One rank of two reads one of two domains."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    demix = DistributedDataParallel(made(DOMAINS[:2]), find_unused_parameters=True)
    inputs, targets = batch(4)
    loss_of(demix, inputs[rank::2], targets[rank::2], DOMAINS[rank]).backward()
    if rank == 0:
        torch.save(gradients(demix.module), out)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_ranks_with_a_domain_each_have_the_gradients_of_one_device():
    with tempfile.TemporaryDirectory() as folder:
        file, out = os.path.join(folder, "rendezvous"), os.path.join(folder, "gradients.pt")
        other = mp.get_context("fork").Process(target=shard, args=(1, file, out), daemon=True)
        other.start()
        shard(0, file, out)
        other.join(60)
        assert other.exitcode == 0
        found = torch.load(out)
    one, (inputs, targets) = made(DOMAINS[:2]), batch(4)
    loss_of(one, inputs, targets, torch.arange(2).repeat(2)).backward()
    for name, value in gradients(one).items():
        torch.testing.assert_close(found[name], value, atol=1e-7, rtol=1e-4)
