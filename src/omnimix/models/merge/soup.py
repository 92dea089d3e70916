"""Model soups: the mean of models fine-tuned from one pretrained model: of all, or greedily of those that help.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", ICML 2022, arXiv:2203.05482. Greedy: in the order of the models' scores, keep a model if the score of
the soup with it is no worse (the paper's rule; the reference code asks for strictly better).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from .linear import Linear


class UniformSoup(Linear):
    """The plain mean of whole models."""

    name: ClassVar[str] = "soup"

    def __init__(self) -> None:
        super().__init__()


def greedy_soup(
    models: Sequence[Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor]], float]
) -> tuple[dict[str, Tensor], list[int]]:
    """The greedy soup, and which models are in it, best first.

    models: state dicts. score: held-out score of a state dict, larger is better, not from the test set; called once a
    model and once a candidate. Equal scores keep the given order. ValueError without models or for a score of NaN.
    """
    if not models:
        raise ValueError("models must hold at least one state dict")

    def judged(state: Mapping[str, Tensor], what: str) -> float:
        value = float(score(state))
        if value != value:
            raise ValueError(f"score must return a number, got NaN for {what}")
        return value

    alone = [judged(model, f"model {i}") for i, model in enumerate(models)]
    first, *others = sorted(range(len(models)), key=lambda i: -alone[i])
    chosen, soup, best = [first], dict(models[first]), alone[first]
    for i in others:
        mean = UniformSoup()([models[j] for j in (*chosen, i)])
        value = judged(mean, f"the soup with model {i}")
        if value >= best:
            chosen, soup, best = [*chosen, i], mean, value
    return soup, chosen
