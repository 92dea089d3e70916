"""Permutation specifications, matching, and the mergers built on them: invariances, planted answers, small oracles."""

import copy
import itertools

import pytest
import torch
from torch import nn

from omnimix.models import merge
from omnimix.models.merge.matching.activation_matching import Moments
from omnimix.models.merge.matching.weight_matching import similarities
from omnimix.models.merge.matching.zipping import paired, rebuilt, zip_states
from omnimix.models.merge.pleas import Cost, partial
from omnimix.models.merge.repair import statistics
from omnimix.models.merge.zipit import zip_units
from omnimix.networks.preact_resnet import PreActResNet


class Plain(nn.Module):
    """Residual sums, a depthwise convolution, concatenation, a norm and flattening."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.back = nn.Conv2d(16, 8, 1, bias=False)
        self.side = nn.Conv2d(8, 4, 1)
        self.norm = nn.GroupNorm(1, 12)
        self.fc, self.act, self.out = nn.Linear(12 * 4, 10), nn.PReLU(10), nn.Linear(10, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.back(self.deep(x))
        x = self.norm(torch.cat([x, self.side(x)], 1))
        x = nn.functional.adaptive_avg_pool2d(x, 2).view(x.size(0), -1)
        return self.out(self.act(self.fc(x)))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.embed(x) + self.place
        n = self.norm(h)
        h = h + self.attention(n, n, n, need_weights=False)[0]
        return self.head(self.layer(h)[:, 0])


def mlp(seed=0, width=6, inputs=4, outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
        )


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scrambled(model, seed=0):
    """Statistics and affine parameters that differ from unit to unit, so that a wrong permutation shows."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for value in [*model.parameters(), *model.buffers()]:
            if value.dim() == 1 and value.is_floating_point():
                value.copy_(torch.rand(len(value)) + 0.5)
    return model.eval()


def seeded():
    return torch.Generator().manual_seed(0)


def held(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def agreement(a, b):
    return sum(float((value.double() * b[key].double()).sum()) for key, value in a.items())


def permutations(spec, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randperm(group.size, generator=g) for name, group in spec.items()}


NETWORKS = {
    "mlp": (lambda: mlp(), lambda: noise(4, 4), 2),
    "plain": (Plain, lambda: noise(3, 3, 6, 6), 3),
    "resnet": (lambda: PreActResNet((3, 8, 8), 5, 8, (8, 12), 2), lambda: noise(2, 3, 8, 8), 6),
    "attention": (Attends, lambda: torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]), 4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_any_group_leaves_the_output(name):
    make, data, groups = NETWORKS[name]
    model, x = scrambled(make().double() if name != "attention" else make()), data()
    x = x.double() if x.is_floating_point() and name != "attention" else x
    spec = merge.permutation_spec(model, x)
    assert len(spec) == groups
    assert spec.fixed == ()
    before, state = model(x), held(model)
    for group, permutation in permutations(spec).items():
        model.load_state_dict(spec.apply(state, {group: permutation}))
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
        assert any(not torch.equal(value, model.state_dict()[key]) for key, value in state.items()), group
    model.load_state_dict(spec.apply(state, permutations(spec, 1)))
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)


def test_an_operation_that_is_not_known_keeps_its_units_in_place():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.cumsum(self.a(x), -1))))

    spec = merge.permutation_spec(Odd(), noise(2, 4))
    assert [*spec] == ["b.weight"]
    assert spec.fixed == ("cumsum",)


def test_tied_layers_move_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4, bias=False)
            self.c.weight = nn.Parameter(self.a.weight.T.contiguous())
            self.again = self.b

        def forward(self, x):
            return self.c(self.again(torch.relu(self.b(torch.relu(self.a(x))))))

    model, x = Tied(), noise(3, 4)
    spec = merge.permutation_spec(model, x)
    assert len(spec) == 1
    state = spec.apply(model.state_dict(), permutations(spec))
    assert torch.equal(state["again.weight"], state["b.weight"])
    before = model(x)
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), before)


def test_what_cannot_be_traced_is_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branches cannot be traced .* PermutationSpec\.of"):
        merge.permutation_spec(Branches(), noise(2))


def test_a_specification_by_hand_is_the_traced_one():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4, 5))
    state = model.state_dict()
    spec = merge.PermutationSpec.of({"h": [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]}, state)
    traced = merge.permutation_spec(model, noise(1, 2, 4, 4))
    assert [(a.name, a.dim, a.places.tolist(), a.incoming) for a in spec["h"].axes] == [
        (a.name, a.dim, a.places.tolist(), a.incoming) for a in traced["0.weight"].axes
    ]
    with pytest.raises(ValueError, match="there is no dim 0 of tensor 'x'"):
        merge.PermutationSpec.of({"h": [("x", 0)]}, state)
    with pytest.raises(ValueError, match=r"must hold each of 0\.\.2 once"):
        spec.apply(state, {"h": torch.tensor([0, 0, 2])})


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_transformers_by_their_names(family):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    if family == "llama":
        config = transformers.LlamaConfig(
            vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )  # fmt: skip
        model, groups = transformers.LlamaForCausalLM(config), 2
    elif family == "bert":
        config = transformers.BertConfig(
            vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
        )
        model, groups = transformers.BertForSequenceClassification(config), None
    else:
        config = transformers.GPT2Config(vocab_size=13, n_embd=16, n_layer=2, n_head=4, n_positions=10)
        model, groups = transformers.GPT2LMHeadModel(config), None
    model = scrambled(model)
    x, state = torch.tensor([[1, 5, 2, 7], [3, 3, 9, 0]]), held(model)
    spec = merge.transformer({k: v.shape for k, v in state.items() if v.is_floating_point()}, 4, groups=groups)
    assert len(spec) == 5
    before = model(x).logits
    for name, permutation in permutations(spec).items():
        model.load_state_dict(spec.apply(state, {name: permutation}))
        torch.testing.assert_close(model(x).logits, before, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"'x\.weight' is not known here"):
        merge.transformer({"x.weight": (2, 2)}, 4)


@pytest.mark.parametrize("name", ["mlp", "plain", "resnet"])
@pytest.mark.parametrize("criterion", ["weights", "distance", "correlation"])
def test_a_planted_permutation_is_found_and_the_merge_is_the_model(name, criterion):
    make, data, _ = NETWORKS[name]
    model, x = scrambled(make()), data()
    spec = merge.permutation_spec(model, x)
    state, planted = model.state_dict(), permutations(spec, 3)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(state, planted))
    if criterion == "weights":
        found = merge.weight_matching(state, other.state_dict(), spec, generator=seeded())
    else:
        batches = [noise(*x.shape, seed=i) for i in range(20)]
        found = merge.activation_matching(model, other, spec, batches, criterion=criterion)
    aligned = spec.apply(other.state_dict(), found)
    for key, value in state.items():
        torch.testing.assert_close(aligned[key], value, atol=0, rtol=0)
    for name in spec:
        assert torch.equal(planted[name][found[name]], torch.arange(spec[name].size))
    merged = merge.Linear()([state, aligned])
    assert all(torch.equal(merged[key], value) for key, value in state.items())


def test_matching_one_layer_is_the_best_of_all_permutations():
    a, b = (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(2))
    spec = merge.permutation_spec(a, noise(1, 3))

    def reached(p):
        return agreement(a.state_dict(), spec.apply(b.state_dict(), {"0.weight": torch.tensor(p)}))

    found = merge.weight_matching(a.state_dict(), b.state_dict(), spec)["0.weight"].tolist()
    assert reached(found) == pytest.approx(max(map(reached, itertools.permutations(range(5)))))


def test_weight_matching_never_loses_agreement_and_ends():
    a, b = mlp(0, 8), mlp(1, 8)
    spec = merge.permutation_spec(a, noise(1, 4))
    passes = []
    for rounds in (1, 2, 3, 100):
        found = merge.weight_matching(a.state_dict(), b.state_dict(), spec, rounds=rounds, generator=seeded())
        moved = spec.apply(b.state_dict(), found)
        passes.append(agreement(a.state_dict(), moved))
    start = agreement(a.state_dict(), b.state_dict())
    assert [start, *passes] == sorted([start, *passes])
    assert passes[-1] > start
    with pytest.raises(ValueError, match="rounds must be an integer >= 1"):
        merge.weight_matching(a.state_dict(), b.state_dict(), spec, rounds=0)


def test_moments_of_batches_are_those_of_all_and_dead_units_have_no_correlation():
    features = torch.cat([noise(3, 30).double(), torch.full((1, 30), 2.5).double()])
    whole, parts = Moments(), Moments()
    whole.add(features)
    for part in features.split(7, dim=1):
        parts.add(part)
    torch.testing.assert_close(whole.correlation(), parts.correlation())
    torch.testing.assert_close(whole.distance(), parts.distance())
    torch.testing.assert_close(whole.distance(), torch.cdist(features, features), atol=1e-6, rtol=1e-6)
    expected = torch.zeros(4, 4).double()
    expected[:3, :3] = torch.corrcoef(features[:3])
    torch.testing.assert_close(whole.correlation(), expected)


def test_inputs_of_nothing_are_refused():
    model = mlp()
    spec = merge.permutation_spec(model, noise(1, 4))
    for call in (
        lambda: merge.activation_matching(model, model, spec, []),
        lambda: merge.repair(model, [model, model], []),
        lambda: merge.recalibrate(PreActResNet((3, 8, 8), 5, 8, (8,), 1), []),
    ):
        with pytest.raises(ValueError, match="at least one batch"):
            call()


# joining


def test_pairs_are_the_average_of_permuted_networks():
    a, b = scrambled(Plain(), 0), scrambled(Plain(), 1)
    spec = merge.permutation_spec(a, noise(1, 3, 6, 6))
    found = permutations(spec, 2)
    joined = zip_states([a.state_dict(), b.state_dict()], spec, paired(spec, found))
    plain = merge.Linear()([a.state_dict(), spec.apply(b.state_dict(), found)])
    for key, value in plain.items():
        torch.testing.assert_close(joined[key], value)


@pytest.mark.parametrize("make", [mlp, lambda seed=0: scrambled(Plain(), seed)], ids=["mlp", "plain"])
def test_networks_kept_apart_give_the_mean_of_their_outputs(make):
    a, b = make(seed=0).double().eval(), make(seed=1).double().eval()
    x = (noise(5, 4) if isinstance(a, nn.Sequential) else noise(5, 3, 6, 6)).double()
    spec = merge.permutation_spec(a, x)
    if not isinstance(a, nn.Sequential):
        a.norm = b.norm = nn.Identity()  # a norm over both halves is not that of each
        spec = merge.permutation_spec(a, x)
    clusters = {k: partial(torch.arange(g.size), torch.zeros(g.size), 1.0) for k, g in spec.items()}
    state = zip_states([a.state_dict(), b.state_dict()], spec, clusters)
    merged = rebuilt(a, state)
    torch.testing.assert_close(merged(x), (a(x) + b(x)) / 2)
    assert "12" in str(merged[2]) if isinstance(a, nn.Sequential) else "32" in str(merged.deep)
    copy.deepcopy(merged).load_state_dict(state)


@pytest.mark.parametrize("solve", [False, True])
@pytest.mark.parametrize("matching", ["weights", "activations"])
def test_pleas_of_a_permuted_copy_is_the_network(solve, matching):
    model, x = scrambled(PreActResNet((3, 8, 8), 5, 6, (6, 8), 1)), [noise(16, 3, 8, 8, seed=i) for i in range(3)]
    merge.recalibrate(model, x)
    spec = merge.permutation_spec(model, x[0])
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), permutations(spec, 3)))
    for ratio in (0.0, 0.5, 1.0):
        merged = merge.pleas(model, other, spec, x, matching=matching, solve=solve, ratios=ratio)
        torch.testing.assert_close(merged(x[0]), model(x[0]), atol=2e-4, rtol=1e-4)


def test_pleas_at_full_width_is_the_ensemble_and_stays_it_when_solved():
    a, b, x = mlp(0).double(), mlp(1).double(), [noise(40, 4, seed=i).double() for i in range(2)]
    spec = merge.permutation_spec(a, x[0])
    for solve in (False, True):
        merged = merge.pleas(a, b, spec, x, ratios=1.0, solve=solve)
        torch.testing.assert_close(merged(x[0]), (a(x[0]) + b(x[0])) / 2, atol=1e-5, rtol=1e-5)


def test_pleas_without_solving_at_its_own_size_is_git_re_basin():
    a, b, x = mlp(0), mlp(1), noise(9, 4)
    spec = merge.permutation_spec(a, x)
    draw = torch.Generator().manual_seed(4)
    found = merge.weight_matching(a.state_dict(), b.state_dict(), spec, generator=torch.Generator().manual_seed(4))
    aligned = merge.Linear()([a.state_dict(), spec.apply(b.state_dict(), found)])
    mean = copy.deepcopy(a)
    mean.load_state_dict(aligned)
    torch.testing.assert_close(merge.pleas(a, b, spec, [x], solve=False, generator=draw)(x), mean(x))


def test_pleas_solves_least_squares_by_hand():
    a, b = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
    x = noise(20, 3)
    merged = merge.pleas(a, b, merge.permutation_spec(a, x), [x[:8], x[8:]], ridge=0)
    wanted = (a(x) + b(x)).detach().double() / 2
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(20, 1)], 1).double(), wanted).solution
    torch.testing.assert_close(merged[0].weight.detach().double(), solution[:3].T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged[0].bias.detach().double(), solution[3], atol=1e-5, rtol=1e-5)


def test_pleas_keeps_networks_apart_and_lowers_the_error_of_every_layer():
    a, b, x = mlp(0, 8).double(), mlp(1, 8).double(), noise(200, 4).double()
    spec = merge.permutation_spec(a, x)
    plain = merge.pleas(a, b, spec, [x], ratios=0.5, solve=False)
    solved = merge.pleas(a, b, spec, [x], ratios=0.5)
    assert solved[2].weight.shape == (12, 12)
    assert (solved[2].out_features, solved[2].in_features) == (12, 12)
    for model in (plain, solved):
        weight = model[2].weight
        assert weight[4:8, 8:].abs().max() == 0
        assert weight[8:, 4:8].abs().max() == 0
    assert solved[2].weight[4:8, 4:8].abs().min() > 0

    found = merge.weight_matching(a.state_dict(), b.state_dict(), spec, generator=seeded())
    moved = copy.deepcopy(b)
    moved.load_state_dict(spec.apply(b.state_dict(), found))
    orders = {0: slice(None), 4: slice(None)}
    for name in spec:  # fused units come in the order of how well they match
        alike = similarities(a.state_dict(), moved.state_dict(), spec, name).diagonal()
        orders[int(name[0]) + 1] = alike.argsort(descending=True, stable=True)
    orders = {
        layer: (orders[layer - 1] if layer else slice(None), orders.get(layer + 1, slice(None))) for layer in (0, 2, 4)
    }
    same = [merge.pleas(a, b, spec, [x], solve=solve, generator=seeded()) for solve in (False, True)]
    for layer, (into, out) in orders.items():
        inputs = ((a[:layer](x) + moved[:layer](x)) / 2)[:, into].detach()
        wanted = ((a[: layer + 1](x) + moved[: layer + 1](x)) / 2)[:, out].detach()
        before, after = (float(((model[layer](inputs) - wanted) ** 2).mean().detach()) for model in same)
        assert after <= before + 1e-9
        assert after < before or layer == 0


def test_the_part_kept_apart_is_the_worst_matched():
    clusters = partial(torch.tensor([2, 0, 1, 3]), torch.tensor([0.1, 0.9, 0.8, 0.2]), 0.5)
    assert clusters.tolist() == [[3, 0, 1, 2], [0, 1, 5, 4]]


def test_costs_and_budgets():
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    x = noise(1, 10)
    spec = merge.permutation_spec(model, x)
    cost, names = Cost(model, spec, x), [*spec]
    assert cost(dict.fromkeys(names, 0.0)) == 1
    assert cost(dict.fromkeys(names, 1.0)) == 2
    assert cost(dict.fromkeys(names, 0.5)) == pytest.approx((1.5 + 1.75 + 1.5) / 3)
    assert merge.ratios_for(model, spec, x, 1.0) == pytest.approx(dict.fromkeys(names, 0.0), abs=1e-6)
    assert merge.ratios_for(model, spec, x, 2.0) == pytest.approx(dict.fromkeys(names, 1.0), abs=1e-6)
    half = merge.ratios_for(model, spec, x, 1.5)
    assert cost(half) == pytest.approx(1.5, abs=1e-4)
    one = merge.ratios_for(model, spec, x, 1.5, gains={names[0]: 1.0})
    assert one[names[0]] >= half[names[0]] - 1e-6
    with pytest.raises(ValueError, match=r"budget must be a number in \[1, 2\]"):
        merge.ratios_for(model, spec, x, 2.5)
    with pytest.raises(ValueError, match=r"ratio of group '0.weight' must be a number in \[0, 1\], got 2"):
        merge.pleas(model, model, spec, [x], ratios=2)


def test_zipping_equal_networks_pairs_each_unit_with_its_copy():
    model, x = scrambled(PreActResNet((3, 8, 8), 5, 6, (6, 8), 1)), [noise(16, 3, 8, 8, seed=i) for i in range(3)]
    merge.recalibrate(model, x)
    spec = merge.permutation_spec(model, x[0])
    torch.testing.assert_close(merge.zipit([model, model], spec, x)(x[0]), model(x[0]), atol=1e-4, rtol=1e-4)
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(model.state_dict(), permutations(spec, 3)))
    torch.testing.assert_close(merge.zipit([model, other], spec, x)(x[0]), model(x[0]), atol=1e-4, rtol=1e-4)


def test_zip_units_by_hand():
    # units 0 and 1 of one model are alike, so are its unit 2 and the other's unit 0
    alike = torch.eye(6)
    for i, j, value in ((0, 1, 0.9), (2, 3, 0.8), (4, 0, 0.7), (5, 1, 0.1)):
        alike[i, j] = alike[j, i] = value
    pairs = zip_units(alike, 2, 3, within=0.0)
    assert sorted(pairs[0].tolist()) == sorted(pairs[1].tolist()) == [0, 1, 2]
    assert pairs[0, 2] == pairs[1, 0]
    assert pairs[0, 0] == pairs[1, 1]
    free = zip_units(alike, 2, 4, within=1.0)
    assert free[0, 0] == free[0, 1]
    assert free[0, 2] == free[1, 0]
    assert zip_units(alike, 2, 6).unique().numel() == 6
    # once A0 and B0 are one, A1 is as like them as it is like the less alike: 0.1, and 0.3 of that
    alike = torch.eye(4)
    for i, j, value in ((0, 2, 0.9), (0, 1, 0.8), (1, 2, 0.1), (1, 3, 0.2)):
        alike[i, j] = alike[j, i] = value
    assert zip_units(alike, 2, 2, within=1.0).tolist() == [[0, 1], [0, 1]]


def test_repair_gives_back_the_spread_of_the_parents():
    a, b, x = mlp(0, 32), mlp(1, 32), [noise(500, 4, seed=i) for i in range(2)]
    merged = copy.deepcopy(a)
    merged.load_state_dict(merge.Linear()([a.state_dict(), b.state_dict()]))
    whole = [torch.cat(x)]
    mended = merge.repair(merged, [a, b], whole, weights=[3, 1])
    names = ["0", "2"]
    one, two, now, was = (statistics(model, names, whole) for model in (a, b, mended, merged))
    for name in names:
        for i in (0, 1):  # standard deviations are interpolated, not variances
            wanted = 0.75 * one[name][i] + 0.25 * two[name][i]
            torch.testing.assert_close(now[name][i], wanted, atol=1e-4, rtol=1e-2)
        assert ((was[name][1] - wanted).abs() > 0.02 * wanted).any()
    assert torch.equal(mended[4].weight, merged[4].weight)
    same = merge.repair(a, [a, a], whole)
    torch.testing.assert_close(same(x[0]), a(x[0]), atol=1e-5, rtol=1e-4)
    several = merge.repair(merged, [a, b], x, weights=[3, 1])
    torch.testing.assert_close(several(x[0]), mended(x[0]), atol=0.1, rtol=0.1)


def test_statistics_are_taken_again_where_there_is_batch_normalisation():
    model, x = Plain(), [noise(16, 3, 6, 6, seed=i) * 3 + 1 for i in range(4)]
    model.train()
    momentum = model.bn.momentum
    merge.recalibrate(model, x)
    assert model.training
    assert model.bn.momentum == momentum
    expected = torch.stack([model.stem(one).mean((0, 2, 3)) for one in x]).mean(0)
    torch.testing.assert_close(model.bn.running_mean, expected, atol=1e-4, rtol=1e-4)
    mended = merge.repair(Plain(), [model, model], x)
    assert not torch.equal(mended.bn.running_mean, torch.zeros(8))
    with pytest.raises(ValueError, match="layer '0' has no bias"):
        bare = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2))
        merge.repair(bare, [bare, bare], [noise(5, 4)])
