"""Hand values, identities and limits of the operators on tensors and on state dicts."""

import math

import pytest
import torch

from omnimix.models import merge
from omnimix.models.merge import base as operators
from omnimix.models.merge import source

ZERO = torch.zeros(4)
TAUS = [torch.tensor([0.5, -0.3, 0.1, 0.8]), torch.tensor([-0.4, -0.2, 0.05, 0.6]), torch.tensor([0.2, 0.9, -0.3, 0.0])]


def random_states(n, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (5, 7), "a.bias": (5,), "scale": (), "none": (0, 3)}
    return [{k: torch.randn(s, generator=g).to(dtype) for k, s in shapes.items()} for _ in range(n)]


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


ALL = [
    merge.Linear([3, 1, 2]),
    merge.UniformSoup(),
    merge.TaskArithmetic([0.25, 0.25, 0.5]),
    merge.Ties(density=1.0),
    merge.Ties(density=0.3, trim="tensor"),
    merge.DareLinear([0.5, 0.25, 0.25], density=1.0),
    merge.DareTies(density=1.0, normalize=True),
    merge.ModelStock(),
]


@pytest.mark.parametrize("merger", ALL, ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_models_merge_to_the_model(merger, dtype):
    model, base = random_states(2, dtype)
    if merger.name == "ties" and merger.density != 1:  # trims: there the base shows
        base = {name: value * 0 for name, value in model.items()}
        model = {name: value.sign() for name, value in model.items()}
    merged = merger([model] * 3, base if merger.base == "required" else None)
    for name, value in model.items():
        close(merged[name], value, 1e-2 if dtype == torch.bfloat16 else 1e-6)
        assert merged[name].dtype == dtype
        assert merged[name].shape == value.shape


def test_linear_keeps_equal_models_and_single_weights_exactly():
    one, two, three = random_states(3)
    for merger in (merge.Linear([1, 1, 1]), merge.Linear([0.2, 0.5, 0.3])):
        assert all(torch.equal(merger([one] * 3)[name], one[name]) for name in one)
    alone = merge.Linear([0, 1, 0])([one, two, three])
    assert all(torch.equal(alone[name], two[name]) for name in one)


def test_linear_by_hand():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    close(merge.linear([a, b], [3, 1]), torch.tensor([1.5, 3.0]))
    close(merge.linear([a, b], [3, 1], normalize=False), torch.tensor([6.0, 12.0]))
    close(merge.linear([a, b, a], [1, 2, 1]), torch.tensor([2.0, 4.0]))


def test_half_precision_is_summed_in_float32():
    big, small = torch.tensor([256.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16)
    assert merge.linear([big] + [small] * 4, normalize=False).item() == 260  # in bfloat16 256 + 1 is 256
    assert merge.linear([big, small], dtype=torch.float32).item() == 128.5


def test_slerp_by_hand_and_at_its_ends():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    close(merge.slerp(a, b, 0.5), torch.tensor([2.121320, 0.707107]))
    assert torch.equal(merge.slerp(a, b, 0.0), a)
    assert torch.equal(merge.slerp(a, b, 1.0), b)
    assert torch.equal(merge.slerp(a, a, 0.3), a)
    close(merge.slerp(a, 0 * a, 0.25), 0.75 * a)
    close(merge.slerp(torch.tensor([1.0]), torch.tensor([-3.0]), 0.25), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="opposite"):
        merge.slerp(a, -a)
    with pytest.raises(ValueError, match=r"t must be a number in \[0, 1\], got 2"):
        merge.slerp(a, b, 2)


def test_task_arithmetic_adds_and_negates():
    base, one, two = (state["a.weight"] for state in random_states(3))
    close(merge.task_arithmetic([one], base), one)
    close(merge.task_arithmetic([one], base, lam=0.0), base)
    close(merge.task_arithmetic([one, two], base, [0.5, 0.5]), (one + two) / 2)
    close(merge.task_arithmetic([one, two], base), one + two - base)
    without = merge.task_arithmetic([one], base, lam=-1.0)
    close(merge.task_arithmetic([without], base, lam=-1.0), one)


def test_ties_by_hand():
    close(merge.ties(TAUS, ZERO, density=1.0), torch.tensor([0.35, 0.9, -0.3, 0.7]))
    close(merge.ties(TAUS, ZERO, density=0.5), torch.tensor([0.5, 0.9, -0.3, 0.7]))
    moved = merge.ties([tau + 1 for tau in TAUS], ZERO + 1, density=1.0, lam=2.0)
    close(moved, 1 + 2 * torch.tensor([0.35, 0.9, -0.3, 0.7]))


def test_ties_of_one_model_with_density_one_is_the_model():
    base, one = random_states(2)
    for trim in ("model", "tensor"):
        merged = merge.Ties(density=1.0, trim=trim)([one], base)
        for name in one:
            close(merged[name], one[name])


def test_ties_weights_divide_by_those_that_agree():
    merged = merge.ties([torch.tensor([1.0, 1.0]), torch.tensor([4.0, -1.0])], torch.zeros(2), [1, 2], density=1.0)
    close(merged, torch.tensor([3.0, -1.0]))  # (1 + 2 * 4) / 3; the second entry goes to the heavier model


def test_ties_trims_over_the_model_or_each_tensor():
    base = {"big": torch.zeros(4), "small": torch.zeros(4)}
    model = {"big": torch.tensor([8.0, 7.0, 6.0, 5.0]), "small": torch.tensor([0.4, 0.3, 0.2, 0.1])}
    whole = merge.Ties(density=0.5)([model], base)
    assert whole["small"].tolist() == [0] * 4
    assert torch.equal(whole["big"], model["big"])
    each = merge.Ties(density=0.5, trim="tensor")([model], base)
    assert each["big"].tolist() == [8, 7, 0, 0]
    close(each["small"], torch.tensor([0.4, 0.3, 0.0, 0.0]))


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9])
def test_the_trimming_threshold_is_exact_over_many_blocks(density, monkeypatch):
    monkeypatch.setattr(source, "BLOCK", 100)
    change = torch.randn(1234, generator=torch.Generator().manual_seed(1))
    merged = merge.Ties(density=density, trim="tensor")([{"w": change}], {"w": torch.zeros(1234)})["w"]
    kept = change.abs() >= change.abs().sort(descending=True).values[int(density * 1234) - 1]
    assert torch.equal(merged, change * kept)
    assert int(kept.sum()) == int(density * 1234)


def test_a_tensor_too_small_to_trim_is_kept():
    assert merge.ties([torch.tensor([0.3])], torch.zeros(1), density=0.2).tolist() == pytest.approx([0.3])


def test_sums_of_zero_take_the_majority_over_the_model_and_plus_within_tensors():
    base = {"w": torch.zeros(3)}
    models = [{"w": torch.tensor([1.0, -2.0, -1.0])}, {"w": torch.tensor([-1.0, -2.0, -1.0])}]
    assert merge.Ties(density=1.0)(models, base)["w"].tolist() == [-1, -2, -1]
    assert merge.Ties(density=1.0, trim="tensor")(models, base)["w"].tolist() == [1, -2, -1]


def test_dare_is_unbiased_and_keeps_its_share():
    change, g = torch.tensor([1.0, -2.0, 0.5]), torch.Generator().manual_seed(0)
    draws = torch.stack([merge.dare(change, 0.25, g) for _ in range(10_000)])
    close(draws.mean(0), change, 0.08)
    share = (draws != 0).double().mean().item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 30_000)
    assert torch.equal(merge.dare(change, 1.0, g), change)


@pytest.mark.parametrize("kind", [merge.DareLinear, merge.DareTies])
def test_dare_masks_hang_on_name_model_and_seed_only(kind):
    base, one, two = random_states(3)
    merged = kind(density=0.5)([one, two], base)
    turned = kind(density=0.5)([dict(reversed(m.items())) for m in (one, two)], dict(reversed(base.items())))
    assert all(torch.equal(merged[name], turned[name]) for name in base)
    other = kind(density=0.5, seed=1)([one, two], base)
    assert not torch.equal(merged["a.weight"], other["a.weight"])
    state = torch.random.get_rng_state()
    kind(density=0.5)([one, two], base)
    assert torch.equal(state, torch.random.get_rng_state())


def test_fisher_by_hand():
    models = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])]
    close(merge.fisher(models, [torch.tensor([4.0, 1.0]), torch.tensor([1.0, 3.0])]), torch.tensor([1.4, 0.5]))
    close(merge.fisher(models, [torch.ones(2)] * 2), torch.tensor([2.0, 1.0]))
    close(merge.fisher(models, [torch.ones(2), torch.zeros(2)]), models[0])
    close(merge.fisher(models, [torch.zeros(2)] * 2), torch.tensor([2.0, 1.0]))


def test_fisher_information_of_logistic_regression():
    model, x = torch.nn.Linear(3, 2, bias=False), torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]])
    chance = model(x).softmax(-1).detach()
    # d log p_y / d w_c = ([c = y] - p_c) x, so E_y of its square is p_c (1 - p_c) x^2
    expected = torch.einsum("bc,bi->ci", chance * (1 - chance), x**2) / 2
    found = merge.fisher_information(model, [x[:1], x[1:]])
    close(found["weight"], expected)
    assert model.training
    assert model.weight.grad is None
    merger = merge.Fisher([found, {"weight": 0 * expected}])
    close(merger([model.state_dict(), {"weight": torch.zeros(2, 3)}])["weight"], model.weight.detach(), 1e-5)


def test_regmean_by_hand():
    x1, x2 = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    weights, grams = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])], [x1.T @ x1, x2.T @ x2]
    close(merge.regmean(weights, grams, shrink=1.0), torch.tensor([[0.090909, 3.818182]]))
    close(merge.regmean(weights, grams, shrink=0.9), torch.tensor([[0.195711, 3.787310]]))
    close(merge.regmean(weights, [grams[0]] * 2), torch.tensor([[2.0, 3.0]]))
    close(merge.regmean(weights, [torch.zeros(2, 2)] * 2), torch.tensor([[2.0, 3.0]]))


def test_regmean_of_linear_layers_is_joint_least_squares():
    g = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(6, 3, bias=False) for _ in range(3)]
    inputs = [torch.randn(40, 6, generator=g) for _ in range(3)]
    grams = [merge.gram_matrices(layer, [x[:17], x[17:]]) for layer, x in zip(layers, inputs, strict=True)]
    merged = merge.RegMean(grams, shrink=1.0)([layer.state_dict() for layer in layers])["weight"]
    outputs = torch.cat([layer(x) for layer, x in zip(layers, inputs, strict=True)]).detach()
    close(merged, torch.linalg.lstsq(torch.cat(inputs), outputs).solution.T, 1e-5)


def test_regmean_merges_convolutions_and_takes_the_mean_of_the_rest():
    g = torch.Generator().manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.BatchNorm2d(3)) for _ in range(2)]
    x = torch.randn(4, 2, 6, 6, generator=g)
    grams = [merge.gram_matrices(net, [x]) for net in nets]
    merged = merge.RegMean(grams, shrink=1.0)([net.state_dict() for net in nets])
    kernels = [net[0].weight.detach() for net in nets]
    close(merged["0.weight"], (kernels[0] + kernels[1]) / 2, 1e-4)  # equal inputs
    close(merged["0.bias"], (nets[0][0].bias + nets[1][0].bias).detach() / 2)
    assert merged["1.num_batches_tracked"].dtype == torch.int64
    assert nets[0].training


def test_model_stock_by_hand():
    base, one, two = torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0])
    close(merge.model_stock([one, two], base), torch.tensor([0.6, 0.3, 0.0]))
    close(merge.model_stock([one, one], base), one)
    close(merge.model_stock([one, torch.tensor([0.0, 1.0, 0.0])], base), base)
    close(merge.model_stock([one, -two], base), base)
    with pytest.raises(ValueError, match="model-stock merges at least 2 models, got 1"):
        merge.model_stock([one], base)


def test_greedy_soup_keeps_what_helps():
    target = torch.tensor([0.0, 0.0])
    models = [{"w": torch.tensor(v)} for v in ([1.0, 0.0], [-1.0, 0.2], [100.0, 100.0], [0.0, -0.9])]

    def score(state):
        return -float((state["w"] - target).norm())

    soup, chosen = merge.greedy_soup(models, score)
    assert 2 not in chosen
    assert score(soup) >= max(map(score, models))
    close(soup["w"], torch.stack([models[i]["w"] for i in chosen]).mean(0))
    alone, order = merge.greedy_soup(models[:1], score)
    assert order == [0]
    assert torch.equal(alone["w"], models[0]["w"])


def test_integers_are_copied_and_must_agree():
    a, b = ({"w": torch.ones(2), "steps": torch.tensor(v)} for v in (3, 3))
    assert merge.Linear()([a, b])["steps"].item() == 3
    b["steps"] = torch.tensor(4)
    with pytest.raises(ValueError, match="'steps' is int64, which is copied and not averaged, and differs"):
        merge.Linear()([a, b])
    batches = [{"bn.num_batches_tracked": torch.tensor(v)} for v in (3, 4)]
    assert merge.Linear()(batches)["bn.num_batches_tracked"].item() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.ones(3)}, r"shape \(2,\) in model 0 and \(3,\) in model 1"),
        ({"v": torch.ones(2)}, "only one of model 0 and model 1 has 'v', 'w'"),
        ({"w": torch.tensor([1.0, math.nan])}, "model 1: tensor 'w' holds nan at entry 1"),
        ({"w": torch.tensor([-math.inf, 0.0])}, "model 1: tensor 'w' holds -inf at entry 0"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "'w' is torch.float32 in model 0 and torch.int64 in model 1"),
        ({"w": "x"}, "model 1: 'w' must be a tensor, got str"),
    ],
)
def test_what_differs_or_is_no_number_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        merge.Linear()([{"w": torch.ones(2)}, change])


def test_results_too_large_for_the_dtype_are_refused():
    big = {"w": torch.full((2,), 60000.0, dtype=torch.float16)}
    with pytest.raises(ValueError, match="'w' does not fit float16"):
        merge.Linear(normalize=False)([big, big])
    assert merge.Linear(normalize=False)([big, big], dtype=torch.float32)["w"].tolist() == [120000.0] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: merge.Linear([1, -1]), "must not add up to 0"),
        (lambda: merge.Linear([math.nan]), "finite numbers"),
        (lambda: merge.Ties(density=0), r"density must be a number in \(0, 1\]"),
        (lambda: merge.Ties(density=1.5), r"density must be a number in \[0, 1\], got 1.5"),
        (lambda: merge.Ties(trim="layer"), "trim must be one of"),
        (lambda: merge.DareLinear(lam=math.inf), "lam must be a finite number"),
        (lambda: merge.Linear([1])(random_states(2)), "weights must be one number a model: got 1 for 2"),
        (lambda: merge.TaskArithmetic()(random_states(1)), "needs a base model"),
        (lambda: merge.Linear()(*[random_states(1)] * 1, random_states(1)[0]), "takes no base model"),
        (lambda: merge.Slerp()(random_states(3)), "slerp merges exactly 2 models, got 3"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("merger", [*ALL, merge.Slerp(0.3)], ids=lambda m: m.name)
def test_inputs_stay_and_blocks_do_not_matter(merger, monkeypatch):
    base, *models = random_states(3 if merger.most == 2 else 4)
    copies = [{name: value.clone() for name, value in model.items()} for model in [base, *models]]
    start = base if merger.base == "required" else None
    merged = merger(models, start)
    assert all(torch.equal(c[n], m[n]) for c, m in zip(copies, [base, *models], strict=True) for n in c)
    monkeypatch.setattr(source, "BLOCK", 4)
    again = merger(models, start)
    for name in base:
        close(merged[name], again[name])


@pytest.mark.parametrize("merger", [*ALL, merge.Ties(density=0.4, trim="tensor")], ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_that_fit_the_cache_change_nothing(merger, dtype, monkeypatch):
    base, *models = ({n: v.to(dtype) for n, v in one.items()} for one in random_states(3 if merger.most == 2 else 4))
    start = base if merger.base == "required" else None
    merged, seen, combine = merger(models, start), [], type(merger).combine
    monkeypatch.setattr(operators, "PIECE", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(
        type(merger), "combine", lambda self, block, found: seen.append(block) or combine(self, block, found)
    )
    again = merger(models, start)
    assert all(torch.equal(value, again[name]) for name, value in merged.items())  # DARE drops the same, too
    most = max(block.models[0].numel() for block in seen)
    assert most == (4 if merger.pieces else max(value.numel() for value in base.values()))


def test_regmean_without_correlations_weights_inputs_by_their_squares():
    weights = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])]
    grams = [torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.5, 4.0]])]
    close(merge.regmean(weights, grams, shrink=0.0), torch.tensor([[6 / 4, 18 / 5]]))


@pytest.mark.parametrize(
    "merger",
    [merge.TaskArithmetic(), merge.Ties(density=0.5, trim="tensor"), merge.Ties(density=1.0), merge.DareTies()],
    ids=lambda m: m.name,
)
def test_the_base_as_a_model_changes_nothing(merger):
    base, one = random_states(2)
    alone, beside = merger([one], base), merger([one, base], base)
    for name, value in alone.items():
        close(beside[name], value)


def test_changes_of_one_sign_have_their_mean_and_the_order_does_not_matter():
    changes = [torch.tensor([0.5, -2.0, 1.0]), torch.tensor([1.5, -1.0, 4.0])]
    close(merge.ties(changes, torch.zeros(3), density=1.0), torch.tensor([1.0, -1.5, 2.5]))
    for one in (merge.ties, merge.task_arithmetic):
        close(one(changes, torch.ones(3)), one(changes[::-1], torch.ones(3)))


@pytest.mark.parametrize("kind", [merge.Ties, merge.DareLinear, merge.DareTies])
def test_a_bias_of_one_entry_passes_every_trimming(kind):
    base, models = {"b": torch.tensor([1.0])}, [{"b": torch.tensor([1.5])}]
    found = {float(kind(density=0.25, **how)(models, base)["b"]) for how in trimmings(kind)}
    assert found == ({1.5} if kind is merge.Ties else {1.0, 3.0})  # kept; dropped, or kept and divided by .25


def trimmings(kind):
    return [{"trim": "model"}, {"trim": "tensor"}] if kind is merge.Ties else [{"seed": seed} for seed in range(20)]
