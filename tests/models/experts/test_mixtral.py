"""Mixtures of Llama models as Mixtral models: the same logits, also after a round trip through files."""

import copy

import pytest
import torch

from omnimix.models.experts.mergeme import mixture
from omnimix.models.experts.mixtral import to_mixtral
from omnimix.networks.language_model import LanguageModel

transformers = pytest.importorskip("transformers")


def llama(**changes):
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 500.0} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def routed(base, k=2):
    experts, g = [copy.deepcopy(base) for _ in range(3)], torch.Generator().manual_seed(1)
    with torch.no_grad():
        for model in experts:
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=g))
        made = mixture(base, experts, router=True, k=k)
        for p in made.parameters():  # routers that choose
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_logits_after_a_round_trip(tied, tmp_path):
    tokens = torch.randint(0, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    made = routed(llama(tie_word_embeddings=tied), k=1 + tied)
    exported = to_mixtral(made)
    torch.testing.assert_close(exported(tokens).logits, made(tokens).logits, atol=1e-5, rtol=0)
    exported.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "MixtralForCausalLM"
    torch.testing.assert_close(loaded(tokens).logits, made(tokens).logits, atol=1e-5, rtol=0)


def test_what_is_no_mixtral():
    for make, message in (
        (lambda: mixture(LanguageModel(20, width=8), [LanguageModel(20, width=8)]), "of the kinds llama, mistral"),
        (lambda: mixture(llama(), [llama()]), "router in every layer"),
        (lambda: routed(llama(attention_bias=True)), "has no biases"),
    ):
        with pytest.raises(ValueError, match=message):
            to_mixtral(make())


@torch.no_grad()
def test_positions_keep_their_precision():
    base = llama()
    for parameter in base.parameters():  # as when it is read from a file: buffers stay
        parameter.data = parameter.data.bfloat16()
    made = mixture(base, [copy.deepcopy(base) for _ in range(2)], router=True).eval()
    exported = to_mixtral(made)
    assert {p.dtype for p in exported.parameters()} == {torch.bfloat16}
    assert torch.equal(exported.model.rotary_emb.inv_freq, base.model.rotary_emb.inv_freq)
    assert exported.model.rotary_emb.inv_freq.dtype == torch.float32
