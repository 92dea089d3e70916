"""MergeME: one mixture of experts of dense models, of one architecture or of several; routing that needs no training.

    one architecture:  FFN(h) = sum_i alpha_i FFN_i(h), every other weight theta_0 + merge(theta_1 - theta_0, ...)
    alpha without training:  softmax(top-K(1 / PPL_1, ..., 1 / PPL_L)) of the prompt, the same in all layers
    several:  logits = H sum_i g_i PO_i(Body_i(PI_i(e))),  g = softmax(top-K(W mean_t e_t)),  e = E[x]

PPL_i: perplexity under dense model i; Body_i: all layers of model i, between projectors in and out. Zhou et al.,
"MergeME: Model Merging Techniques for Homogeneous and Heterogeneous MoEs", NAACL 2025, arXiv:2502.00997; details that
its public text leaves open (separate attention, projectors) are settled here. merge is TIES or DARE; with the mean it
is branch-train-mix. Since 1 / PPL of several models are nearly equal, that rule is close to "the K best, with equal
weights"; "posterior" weights them as Bayes does. Cost: K feed-forward networks a token, and for alpha a pass of every
dense model over the prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from ...core.checks import at_least, one_of, positive
from ...core.random import resolve
from ...core.split import evaluating
from ...networks.language_model import IGNORED, token_losses
from ..checkpoint.agreement import HARMLESS
from ..merge import Linear, Merger, Ties
from .base import FeedForward, Route, Routing, check_name, feed_forwards, fit, replace, slots
from .router import linear, load_balance, routed, top_k

Rule: TypeAlias = Literal["perplexity", "posterior", "uniform"]
RULES = ("perplexity", "posterior", "uniform")
ATTENTION = (
    "layers.*.self_attn", "layers.*.attention", "h.*.attn", "h.*.self_attention", "layer.*.attention",
    "blocks.*.attention",
)  # fmt: skip
"""Where models keep their attention."""


class Mixture(nn.Module):
    """A mixture of experts of models of one architecture; `mixture` makes it.

    model: a copy of the base with merged weights and expert networks. Called as the base is, with `weights` (B, L) of
    the experts for every sequence where it has no routers; `routed(weights)` sets them for calls of `model` itself,
    such as `model.generate`. names: of the experts.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], shares: Shares | None) -> None:
        super().__init__()
        self.model, self.names, self.shares = model, tuple(names), shares

    def forward(self, *args: Any, weights: Tensor | None = None, **kwargs: Any) -> Any:
        if self.shares is None:
            if weights is not None:
                raise ValueError("weights must be None: this mixture has routers of its own")
            return self.model(*args, **kwargs)
        if weights is None:
            raise ValueError("weights must be given: one an expert for every sequence, as from `gate`")
        self.shares.set(weights)
        return self.model(*args, **kwargs)

    @contextmanager
    def routed(self, weights: Tensor) -> Iterator[nn.Module]:
        """The model, with these weights for every pass over this batch within the block."""
        if self.shares is None:
            raise ValueError("this mixture has routers of its own")
        self.shares.set(weights)
        try:
            yield self.model
        finally:
            self.shares.routing = self.shares.weights = None


class Shares(Route):
    """The weights of the experts, for every sequence and in all layers."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts, self.weights = experts, None  # type: int, Tensor | None

    def __getstate__(self) -> dict[str, Any]:
        return {"routing": None, "experts": self.experts, "weights": None}

    def set(self, weights: Tensor) -> None:
        if weights.ndim != 2 or weights.shape[1] != self.experts:
            raise ValueError(f"weights must be (B, {self.experts}), got {tuple(weights.shape)}")
        total = weights.sum(1)
        if not bool((weights >= 0).all() & ((total - 1).abs() < 1e-3).all()):
            raise ValueError(f"weights must be >= 0 and sum to 1 in every row, got {weights.tolist()}")
        most = int((weights > 0).sum(1).max()) if len(weights) else 1
        weight, expert = weights.sort(dim=1, descending=True, stable=True)
        self.weights = weights
        self.routing = Routing.of(expert[:, :most], self.experts, weight[:, :most])


class Blend(nn.Module):
    """That part of every expert in place of one, such as its attention: the weighted sum of what they return."""

    def __init__(self, experts: Mapping[str, nn.Module], shares: Shares) -> None:
        super().__init__()
        self.experts, self.shares = nn.ModuleDict(dict(experts)), shares

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weights = self.shares.weights
        if weights is None:
            raise RuntimeError("the model was called before its experts were chosen; call the mixture")
        if kwargs.get("past_key_values") is not None:
            raise ValueError("experts with attention of their own cannot share a cache: pass use_cache=False")
        mixed, rest = None, None
        busy = (weights > 0).any(0).tolist() if len(weights) else [True] * weights.shape[1]
        for expert, share, used in zip(self.experts.values(), weights.T, busy, strict=True):
            if used:
                out = expert(*args, **kwargs)
                first, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
                part = first * share.to(first.dtype).view(-1, *[1] * (first.ndim - 1))
                mixed = part if mixed is None else mixed + part
        return mixed if rest is None else (mixed, *rest)


def mixture(
    base: nn.Module,
    experts: Mapping[str, nn.Module] | Sequence[nn.Module],
    merger: Merger | None = None,
    *,
    feed: str | Sequence[str] | None = None,
    separate: bool | str | Sequence[str] = False,
    average: Sequence[str] = (),
    router: bool = False,
    k: int = 2,
    generator: torch.Generator | None = None,
) -> Mixture:
    """A mixture of dense models of one architecture that were trained further from `base`.

    experts: the models, perhaps with names; `base` may be among them. merger: of the weights that are no experts,
    default `Ties()`; `Linear()` makes it branch-train-mix. feed: pattern of the feed-forward modules, see
    `base.feed_forwards`. separate: True keeps the attention of every expert too and mixes what they return; or
    patterns of modules, such as ("layers.*.self_attn", "layers.*.*norm"), which include embeddings and head if asked.
    average: patterns of weights that are averaged and not merged; vectors (gains of norms, biases) always are.
    router: give every layer a router of its own, to be trained, which chooses k experts for every token; else weights
    come from outside, such as `gate`. ValueError for models that do not fit together and for patterns that fit nothing.
    """
    named = dict(experts) if isinstance(experts, Mapping) else {str(i): model for i, model in enumerate(experts)}
    if not named:
        raise ValueError("experts must hold at least one model")
    for name in named:
        check_name(name)
    if router and separate:
        raise ValueError("separate needs weights for whole sequences: leave router=False")
    agree(base, named)
    networks = feed_forwards(base, feed)
    model = copy.deepcopy(base)
    own = _paths(model, ATTENTION, every=False) if separate is True else _paths(model, separate or ())
    taken = [*own, *(part for network in networks for part in network.parts)]
    merge_shared(model, list(named.values()), base, merger or Ties(), taken, average)
    shares = None if router else Shares(len(named))
    modules: dict[str, nn.Module] = {}
    for network in networks:
        parts = {name: copy.deepcopy(network.modules(one)) for name, one in named.items()}
        if shares is not None:
            modules |= slots(parts, network, shares)
        else:
            modules |= routed(parts, network, _width(base, network), k, generator=generator)
    if shares is not None:
        modules |= {p: Blend({n: copy.deepcopy(m.get_submodule(p)) for n, m in named.items()}, shares) for p in own}
    replace(model, modules)
    if own:
        held: list[Any] = [getattr(model, name, None) for name in ("config", "generation_config")]
        for settings in held:
            if hasattr(settings, "use_cache"):
                settings.use_cache = False
    return Mixture(model, list(named), shares)


def agree(base: nn.Module, experts: Mapping[str, nn.Module]) -> None:
    """ValueError unless the configurations of `transformers` models say the same: heads, positions, vocabulary."""
    if not hasattr(base, "config"):
        return
    wanted, *others = (dict(one.config.to_dict()) for one in cast(Any, [base, *experts.values()]))
    for name, found in zip(experts, others, strict=True):
        odd = [key for key in sorted({*wanted, *found} - HARMLESS) if wanted.get(key) != found.get(key)]
        if odd:
            said = ", ".join(f"{key} {found.get(key)!r} for {wanted.get(key)!r}" for key in odd[:5])
            raise ValueError(f"expert {name!r} has another configuration than the base: {said}")


@torch.no_grad()
def merge_shared(
    model: nn.Module,
    experts: Sequence[nn.Module],
    base: nn.Module,
    merger: Merger,
    taken: Sequence[str] = (),
    average: Sequence[str] = (),
) -> None:
    """Give `model`, a copy of the base, the merged weights of everything outside the modules `taken`.

    Vectors and weights that fit a pattern of `average` are averaged. Tied weights are merged once, and averaged if any
    of their names fits. ValueError for a pattern that fits nothing.
    """
    held = model.state_dict(keep_vars=True)
    seen: dict[int, str] = {}
    listed: set[int] = set()
    unfit = set(average)
    for name, value in held.items():
        if not any(name.startswith(f"{path}.") for path in taken):
            seen.setdefault(id(value), name)
            fitting = {pattern for pattern in average if fnmatchcase(name, pattern)}
            unfit -= fitting
            listed |= {id(value)} if fitting else set()
    if unfit:
        raise ValueError(f"average: pattern {min(unfit)!r} fits no weight outside the experts")
    mean = [n for key, n in seen.items() if held[n].ndim < 2 or key in listed]
    states, start = [one.state_dict() for one in experts], base.state_dict()
    for states_of in (*states, start):
        if states_of.keys() != held.keys():
            odd = sorted(states_of.keys() ^ held.keys())
            raise ValueError(f"models must have the same weights; only some have {', '.join(odd[:5])}")
    plain, linear_one = set(mean), merger if isinstance(merger, Linear) else Linear()
    for names, how in ((mean, linear_one), ([n for n in seen.values() if n not in plain], merger)):
        if names:
            origin = {n: start[n] for n in names} if how.base == "required" else None
            merged = how([{n: state[n] for n in names} for state in states], origin)
            for name, value in merged.items():
                held[name].copy_(value)


def _paths(model: nn.Module, patterns: bool | str | Sequence[str], *, every: bool = True) -> list[str]:
    """Paths of the modules that fit; ValueError for a pattern (or, unless `every`, for all) without any."""
    assert not isinstance(patterns, bool) or not patterns
    listed = () if isinstance(patterns, bool) else (patterns,) if isinstance(patterns, str) else tuple(patterns)
    found: dict[str, None] = {}
    for pattern in listed:
        fitting = [path for path, _ in model.named_modules() if path and fit(path, pattern) is not None]
        if every and not fitting:
            raise ValueError(f"separate: pattern {pattern!r} fits no module")
        found.update(dict.fromkeys(fitting))
    if listed and not found:
        raise ValueError(f"separate must be patterns of modules: none of {', '.join(listed)} fits")
    return list(found)


def _width(model: nn.Module, network: FeedForward) -> int:
    """Of the tokens that a feed-forward network takes."""
    for weight in network.modules(model)[0].parameters():
        if weight.ndim == 2:
            # GPT-2 stores its weights as (in, out)
            first = next(m for m in network.modules(model)[0].modules() if getattr(m, "weight", None) is weight)
            return weight.shape[0 if type(first).__name__ == "Conv1D" else 1]
    raise ValueError(f"the feed-forward network {network.parts[0]!r} has no matrix that says how wide its input is")


@torch.no_grad()
def log_likelihoods(
    models: Mapping[str, nn.Module] | Sequence[nn.Module],
    tokens: Tensor,
    lengths: Tensor | None = None,
    *,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(B, L) log-likelihoods of prompts under dense models, in nats, and (B,) how many tokens they are of.

    tokens: (B, T), padded at the right; lengths (B,): of the prompts, default T. valid (B, T), in place of lengths:
    True where a token is no padding, on either side, such as an attention mask. The first token is not predicted, so it
    does not count. Give the prompt alone: with its continuation the weights would know the answer.
    """
    if valid is not None:
        if lengths is not None:
            raise ValueError("give lengths or valid, not both")
        if valid.shape != tokens.shape:
            raise ValueError(f"valid must have the shape of tokens, {tuple(tokens.shape)}, got {tuple(valid.shape)}")
        # padding goes to the end, where no token sees it and positions count from the first token
        tokens = tokens.gather(1, (~valid.bool()).long().argsort(dim=1, stable=True))
        lengths = valid.bool().sum(1)
    targets = tokens[:, 1:]
    if lengths is not None:
        places = torch.arange(1, tokens.shape[1], device=tokens.device)
        targets = targets.masked_fill(places >= lengths.to(tokens.device)[:, None], IGNORED)
    totals = []
    for model in models.values() if isinstance(models, Mapping) else models:
        with evaluating(model):
            out = model(tokens)
        logits = out.logits if hasattr(out, "logits") else out
        totals.append(-token_losses(logits[:, :-1], targets).sum(1, dtype=torch.float64))
    return torch.stack(totals, 1), (targets != IGNORED).sum(1)


def gate_weights(
    log_likelihood: Tensor, size: Tensor, *, rule: Rule = "perplexity", k: int | None = None, temperature: float = 1.0
) -> Tensor:
    """Weights (B, L) of the experts: 0 outside the K best, sum 1, ties by index; float32.

    log_likelihood: (B, L) nats of each prompt. size: (B,) its tokens, or bytes where models have different tokenizers:
    perplexities of different tokens cannot be compared. rule: "perplexity", softmax of the K largest 1 / PPL;
    "posterior", softmax of the K largest log-likelihoods (Bayes with equal priors); "uniform". k: default all.
    temperature: scores are divided by it. Prompts of size 0 say nothing: all experts get the same.
    """
    one_of("rule", rule, RULES)
    positive("temperature", temperature)
    experts = log_likelihood.shape[1]
    known = (size > 0)[:, None].to(log_likelihood.device)
    scores = log_likelihood.double()
    if rule == "perplexity":
        scores = (scores / size.clamp(min=1)[:, None].to(scores)).exp()
    if rule == "uniform":
        scores = torch.zeros_like(scores)
    chosen, weight = top_k(scores / temperature, at_least("k", experts if k is None else k, 1))
    found = torch.zeros_like(scores).scatter_(1, chosen, weight)
    return torch.where(known, found, 1 / experts).float()


def gate(
    models: Mapping[str, nn.Module] | Sequence[nn.Module],
    prompt: Tensor,
    lengths: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    rule: Rule = "perplexity",
    k: int | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Weights (B, L) of the experts for prompts (B, T), without any training; see `log_likelihoods`, `gate_weights`."""
    found = log_likelihoods(models, prompt, lengths, valid=valid)
    return gate_weights(*found, rule=rule, k=k, temperature=temperature)


class Body(nn.Module):
    """All layers of a `transformers` model, from embeddings (B, T, width) to what its head takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers: Any = copy.deepcopy(getattr(model, "base_model", model))
        self.width = int(layers.get_input_embeddings().embedding_dim)
        layers.set_input_embeddings(None)  # they are shared outside
        self.layers = layers

    def forward(self, embeddings: Tensor, valid: Tensor | None = None) -> Tensor:
        mask = None if valid is None else valid.long()
        out: Tensor = self.layers(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state
        return out


class Projected(nn.Module):
    """PO(Body(PI(e))) of one expert."""

    def __init__(self, body: nn.Module, inwards: nn.Module, outwards: nn.Module) -> None:
        super().__init__()
        self.inwards, self.body, self.outwards = inwards, body, outwards

    def forward(self, embeddings: Tensor, valid: Tensor | None) -> Tensor:
        z = self.inwards(embeddings)
        out: Tensor = self.outwards(self.body(z) if valid is None else self.body(z, valid))
        return out


class HeterogeneousMixture(nn.Module):
    """A mixture of whole models of different architectures that share a tokenizer.

    bodies: models without embeddings and head, from (B, T, width) to the same shape; `Body` makes one of a
    `transformers` model. They become part of the mixture, are called with a mask (B, T) too where padding is said, and
    are not trained unless `frozen` is False. widths: of the bodies, default what their attribute `width` says.
    embedding, head: shared, from tokens to (B, T, d) and back to logits; copies are trained along. hidden: width of a
    layer with GELU in the projectors, default none. They start as the identity where widths are equal, else as
    orthogonal maps. k: experts of a sequence. Train with the losses of tokens and some of `balance` (0.01 in
    branch-train-mix).
    """

    balance: Tensor | None = None
    """L sum_i u_i p_i of the last pass, with its gradient; see `router`."""

    def __init__(
        self,
        bodies: Mapping[str, nn.Module],
        embedding: nn.Embedding,
        head: nn.Module,
        *,
        k: int = 1,
        widths: Mapping[str, int] | None = None,
        hidden: int | None = None,
        frozen: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= at_least("k", k, 1) <= len(bodies):
            raise ValueError(f"k must lie between 1 and the number of bodies, {len(bodies)}, got {k}")
        self.embedding, self.head = copy.deepcopy(embedding), copy.deepcopy(head)
        d, generator = embedding.embedding_dim, resolve(generator)
        self.k, self.frozen, self.experts = k, frozen, nn.ModuleDict()
        for name, body in bodies.items():
            width = widths[name] if widths is not None else getattr(body, "width", None)
            if width is None:
                raise ValueError(f"widths must name {check_name(name)!r}: its body does not say how wide it is")
            body.requires_grad_(not frozen)
            like = embedding.weight
            alike = all(value.dtype == like.dtype for value in body.parameters())
            body.to(like.device if alike else like)  # where alike, frequencies of positions keep their precision
            ways = (projector(d, width, hidden, generator), projector(width, d, hidden, generator))
            self.experts[check_name(name)] = Projected(body, *(way.to(like) for way in ways))
        self.router = linear(d, len(bodies), generator).to(embedding.weight)
        self.head.to(embedding.weight)
        self.train(self.training)

    def train(self, mode: bool = True) -> HeterogeneousMixture:
        super().train(mode)
        for expert in self.experts.values():
            expert.body.train(mode and not self.frozen)  # type: ignore[union-attr]
        return self

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "balance": None}  # of a pass, whose graph cannot be copied

    def gate(self, embeddings: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ids (B, K) and weights (B, K) of the experts, from the mean embedding of the tokens that are no padding."""
        if valid is None:
            mean = embeddings.mean(1)
        else:
            kept = valid[..., None].to(embeddings.dtype)
            mean = (embeddings * kept).sum(1) / kept.sum(1).clamp(min=1)
        scores = self.router(mean).float()
        chosen, weight = top_k(scores, self.k)
        self.balance = load_balance(scores, chosen)
        return chosen, weight

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T). valid: (B, T), True where a token is no padding; default all."""
        embeddings = self.embedding(tokens)
        chosen, weight = self.gate(embeddings, valid)
        routing = Routing.of(chosen, len(self.experts), weight)
        counts = list(routing.counts)
        masks = [None] * len(counts) if valid is None else torch.split(routing.gather(valid), counts)
        rows = [*zip(self.experts.values(), torch.split(routing.gather(embeddings), counts), masks, strict=True)]
        busy = [row for row in rows if len(row[1])] or rows[:1]  # an empty batch goes to the first
        out = torch.cat([expert(own, mask) for expert, own, mask in busy])
        logits: Tensor = self.head(routing.combine(out))
        return logits


def projector(width: int, out: int, hidden: int | None, generator: torch.Generator) -> nn.Module:
    """From one width to another: a linear layer, or two with GELU between."""
    if hidden is not None:
        inner = at_least("hidden", hidden, 1)
        return nn.Sequential(
            projector(width, inner, None, generator), nn.GELU(), projector(inner, out, None, generator)
        )
    layer = linear(width, out, generator)
    with torch.no_grad():
        if width == out:
            layer.weight.copy_(torch.eye(width))
        else:
            nn.init.orthogonal_(layer.weight, generator=generator)
    return layer
