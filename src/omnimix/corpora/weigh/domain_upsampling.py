"""Domain upsampling: a web-heavy mixture for most of the run, small dense domains with a large share at its end.

w(t) = before for t < 1 - f, and after from there on, with f = 10..20 % of the tokens; learning rate and optimiser go
on. Since only the last phase differs, many last phases can branch off one checkpoint. Blakeney et al., "Does your data
spark joy? Performance gains from domain upsampling at the end of training", COLM 2024, arXiv 2406.03476. Cost: none for
the schedule; f of a run for each branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...core.checks import in_unit, one_of
from ..mixture import Mixture

PAPER = {
    "before": {"large-cc": 34.35, "small-cc": 36.70, "domain-specific": 7.17, "code": 21.78},
    "after": {"large-cc": 0.0, "small-cc": 30.0, "domain-specific": 35.0, "code": 35.0},
}
"""The groups of the paper and their percentages in its two phases."""
FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.3)


def domain_upsampling(
    before: Mapping[str, float], after: Mapping[str, float], fraction: float = 0.2, *, unit: str = "tokens"
) -> Mixture:
    """The schedule that switches to `after` for the last `fraction` of the run, counted in `unit`.

    fraction 0 is the constant mixture `before`, 1 the constant `after`.
    """
    in_unit("fraction", fraction)
    domains = [*before, *(d for d in after if d not in before)]
    phases = [
        (start, {d: weights.get(d, 0.0) for d in domains})
        for start, end, weights in ((0.0, 1 - fraction, before), (1 - fraction, 1.0, after))
        if start < end
    ]
    return Mixture(phases, unit=unit, provenance={"method": "domain-upsampling", "fraction": float(fraction)})


def grouped(
    groups: Mapping[str, float], members: Mapping[str, Iterable[str]], sizes: Mapping[str, float]
) -> dict[str, float]:
    """Weights of single domains from those of groups: within a group in proportion to size, in every phase the same.

    groups: weight of each group. members: its domains. sizes: what they hold.
    """
    weights: dict[str, float] = {}
    for group, weight in groups.items():
        inside = Mixture({d: sizes[d] for d in members[group]}).weights
        for domain, share in inside.items():
            if domain in weights:
                raise ValueError(f"{domain!r} is in two groups")
            weights[domain] = weight * share
    return weights


def branches(
    before: Mapping[str, float], after: Mapping[str, float], fractions: Sequence[float] = FRACTIONS,
    *, removed: Sequence[str] = (), unit: str = "tokens",
) -> dict[str, Mixture]:  # fmt: skip
    """The arms of the experiment, by name: all see the same number of units.

    "f=0.2" for every fraction (f=0 is the base); "static f=0.2", what f=0.2 consumes without its order, and
    "reversed f=0.2", its phases the other way round, as controls; "f=0.1 without math" for every domain of `removed`:
    the last phase without it, the others' ratios kept. Arms that share their first phase branch off one checkpoint at
    `branch_point`.
    """
    arms: dict[str, Mixture] = {}
    for fraction in fractions:
        name = f"f={fraction:g}"
        arms[name] = domain_upsampling(before, after, fraction, unit=unit)
        if 0 < fraction < 1:
            arms[f"static {name}"] = arms[name].overall()
            arms[f"reversed {name}"] = domain_upsampling(after, before, 1 - fraction, unit=unit)
            for domain in removed:
                one_of("removed", domain, list(after))
                rest = {d: w for d, w in after.items() if d != domain}
                arms[f"{name} without {domain}"] = domain_upsampling(before, rest, fraction, unit=unit)
    return arms


def branch_point(arms: Iterable[Mixture]) -> float:
    """The fraction of the run up to which all arms draw alike: one checkpoint there serves all of them."""
    mixtures = list(arms)
    # domains that an arm does not name have weight 0 in it
    start = {d: w for d, w in mixtures[0].at(0.0).items() if w}
    first = [phase.start for mixture in mixtures for phase in mixture.phases]
    for moment in sorted(set(first)):
        for mixture in mixtures:
            if {d: w for d, w in mixture.at(moment).items() if w} != start:
                return moment
    return 1.0
