"""Mixing by domain posterior: hand values, limits, priors."""

import math

import pytest
import torch

from omnimix.models.experts.demix import DEMix
from omnimix.models.experts.domain_mixture import DomainMixture, domain_posterior
from omnimix.networks.language_model import IGNORED, LanguageModel

A, B = (0.5, 0.2, 0.4), (0.1, 0.6, 0.3)
LIKELIHOOD = torch.tensor([A, B], dtype=torch.float64).log()[:, None]


def of(history, prior=(0.5, 0.5)):
    weights = domain_posterior(LIKELIHOOD, torch.tensor(prior, dtype=torch.float64).log(), history)
    return weights[0, 0].exp(), (weights + LIKELIHOOD).logsumexp(0)[0]


def mixture_of(**arguments) -> tuple[DomainMixture, torch.Tensor, torch.Tensor]:
    """Three different experts, and token ids with their targets."""
    torch.manual_seed(0)
    demix = DEMix(LanguageModel(13, width=8, layers=1, heads=2), ("law", "news", "code")).eval()
    demix.model.embed.weight.data.mul_(40)  # predictions that differ
    for place, name in enumerate(demix.domains):
        for part in demix.expert(name):
            part.weight.data.add_(torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(place)))
    tokens = torch.randint(0, 13, (4, 9), generator=torch.Generator().manual_seed(5))
    return DomainMixture(demix, **arguments), tokens[:, :-1], tokens[:, 1:]


def test_hand_values():
    weight, mixed = of("full")
    torch.testing.assert_close(weight, torch.tensor([0.5, 5 / 6, 0.625], dtype=torch.float64))
    torch.testing.assert_close(mixed.exp(), torch.tensor([0.3, 0.8 / 3, 0.3625], dtype=torch.float64))
    assert mixed.sum().item() == pytest.approx(-3.540459, abs=1e-6)
    weight, mixed = of("last_token")
    torch.testing.assert_close(weight, torch.tensor([0.5, 5 / 6, 0.25], dtype=torch.float64))
    assert mixed.sum().item() == pytest.approx(-3.649659, abs=1e-6)
    assert of("full", (0.8, 0.2))[1].sum().item() == pytest.approx(-3.335410, abs=1e-6)
    assert of("last_token", (0.8, 0.2))[1].sum().item() == pytest.approx(-3.415586, abs=1e-6)


def test_histories_and_lengths():
    generator = torch.Generator().manual_seed(0)
    likelihood = -10 * torch.rand(3, 2, 5000, generator=generator)
    prior = torch.tensor([0.2, 0.3, 0.5]).log()
    full = domain_posterior(likelihood, prior)
    assert full.isfinite().all()
    torch.testing.assert_close(full.exp().sum(0), torch.ones(2, 5000))
    torch.testing.assert_close(domain_posterior(likelihood, prior, 6000), full)
    torch.testing.assert_close(
        domain_posterior(likelihood, prior, 1), domain_posterior(likelihood, prior, "last_token")
    )
    brute = (prior[:, None] + likelihood[:, :, 4:7].sum(-1)).log_softmax(0)
    torch.testing.assert_close(domain_posterior(likelihood, prior, 3)[..., 7], brute)
    for wrong in ("all", 0, 1.5):
        with pytest.raises(ValueError, match="history must be"):
            domain_posterior(likelihood, prior, wrong)


@pytest.mark.parametrize("history", ["full", "last_token", 2])
def test_limits(history):
    mixture, tokens, targets = mixture_of(history=history)
    demix = mixture.experts
    alone = demix(tokens, domain="news").log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    mixture.set_prior({"news": 2.0})
    torch.testing.assert_close(mixture.score(tokens, targets), alone.detach())
    assert mixture.chosen() == {"news": 1.0}
    mixture.set_prior({"law": 0.2, "news": 0.3, "code": 0.5})
    turned = DomainMixture({"code": Alone(demix, "code"), "law": Alone(demix, "law"), "news": Alone(demix, "news")},
                           prior=mixture.prior, history=history)  # fmt: skip
    torch.testing.assert_close(turned.score(tokens, targets), mixture.score(tokens, targets))
    equal = DomainMixture(dict.fromkeys("abc", Alone(demix, "news")), history=history)
    torch.testing.assert_close(equal.score(tokens, targets), alone.detach())


class Alone(torch.nn.Module):
    """One expert as a model."""

    def __init__(self, demix, domain):
        super().__init__()
        self.demix, self.domain = [demix], domain

    def forward(self, tokens):
        return self.demix[0](tokens, domain=self.domain)


@torch.no_grad()
def test_scores_are_those_of_the_distribution_and_of_a_loop():
    mixture, tokens, targets = mixture_of(prior={"law": 0.2, "news": 0.3, "code": 0.5})
    every = mixture(tokens)
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(4, 8))
    found = mixture.score(tokens, targets)
    torch.testing.assert_close(every.gather(-1, targets[..., None]).squeeze(-1), found)
    for row in range(4):
        weight = torch.tensor([0.2, 0.3, 0.5])
        p = torch.stack([mixture.experts(tokens[row : row + 1], domain=d)[0].softmax(-1) for d in mixture.domains])
        for t in range(8):
            at = p[:, t, targets[row, t]]
            assert found[row, t].item() == pytest.approx(math.log((weight * at).sum()), abs=1e-5)
            weight = weight * at / (weight * at).sum()
    padded = torch.cat((targets[:, :5], torch.full((4, 3), IGNORED)), 1)
    torch.testing.assert_close(mixture.score(tokens, padded)[:, :5], found[:, :5])
    assert not mixture.score(tokens, padded)[:, 5:].any()


def test_the_prior_follows_the_text_and_is_kept():
    mixture, tokens, targets = mixture_of(updating=True)
    chosen = mixture.prior
    weights = []
    for row in range(3):
        log_prior = torch.tensor([*chosen.values()]).log()
        p = [mixture.experts(tokens, domain=d).log_softmax(-1) for d in mixture.domains]
        at = torch.stack([one.gather(-1, targets[..., None]).squeeze(-1) for one in p])
        weights.append(domain_posterior(at, log_prior)[:, : row + 1, -1].exp().mean(1))
        mixture.score(tokens[: row + 1], targets[: row + 1])
        average = weights[0]
        for later in weights[1:]:
            average = 0.7 * average + 0.3 * later
        assert [*mixture.prior.values()] == pytest.approx(average.tolist(), abs=2e-6)
        chosen = mixture.prior
    again = mixture_of()[0]
    again.load_state_dict(mixture.state_dict())
    assert again.prior == mixture.prior
    cached = mixture_of()[0]
    found = cached.estimate([(tokens[: k + 1], targets[: k + 1]) for k in range(3)])
    assert found == pytest.approx(mixture.prior)
    assert not cached.updating
    cached.score(tokens, targets)
    assert cached.prior == found
    cached.experts.model.blocks[0].drop.p = 0.5
    cached.train()
    assert torch.equal(cached.score(tokens, targets), cached.score(tokens, targets))  # as in evaluation
    assert cached.experts.model.blocks[0].training
    with pytest.raises(ValueError, match="no tokens to predict"):
        cached.estimate([(tokens, torch.full_like(targets, IGNORED))])


def test_the_last_real_token_of_each_row_counts():
    mixture, tokens, targets = mixture_of(updating=True)
    padded = targets.clone()
    padded[:, 5:] = IGNORED
    mixture.score(tokens, padded)
    short = mixture_of(updating=True)[0]
    short.score(tokens[:, :5], targets[:, :5])
    assert mixture.prior == pytest.approx(short.prior)


def test_estimating_finds_the_domain_and_experts_come_and_go():
    mixture, tokens, _ = mixture_of()
    demix = mixture.experts
    start = tokens[:, :1].repeat(8, 1)
    for _ in range(12):
        last = demix(start, domain="code")[:, -1].softmax(-1)
        start = torch.cat(
            (start, torch.multinomial(last, 1, generator=torch.Generator().manual_seed(len(start[0])))), 1
        )
    prior = mixture.estimate([(start[:, :-1], start[:, 1:])])
    assert max(prior, key=prior.get) == "code"
    assert prior["code"] > 0.8
    mixture.top = 2
    assert len(mixture.chosen()) == 2
    assert sum(mixture.chosen().values()) == pytest.approx(1)
    mixture.top = None
    demix.remove("law")
    assert sum(mixture.prior.values()) == pytest.approx(1)
    assert mixture.prior["code"] == pytest.approx(prior["code"] / (1 - prior["law"]))
    demix.add("health", like="news")
    assert mixture.prior["health"] == pytest.approx(1 / 3)
    assert sum(mixture.prior.values()) == pytest.approx(1)
    for wrong in ({"art": 1.0}, {"news": -1.0, "code": 2.0}, {}, {"news": math.nan}):
        with pytest.raises(ValueError, match="prior"):
            mixture.set_prior(wrong)


class Bigram(torch.nn.Module):
    """The last token decides."""

    def __init__(self, seed):
        super().__init__()
        self.table = torch.randn(13, 13, generator=torch.Generator().manual_seed(seed)) * 3

    def forward(self, tokens, attention_mask=None):
        return self.table[tokens]


@pytest.mark.parametrize("history", ["full", "last_token", 2])
def test_padding_on_the_left_tells_nothing(history):
    mixture = DomainMixture({"a": Bigram(0), "b": Bigram(1)}, history=history)
    tokens = torch.randint(0, 13, (2, 6), generator=torch.Generator().manual_seed(2))
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), tokens), 1)
    mask = (torch.arange(9) >= 3).long().expand(2, 9)
    torch.testing.assert_close(mixture(padded, attention_mask=mask)[:, 3:], mixture(tokens))


def test_a_probability_of_zero_is_forgotten_with_its_window():
    likelihood = torch.tensor([[[0.0, -math.inf, -1.0, -2.0, 0.0]], [[0.0, 0.0, -2.0, -1.0, 0.0]]])
    prior = torch.tensor([0.5, 0.5]).log()
    found = domain_posterior(likelihood, prior, "last_token")[0, 0].exp()
    e = math.e
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 0.0, e / (1 + e), 1 / (1 + e)]))
    torch.testing.assert_close(domain_posterior(likelihood, prior)[0, 0].exp(), torch.tensor([0.5, 0.5, 0, 0, 0]))


def test_the_authors_code_begins_with_equal_weights():
    prior = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    for history, begins in (("last_token", -3.415586), ("full", -3.335410)):
        plain = (domain_posterior(LIKELIHOOD, prior, history) + LIKELIHOOD).logsumexp(0).sum().item()
        assert plain == pytest.approx(begins, abs=1e-6)
        weights = domain_posterior(LIKELIHOOD, prior, history, reference=True)
        mixed = (weights + LIKELIHOOD).logsumexp(0).sum().item()
        # at t = 0 .5 (.5 + .1) in place of .8 * .5 + .2 * .1
        assert mixed == pytest.approx(begins + math.log(0.3 / 0.42), abs=1e-6)
    out = domain_posterior(LIKELIHOOD, torch.tensor([0.0, -math.inf]).double(), "last_token", reference=True)
    assert out[0].exp().tolist() == [[1.0, 1.0, 1.0]]
    mixture, tokens, targets = mixture_of(prior={"law": 0.2, "news": 0.3, "code": 0.5}, reference=True)
    every = torch.stack([mixture.experts(tokens, domain=name).softmax(-1) for name in mixture.domains]).detach()
    at = every.gather(-1, targets[None, ..., None].expand(3, -1, -1, 1)).squeeze(-1)[:, :, 0]
    torch.testing.assert_close(mixture.score(tokens, targets)[:, 0], at.mean(0).log())
    torch.testing.assert_close(mixture(tokens)[:, 0].exp().detach(), every[:, :, 0].mean(0))


def test_no_history_is_the_plain_average():
    mixture, tokens, targets = mixture_of(history="none")
    every = torch.stack([mixture.experts(tokens, domain=name).softmax(-1) for name in mixture.domains]).detach()
    torch.testing.assert_close(mixture(tokens).exp().detach(), every.mean(0))
    mixture.set_prior({"law": 0.2, "news": 0.3, "code": 0.5})
    mean = (every * torch.tensor([0.2, 0.3, 0.5])[:, None, None, None]).sum(0)
    found = mean.gather(-1, targets[..., None]).squeeze(-1).log()
    torch.testing.assert_close(mixture.score(tokens, targets), found)


def test_its_state_is_tensors(tmp_path):
    from safetensors.torch import load_file, save_file

    mixture, tokens, targets = mixture_of(updating=True)
    mixture.score(tokens, targets)
    state = {name: value.clone() for name, value in mixture.state_dict().items()}  # tied weights share memory
    save_file(state, tmp_path / "state.safetensors")
    again = mixture_of(updating=True)[0]
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert again.prior == mixture.prior
    mixture.score(tokens[:2], targets[:2])
    again.score(tokens[:2], targets[:2])
    assert again.prior == mixture.prior
    mixture.experts.add("health", like="news")  # it was not there when the prior was set
    grown = mixture_of()[0]
    grown.experts.add("health", like="law")
    grown.load_state_dict(mixture.state_dict())
    assert grown.prior == mixture.prior
    with pytest.raises(ValueError, match="a prior over 4 experts, there are 3"):
        again.set_extra_state(mixture.get_extra_state())
