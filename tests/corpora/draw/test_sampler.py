import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from omnimix.corpora import Mixture
from omnimix.corpora.draw import DomainSampler
from omnimix.corpora.draw.sampler import largest_remainders

SIZES = {"web": 40, "code": 7, "books": 15}
WEIGHTS = {"web": 0.5, "code": 0.2, "books": 0.3}


def sampler(weights=WEIGHTS, **options):
    return DomainSampler(SIZES, weights, **{"batch_size": 8, "steps": 50, "seed": 3, **options})


def domain_of(row):
    return np.searchsorted(np.cumsum(list(SIZES.values())), row, side="right")


def seen_evenly(rows):
    """Within a domain no row is a whole pass ahead of another."""
    count = Counter(rows)
    edges = np.cumsum([0, *SIZES.values()])
    for low, high in itertools.pairwise(edges):
        times = [count[row] for row in range(low, high)]
        assert max(times) - min(times) <= 1


def test_counts_follow_the_plan_at_every_step():
    for batch, weights in ((8, WEIGHTS), (1, WEIGHTS), (5, {"web": 0.01, "code": 0.01, "books": 0.98})):
        source = sampler(weights, batch_size=batch, steps=200)
        for step in range(1, 201):
            source.draw()
            plan = np.array([batch * step * weights[name] for name in SIZES])
            assert np.abs(np.array(list(source.drawn().values())) - plan).max() < 1


def test_rows_of_a_domain_all_come_before_any_comes_again():
    source, rows = sampler(), []
    for batch in source:
        rows += batch
        seen_evenly(rows)
    assert len(rows) == 400
    assert source.drawn() == {"web": 200, "code": 80, "books": 120}


def test_random_counts_have_the_frequencies_of_the_weights():
    source = sampler(counts="random", steps=4000, batch_size=8)
    rows = np.concatenate([source.draw() for _ in range(4000)])
    count = np.bincount(domain_of(rows), minlength=3)
    expected = 32000 * np.array(list(WEIGHTS.values()))
    assert ((count - expected) ** 2 / expected).sum() < 13.8  # the .999 quantile with 2 degrees of freedom
    assert count.tolist() != expected.tolist()
    seen_evenly(rows.tolist())


@pytest.mark.parametrize("counts", ["exact", "random"])
def test_batches_of_one_domain(counts):
    source = sampler(batches="one-domain", counts=counts, steps=300)
    domains = [set(domain_of(np.array(batch)).tolist()) for batch in source]
    assert all(len(one) == 1 for one in domains)
    share = np.bincount([one.pop() for one in domains], minlength=3) / 300
    assert np.abs(share - list(WEIGHTS.values())).max() < (1 / 300 + 1e-9 if counts == "exact" else 0.1)


def test_a_schedule_changes_the_weights_at_its_step():
    mixture = Mixture([(0, {"web": 1.0}), (0.8, {"code": 0.5, "books": 0.5})], unit="sequences")
    source = DomainSampler(SIZES, mixture, batch_size=4, steps=10)
    domains = [Counter(domain_of(np.array(batch)).tolist()) for batch in source]
    assert domains == [Counter({0: 4})] * 8 + [Counter({1: 2, 2: 2})] * 2


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_stops_changes_and_ranks_at_random_lose_and_repeat_nothing(data):
    """What several ranks draw, killed and resumed with other numbers of ranks, is what one undisturbed rank draws."""
    steps, batch = 12, 8
    options = {
        "steps": steps, "batch_size": batch, "seed": data.draw(st.integers(0, 9)),
        "counts": data.draw(st.sampled_from(["exact", "random"])),
        "batches": data.draw(st.sampled_from(["mixed", "one-domain"])),
    }  # fmt: skip
    changes = data.draw(st.dictionaries(st.integers(0, steps - 1), st.sampled_from([
        {"web": 1.0}, {"code": 0.5, "books": 0.5}, {"web": 0.1, "code": 0.6, "books": 0.3}]), max_size=3))  # fmt: skip
    stops = data.draw(st.sets(st.integers(1, steps - 1), max_size=3))

    def run(group, until):
        drawn = []
        while group[0].step < until:
            for one in group:
                if one.step in changes:
                    one.set_weights(changes[one.step])
            drawn.append(Counter(np.concatenate([one.draw() for one in group]).tolist()))
        return drawn

    whole = run([sampler(**options)], steps)
    pieces, state = [], None
    for until in [*sorted(stops), steps]:
        ranks = data.draw(st.sampled_from([1, 2, 4, 8]))
        group = [sampler(**options, rank=rank, ranks=ranks) for rank in range(ranks)]
        for one in group:
            if state is not None:
                one.load_state_dict(json.loads(json.dumps(state)))
        pieces += run(group, until)
        state = group[-1].state_dict()
    assert pieces == whole
    assert all(sum(step.values()) == batch for step in pieces)
    seen_evenly([row for step in pieces for row in step.elements()])


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_loaders_fetch_ahead_and_the_state_is_that_of_what_was_used(workers):
    data = TensorDataset(torch.arange(sum(SIZES.values())))

    def load(source):
        return DataLoader(data, batch_sampler=source, num_workers=workers)

    expected = [batch.tolist() for (batch,) in load(sampler(steps=12, rank=1, ranks=2))]
    assert expected == list(sampler(steps=12, rank=1, ranks=2))
    source, used = sampler(steps=12, rank=1, ranks=2), []
    for (batch,) in load(source):
        used.append(batch.tolist())
        if len(used) == 5:
            break
    later = sampler(steps=12, rank=1, ranks=2)
    later.load_state_dict(source.state_dict(len(used)))
    assert len(later) == 7
    assert used + [batch.tolist() for (batch,) in load(later)] == expected


@pytest.mark.parametrize("batch", [1, 7, 257])
def test_rows_computed_ahead_are_those_of_each_step_alone(batch):
    def sampler():
        schedule = Mixture([(0.0, {"a": 0.9, "b": 0.1}), (0.5, {"b": 0.3, "c": 0.7})], unit="sequences")
        return DomainSampler({"a": 5, "b": 2000, "c": 37}, schedule, batch_size=batch, steps=40, seed=3)

    whole, plain = sampler(), sampler()
    plain._ahead = None
    drawn = [whole.draw().tolist() for _ in range(40)]
    assert drawn == [plain.draw().tolist() for _ in range(40)]
    for step in (19, 20, 21, 3):  # before, at and after the switch; and back
        whole.load_state_dict(whole_at := _state_after(sampler(), step))
        assert whole_at["step"] == step
        assert whole.draw().tolist() == drawn[step]


def _state_after(sampler, step):
    for _ in range(step):
        sampler.draw()
    return sampler.state_dict()


def test_weights_set_in_the_middle_hold_from_the_next_step():
    source = sampler()
    before = [source.draw() for _ in range(10)]
    source.set_weights({"code": 2.0})
    after = np.concatenate([source.draw() for _ in range(5)])
    assert list(itertools.islice(sampler(), 10)) == [one.tolist() for one in before]
    assert set(domain_of(after).tolist()) == {1}
    seen_evenly([*np.concatenate(before).tolist(), *after.tolist()])


def test_memory_does_not_grow_with_the_corpus():
    source = DomainSampler({"web": 10**13, "code": 10**12}, {"web": 0.9, "code": 0.1}, batch_size=1000, steps=5)
    rows = np.concatenate([source.draw() for _ in range(5)])
    assert len(set(rows.tolist())) == 5000
    assert rows.max() > 10**13


def test_largest_remainders_by_hand():
    every = np.ones(3, dtype=bool)
    assert largest_remainders(np.array([1.5, 1.2, 0.3]), 3, every).tolist() == [2, 1, 0]
    assert largest_remainders(np.array([-0.9, 1.2, 1.7]), 2, every).tolist() == [0, 1, 1]
    assert largest_remainders(np.array([0.0, 1.0, 1.0]), 2, np.array([True, False, True])).sum() == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2, "ranks": 2}, r"0\.\.1"),
        ({"ranks": 3}, "cannot be shared"),
        ({"batch_size": 0}, "batch_size"),
        ({"counts": "some"}, "counts"),
        ({"rows": "documents", "weights": Mixture(WEIGHTS, unit="tokens")}, "to_unit"),
        ({"weights": {"web": 1.0, "arxiv": 1.0}}, "arxiv"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        sampler(**change)


def test_more_refusals():
    with pytest.raises(ValueError, match="no rows"):
        DomainSampler({"web": 0, "code": 3}, {"web": 0.5, "code": 0.5}, batch_size=2, steps=2)
    source = sampler(steps=2)
    with pytest.raises(ValueError, match="another seed"):
        sampler(steps=2, seed=4).load_state_dict(source.state_dict())
    list(source)
    with pytest.raises(ValueError, match="all 2 steps"):
        source.draw()
    with pytest.raises(ValueError, match="step must lie"):
        source.state_dict(3)
