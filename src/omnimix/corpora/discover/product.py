"""Domains that are pairs, as topic x format, and the mixture over them that two mixtures over the parts give.

    w(t, f) = w_topic(t) w_format(f),

chosen by WebOrganizer since topic and format of web pages are nearly independent (normalised mutual information about
0.1); cells that would have to be repeated are capped, and what they cannot take goes to the others in proportion.
Wettig et al., ICML 2025, arXiv 2502.10341. Cost: none beside the two annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..annotation import Annotator, Document
from ..mixture import Mixture

JOINT = " / "


class Product:
    """Writes the columns of several annotators, and the pair of their labels, None where one of them is None.

    parts: name of the label column -> the annotator that writes it. column: of the pair, as "Health / Tutorial".
    """

    def __init__(self, parts: Mapping[str, Annotator], column: str = "domain") -> None:
        if len(parts) < 2:
            raise ValueError(f"a product needs two annotators or more, got {list(parts)}")
        self.parts, self.column = dict(parts), column

    def annotate(self, documents: Sequence[Document]) -> dict[str, Sequence[Any]]:
        """All columns of the parts, and the pairs; ValueError where a part does not write its column."""
        found: dict[str, Sequence[Any]] = {}
        for name, part in self.parts.items():
            columns = part.annotate(documents)
            if name not in columns or set(columns) & set(found):
                raise ValueError(
                    f"the annotator of {name!r} must write that column, and none twice, got {list(columns)}"
                )
            found.update(columns)
        labels = zip(*(found[name] for name in self.parts), strict=True)
        return {**found, self.column: [None if None in pair else JOINT.join(pair) for pair in labels]}


def product(
    first: Mixture, second: Mixture, *, sizes: Mapping[str, float] | None = None, budget: float | None = None,
    max_epochs: float = 1.0,
) -> Mixture:  # fmt: skip
    """The mixture over pairs "a / b" of the domains of two constant mixtures in the same unit.

    sizes: what each pair holds; pairs that are not named hold nothing. budget: what the run draws. Then no pair gets
    more than max_epochs * size / budget, where WebOrganizer divides once by the sum, which lifts cells above their caps
    again. ValueError where all pairs together hold too little.
    """
    if first.unit != second.unit:
        raise ValueError(f"both mixtures must be in one unit, they are in {first.unit} and {second.unit}")
    weights = {
        a + JOINT + b: u * v for a, u in first.weights.items() for b, v in second.weights.items()
    }  # fmt: skip
    facts = {"method": "product", "parts": [first.to_dict(), second.to_dict()]}
    if sizes is None:
        return Mixture(weights, unit=first.unit, provenance=facts)
    from ..weigh.propose import water_fill
    from ..weigh.study import epoch_caps

    if budget is None or not budget > 0:
        raise ValueError(f"sizes need the budget of the run, a number > 0, got {budget!r}")
    caps = epoch_caps(list(weights), {pair: sizes.get(pair, 0.0) for pair in weights}, budget, max_epochs)
    filled = water_fill(np.array(list(weights.values())), caps)
    return Mixture(
        dict(zip(weights, filled.tolist(), strict=True)), unit=first.unit,
        caps=dict(zip(weights, caps.tolist(), strict=True)), provenance={**facts, "budget": budget},
    )  # fmt: skip
