"""C-Mixup: hand values of the card, exact draws against brute force on awkward label sets, limiting cases."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import nn

import omnimix as om
from omnimix.core.pairing import NONE
from omnimix.core.ratio import Constant
from omnimix.samples.pairing import (
    BatchLabelKernel,
    CMixup,
    LabelKernel,
    c_mixup,
    label_draws,
    label_kernel_probabilities,
)
from omnimix.samples.pairing.label_draws import ExplicitRows, SortedLabels
from omnimix.testing import check_method

AIRFOIL = Path(om.__file__).parent / "data" / "files" / "airfoil_self_noise.dat"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def prepared(y, **options):
    pairing = LabelKernel(**options)
    pairing.prepare(om.Table(label=y), generator())
    return pairing


def assert_drawn_from(counts, probability):
    """Chi-square at 1e-6 of counts (M,) against probabilities (M,); rare cells joined until they expect 10 draws."""
    assert bool((counts[probability == 0] == 0).all()), "a partner of probability 0 was drawn"
    expected, order = (probability * counts.sum()).sort()
    group = (expected.cumsum(0) / 10).long()
    group.clamp_(min=int(group[group > 0].min()))
    _, group = group.unique(return_inverse=True)
    zeros = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
    seen, expected = zeros.index_add(0, group, counts[order].double()), zeros.index_add(0, group, expected)
    statistic = float(((seen - expected) ** 2 / expected).sum())
    assert statistic <= chi2.ppf(1 - 1e-6, max(1, len(seen) - 1)), (statistic, seen, expected)


# The kernel


def test_hand_values_of_the_card():
    y = torch.tensor([0.0, 1.0, 3.0])
    expected = [[0.618185, 0.374948, 0.006867], [0.348207, 0.574097, 0.077696], [0.009690, 0.118048, 0.872262]]
    torch.testing.assert_close(
        label_kernel_probabilities(y, 1.0), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )
    wide = label_kernel_probabilities(y, 2.0)[0]
    torch.testing.assert_close(wide, torch.tensor([0.453073, 0.399836, 0.147091]).double(), atol=1e-6, rtol=0)
    plane = label_kernel_probabilities(torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 0.0]]), 1.0)[0]
    torch.testing.assert_close(plane, torch.tensor([0.725169, 0.266775, 0.008056]).double(), atol=1e-6, rtol=0)


def test_top_hat_is_uniform_within_its_edges():
    y = torch.tensor([0.0, 1.0, 2.0, 2.5])
    expected = [[1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 1 / 2, 1 / 2]]
    torch.testing.assert_close(label_kernel_probabilities(y, 1.0, "tophat"), torch.tensor(expected).double())


def test_scaling_and_shifting_labels():
    y = torch.randn(40, generator=generator(), dtype=torch.float64)
    p = label_kernel_probabilities(y, 0.5)
    torch.testing.assert_close(label_kernel_probabilities(y * 7, 3.5), p)
    torch.testing.assert_close(label_kernel_probabilities(y + 100, 0.5), p)
    assert torch.equal(label_kernel_probabilities(y[:, None], 0.5), p)


def test_limits_of_the_bandwidth():
    y = torch.arange(9.0)
    for wide in (1e6, float("inf")):
        torch.testing.assert_close(label_kernel_probabilities(y, wide), torch.full((9, 9), 1 / 9).double())
    assert torch.equal(label_kernel_probabilities(y, 1e-3), torch.eye(9).double())
    assert torch.equal(label_kernel_probabilities(y.double() * 1e300, 1e-300), torch.eye(9).double())  # no overflow


def test_parity_with_the_reference_on_50_rows_of_airfoil():
    """Entries and sums of the reference's sample-rate matrix (its KDE, labels in float32), run once."""
    if not AIRFOIL.exists():
        pytest.skip("the airfoil file is not in this installation")
    lines = AIRFOIL.read_text().split("\n")[:50]
    y = torch.tensor([[float(line.split("\t")[5])] for line in lines], dtype=torch.float64)
    p = label_kernel_probabilities(y, 1.75)
    rows, columns = torch.tensor([0, 0, 0, 7, 25, 49, 30]), torch.tensor([0, 1, 49, 3, 24, 0, 31])
    entries = [0.05573156, 0.04733648, 4.41e-06, 0.00294836, 0.05683691, 6.77e-06, 0.01225534]
    torch.testing.assert_close(p[rows, columns], torch.tensor(entries).double(), atol=1e-6, rtol=0)
    assert float(p.diagonal().sum()) == pytest.approx(5.053376880573624, abs=1e-5)
    assert float(p.square().sum()) == pytest.approx(3.6922166853473963, abs=1e-5)
    sums = [1.12607701, 1.04299641, 1.11830147, 1.04834653, 0.90006997]
    torch.testing.assert_close(p.sum(0)[::10], torch.tensor(sums).double(), atol=1e-5, rtol=0)


# Draws from the whole training set


def label_sets():
    g = generator(5)
    uniform = torch.rand(160, generator=g, dtype=torch.float64) * 10
    tail = -torch.rand(160, generator=g, dtype=torch.float64).log()
    return {
        "uniform": (uniform, 0.7),
        "exponential tail": (tail, 0.3),
        "two clusters far apart": (torch.cat((tail * 1e-2, 1e6 + tail[:50])), 0.5),
        "a crowd in the tail of the kernel": (
            torch.cat((torch.tensor([0.0, 0.3]), 3.4 + tail.sort().values * 0.3)),
            1.0,
        ),
        "many ties": (uniform.round().repeat(3), 1.3),
        "all equal": (torch.full((40,), -3.0), 0.1),
        "one far outlier": (torch.cat((uniform, torch.tensor([-1e9]))), 0.4),
        "far from zero": (1e9 + uniform, 0.7),
        "tiny bandwidth": (uniform, 1e-9),
        "huge bandwidth": (tail, 1e6),
        "one label": (torch.tensor([2.0]), 1.0),
    }


def samplers(y, bandwidth, kernel, way):
    sampler = (ExplicitRows if way == "explicit" else SortedLabels)(y.double(), bandwidth, kernel)
    if way == "doubling":
        sampler.PATIENCE = 0
    return sampler


@pytest.mark.parametrize("way", ["explicit", "cells", "doubling"])
@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
@pytest.mark.parametrize("name", label_sets())
def test_draws_follow_the_brute_force_matrix(name, kernel, way):
    y, bandwidth = label_sets()[name]
    p = label_kernel_probabilities(y, bandwidth, kernel)
    sampler = samplers(y, bandwidth, kernel, way)
    queries = torch.cat((y.argmin().view(1), y.argmax().view(1), torch.randint(len(y), (3,), generator=generator(2))))
    drawn = sampler.draw(queries.repeat_interleave(8000), 1, generator(3)).view(len(queries), -1)
    for query, partners in zip(queries.tolist(), drawn, strict=True):
        assert_drawn_from(torch.bincount(partners, minlength=len(y)), p[query])


def test_one_row_of_a_large_skewed_set():
    y = -torch.rand(100_000, generator=generator(1), dtype=torch.float64).log()
    pairing = prepared(y, bandwidth=0.2)
    assert isinstance(pairing._rows, SortedLabels)
    for query in (int(y.argmax()), int((y - 2).abs().argmin()), 17):
        p = torch.softmax(-0.5 * ((y - y[query]) / 0.2) ** 2, dim=0)
        drawn = pairing.draw(torch.full((100_000,), query), generator(query)).squeeze(1)
        bins = ((y - y[query]) / 0.05).floor().long()
        bins -= bins.min().clone()
        counts = torch.bincount(bins[drawn], minlength=int(bins.max()) + 1)
        assert_drawn_from(counts, torch.zeros(len(counts)).double().index_add(0, bins, p))


def test_rejection_does_not_stall_where_a_crowd_lies_just_outside():
    """The cell of the crowd has acceptance 1/20,000: doubling blocks must take over, exactly."""
    y = torch.cat((torch.tensor([0.5, 1.5]), torch.full((20_000,), 1.5 + 1e-6))).double()
    sampler = SortedLabels(y, 1.0, "tophat")
    tries = []
    attempt = sampler._attempt
    sampler._attempt = lambda rank, blocks, g: tries.append(len(rank)) or attempt(rank, blocks, g)
    drawn = sampler.draw(torch.zeros(4000, dtype=torch.long), 1, generator())
    assert sum(tries[sampler.PATIENCE :]) < 6000
    counts = torch.bincount(drawn.flatten())
    assert len(counts) == 2
    assert_drawn_from(counts, torch.tensor([0.5, 0.5]).double())


@pytest.mark.parametrize("kernel", ["gaussian", "tophat"])
@pytest.mark.parametrize("name", label_sets())
def test_blocks_cover_every_label_once_and_doubling_accepts_half(name, kernel):
    y, bandwidth = label_sets()[name]
    sampler = SortedLabels(y.double(), bandwidth, kernel)
    rank = torch.arange(len(y))
    weight = sampler._weight((sampler.y.unsqueeze(1) - sampler.y).abs())
    for blocks in (sampler._cells, sampler._doubling):
        start, size, low, high = blocks(rank)
        covered = (rank >= start.unsqueeze(2)) & (rank < (start + size).unsqueeze(2))  # (query, block, rank)
        assert int(covered.sum(1).max()) == 1
        assert bool((covered.any(1) | (weight < 1e-26)).all())
        inside = covered.sum(2) > 0
        first, last = covered.double().argmax(2), (start + size - 1)
        assert torch.equal(sampler.y[first][inside], low[inside])
        assert torch.equal(sampler.y[last.clamp(min=0)][inside], high[inside])
    own = sampler.y.unsqueeze(1)
    bound = sampler._weight(torch.maximum(low - own, own - high).clamp(min=0))
    assert bool(((bound * size).sum(1) <= 2 * weight.sum(1) * (1 + 1e-12)).all())


def test_vector_labels_in_bounded_blocks(monkeypatch):
    y = torch.randn(300, 3, generator=generator()) * 3
    y[:100] = y[0]
    p = label_kernel_probabilities(y, 1.5)
    monkeypatch.setattr(label_draws, "SMALL", 10)
    monkeypatch.setattr(label_draws, "BLOCK", 1000)
    pairing = prepared(y, bandwidth=1.5)
    computed, original = [], ExplicitRows._cumulated
    monkeypatch.setattr(
        ExplicitRows, "_cumulated", lambda self, index: computed.append(len(index) * 300) or original(self, index)
    )
    drawn = pairing.draw(torch.tensor([0, 150, 299]).repeat_interleave(3000), generator()).view(3, -1)
    assert max(computed) <= 1000
    for query, partners in zip((0, 150, 299), drawn, strict=True):
        assert_drawn_from(torch.bincount(partners, minlength=300), p[query])


@pytest.mark.parametrize("rows", [50, 3000])  # kept rows, sorted labels
def test_more_than_two_samples_mixed_into_one(rows):
    y = torch.randn(rows, generator=generator())
    pairing = prepared(y, bandwidth=0.3, k=4)
    index = torch.full((8000,), 7)
    drawn = pairing.draw(index, generator())
    assert drawn.shape == (8000, 3)
    p = label_kernel_probabilities(y, 0.3)[7]
    for column in drawn.T:
        assert_drawn_from(torch.bincount(column, minlength=rows), p)
    assert abs(float(torch.corrcoef(y[drawn.T])[0, 1])) < 0.05  # independent columns
    mixed = pairing.draw(torch.tensor([3, int(y.argmax())]), generator())
    assert bool(((y[mixed] - y[[3, int(y.argmax())]].unsqueeze(1)).abs() < 3).all())  # rows stay with their query


def test_default_bandwidth_is_a_quarter_of_the_standard_deviation():
    y = torch.randn(30, generator=generator(), dtype=torch.float64) * 7
    assert prepared(y)._rows.bandwidth == pytest.approx(float(y.std(correction=0)) / 4)
    vector = torch.stack((y, torch.zeros(30)), dim=1)
    assert prepared(vector)._rows.bandwidth == pytest.approx(float(y.std(correction=0)) / 4)
    constant = prepared(torch.full((20,), 0.1)).draw(torch.zeros(4000, dtype=torch.long), generator())
    assert_drawn_from(torch.bincount(constant.flatten(), minlength=20), torch.full((20,), 1 / 20).double())


def test_draws_depend_on_the_generator_alone():
    y = torch.randn(5000, generator=generator())
    index = torch.arange(0, 5000, 7)
    state = torch.get_rng_state()
    first, second = (prepared(y, bandwidth=0.4).draw(index, generator(9)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, prepared(y, bandwidth=0.4).draw(index, generator(10)))
    assert torch.equal(state, torch.get_rng_state())


def test_bad_arguments_are_refused():
    for bandwidth in (0, -1.0, float("nan"), "wide"):
        with pytest.raises(ValueError, match="bandwidth"):
            LabelKernel(bandwidth)
        with pytest.raises(ValueError, match="bandwidth"):
            BatchLabelKernel(bandwidth)
    with pytest.raises(ValueError, match="kernel"):
        LabelKernel(1.0, "box")
    with pytest.raises(ValueError, match="class ids have no distance"):
        prepared(torch.arange(5))
    with pytest.raises(ValueError, match="class ids have no distance"):
        c_mixup(torch.randn(4, 2), torch.arange(4))
    with pytest.raises(ValueError, match="finite"):
        prepared(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="table"):
        LabelKernel(1.0).prepare(None, generator())
    with pytest.raises(ValueError, match="prepare"):
        LabelKernel(1.0).draw(torch.arange(3), generator())


# Within a batch


def batch_of(y, domain=None, anchors=-1):
    return om.Batch(torch.arange(len(y)).float().unsqueeze(1), y, domain, anchors=anchors)


def partners(pairing, batch, times=6000):
    g = generator(4)
    return torch.stack([pairing(batch, g)[:, 1] for _ in range(times)])  # (times, B)


@pytest.mark.parametrize("y", [torch.tensor([0.0, 0.5, 3.0, 0.4, 2.5, 9.0]), torch.randn(6, 2, generator=generator())])
def test_partners_come_from_all_rows_of_the_doubled_batch(y):
    drawn = partners(BatchLabelKernel(0.8), batch_of(y, anchors=3))
    p = label_kernel_probabilities(y, 0.8)
    assert drawn.shape[1] == 3
    for anchor in range(3):
        assert_drawn_from(torch.bincount(drawn[:, anchor], minlength=6), p[anchor])


def test_guests_of_the_batch_variant_are_uniform():
    pairing = BatchLabelKernel(1.0)
    assert pairing.rows(torch.arange(4), generator()) is None  # a plain loop: the batch's own rows
    pairing.prepare(om.Table(label=torch.randn(12)), generator())
    guests = pairing.rows(torch.zeros(12_000, dtype=torch.long), generator())
    assert guests.shape == (12_000, 1)
    assert_drawn_from(torch.bincount(guests.flatten(), minlength=12), torch.full((12,), 1 / 12).double())


def test_partners_of_another_domain_only():
    y = torch.tensor([0.0, 0.1, 0.2, 50.0, 5.0])
    domain = torch.tensor([0, 0, 1, 1, 0])
    pairing = BatchLabelKernel(1.0, domain="different")
    drawn = partners(pairing, batch_of(y, domain), times=4000)
    weight = torch.exp(-0.5 * (y[:, None] - y).double() ** 2) * (domain[:, None] != domain)
    weight[3] = torch.tensor([0, 0, 0, 0, 1.0])  # all far: the nearest of another domain, not nobody
    for row in range(5):
        assert_drawn_from(torch.bincount(drawn[:, row], minlength=5), weight[row] / weight[row].sum())
    alone = BatchLabelKernel(1.0, domain="different")
    assert bool((alone.partners(batch_of(y, torch.zeros(5)), generator()) == NONE).all())
    assert bool(
        om.Mix(alone).setup(nn.Linear(1, 1), om.Regression(1)).recipe(batch_of(y, torch.zeros(5))).unmixed.all()
    )
    assert alone.missing == 5
    with pytest.raises(ValueError, match=r"batch\.domain"):
        pairing(batch_of(y), generator())


def test_function_mixes_with_neighbours_of_the_batch():
    y = torch.tensor([0.0, 0.01, 5.0, 5.01])
    x = torch.randn(4, 3, generator=generator())
    before = x.clone()
    mixed = c_mixup(x, y, bandwidth=0.1, generator=generator())
    a, b = mixed.recipe.partner.T
    assert bool(((a < 2) == (b < 2)).all())
    lam = mixed.recipe.lam[:, None]
    assert mixed.recipe.lam.unique().numel() == 1  # one a batch
    torch.testing.assert_close(mixed.x, lam * x + (1 - lam) * x[b])
    torch.testing.assert_close(mixed.soft_target(), lam[:, 0] * y + (1 - lam[:, 0]) * y[b])
    output = torch.randn(4, generator=generator(1))
    torch.testing.assert_close(mixed.loss(F.mse_loss, output), F.mse_loss(output, mixed.soft_target()))
    assert torch.equal(x, before)
    assert c_mixup(x, y, per_sample=True, generator=generator()).recipe.lam.unique().numel() == 4


def test_swapping_the_pair_and_the_ratio_changes_nothing():
    x, y = torch.randn(2, 3, generator=generator()), torch.tensor([1.0, 2.0])
    one = c_mixup(x, y, lam=torch.tensor([0.25, 0.75]), partner=torch.tensor([1, 0]))
    torch.testing.assert_close(one.x[0], one.x[1])
    torch.testing.assert_close(one.soft_target()[0], one.soft_target()[1])


# The method


class Net(nn.Module):
    taps = ("block1", "block2")

    def __init__(self, activation=None):
        super().__init__()
        self.block1 = nn.Sequential(nn.Linear(3, 8), activation or nn.LeakyReLU(0.1))
        self.block2 = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.1))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.block2(self.block1(x)))


def net(activation=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(activation)


def data(rows=60):
    x = torch.randn(rows, 3, generator=generator(1))
    return x, x.sum(1) * 3


def loader_of(x, y, method, size=8, seed=2):
    return om.partner_loader(torch.utils.data.TensorDataset(x, y), method, size, generator=generator(seed))


def test_tiny_bandwidth_makes_the_steps_of_erm():
    x, y = data()
    trained = []
    for method in (CMixup(bandwidth=1e-3), om.ERM()):
        model = net()
        method.setup(model, om.Regression(1), om.Table(label=y), generator=generator())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for batch in loader_of(x, y, method):
            method.step(model, batch, optimizer)
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-5, atol=1e-7)


def test_huge_bandwidth_is_mixup_with_uniform_partners():
    y = data(40)[1]
    method = CMixup(bandwidth=1e6).setup(net(), om.Regression(1), om.Table(label=y), generator=generator())
    drawn = method.rows(torch.full((8000,), 3))[1]
    assert_drawn_from(torch.bincount(drawn.flatten(), minlength=40), torch.full((40,), 1 / 40).double())


def test_loss_by_hand_with_guests_from_the_table():
    x, y = data()
    model = net()
    method = CMixup(bandwidth=0.5).setup(model, om.Regression(1), om.Table(label=y), generator=generator())
    method.ratio = Constant(0.3)
    batch = next(iter(loader_of(x, y, method)))
    i, j = batch.index[:8], batch.index[8:]
    assert bool(((y[i] - y[j]).abs() < 4).all())
    assert not torch.equal(i, j)
    expected = F.mse_loss(model(0.3 * x[i] + 0.7 * x[j])[:, 0], 0.3 * y[i] + 0.7 * y[j])
    torch.testing.assert_close(method.loss(model, batch), expected)


@pytest.mark.parametrize("batch", [False, True])
def test_hidden_mode_mixes_after_the_first_block(batch):
    x, y = data()
    model = net()
    method = CMixup(bandwidth=0.5, place="hidden", batch=batch)
    method.setup(model, om.Regression(1), om.Table(label=y), generator=generator())
    assert method.places == ("block1",)
    method.ratio = Constant(0.3)
    loaded = next(iter(loader_of(x, y, method)))
    state = method.generator.get_state()
    j = method.recipe(loaded).partner[:, 1]
    method.generator.set_state(state)
    h = model.block1(loaded.x)
    expected = F.mse_loss(
        model.head(model.block2(0.3 * h[:8] + 0.7 * h[j]))[:, 0], 0.3 * loaded.y[:8] + 0.7 * loaded.y[j]
    )
    torch.testing.assert_close(method.loss(model, loaded), expected)
    assert bool((loaded.y[j] != loaded.y[:8]).any())


def test_a_linear_first_block_makes_both_places_equal():
    x, y = data()
    losses = []
    for place in ("input", "hidden"):
        model = net(nn.Identity())
        method = CMixup(bandwidth=2.0, place=place).setup(
            model, om.Regression(1), om.Table(label=y), generator=generator()
        )
        losses.append(torch.stack([method.loss(model, batch).detach() for batch in loader_of(x, y, method)]))
    torch.testing.assert_close(*losses)


def test_place_names():
    y = data()[1]
    method = CMixup(place="hidden")
    for _ in range(2):  # a second setup, with another network, finds that network's tap
        method.setup(net(), om.Regression(1), om.Table(label=y))
        assert method.places == ("block1",)
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    assert method.setup(other, om.Regression(1), om.Table(label=y)).places == ("1",)
    assert CMixup(place="block2").setup(net(), om.Regression(1), om.Table(label=y)).places == ("block2",)
    with pytest.raises(ValueError, match="block9"):
        CMixup(place="block9").setup(net(), om.Regression(1), om.Table(label=y))
    with pytest.raises(ValueError, match="none was found"):
        CMixup(place="hidden").setup(nn.Sequential(nn.Linear(3, 1)), om.Regression(1), om.Table(label=y))


def test_needs_the_labels_unless_it_pairs_within_the_batch():
    x, y = data()
    with pytest.raises(ValueError, match="'label'"):
        CMixup().setup(net(), om.Regression(1))
    method = CMixup(batch=True).setup(net(), om.Regression(1), generator=generator())
    assert method.rows(torch.arange(5))[1] is None
    assert torch.isfinite(method.loss(net(), (x[:5], y[:5])))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"bandwidth": 0.5, "kernel": "tophat"},
        {"batch": True},
        {"batch": True, "bandwidth": 0.5, "per_sample": True},
        {"place": "hidden"},
        {"place": "block2", "alpha": 0.5},
    ],
    ids=str,
)
def test_contract(parameters):
    assert check_method("c-mixup", **parameters)
