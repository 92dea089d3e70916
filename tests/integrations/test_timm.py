import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import omnimix.integrations.timm as ours

timm_data = pytest.importorskip("timm.data")

G = torch.Generator().manual_seed(0)
X = torch.rand(6, 3, 12, 10, generator=G)
Y = torch.arange(6) % 4
MODES = ("batch", "pair", "elem")
BYTES = [((255 * x).byte(), int(y)) for x, y in zip(X, Y, strict=True)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fixed(monkeypatch, lam, box, kind="Mixup", **options):
    """timm's mixing and ours with the same shares `lam` (list), kinds `box` (list) and box centres (a third in)."""
    mode = options.get("mode", "batch")
    theirs, mine = getattr(timm_data, kind)(**options), getattr(ours, kind)(**options)
    if mode == "batch":
        monkeypatch.setattr(theirs, "_params_per_batch", lambda: (lam[0], box[0]))
    else:
        monkeypatch.setattr(theirs, "_params_per_elem", lambda n: (np.array(lam[:n], np.float32), np.array(box[:n])))

    def draw(n, source):
        return torch.tensor(lam[:n], dtype=torch.float64), torch.tensor(box[:n])

    def third(low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        return low + (high - low) // 3

    monkeypatch.setattr(mine, "_draw", draw)
    monkeypatch.setattr(np.random, "randint", third)
    monkeypatch.setattr(ours, "integers", lambda high, n, generator: torch.full((n,), high // 3))
    monkeypatch.setattr(ours, "uniform", lambda n, generator: torch.full((n,), 0.3334, dtype=torch.float64))
    return theirs, mine


LAM = [0.7, 0.4, 1.0, 0.15, 0.9, 0.55]
BOX = [True, False, False, True, True, False]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.0},
        {"correct_lam": False, "label_smoothing": 0.2},
        {"cutmix_minmax": (0.2, 0.7)},
    ],
)
def test_the_same_shares_give_what_timm_gives(mode, first, options, monkeypatch):
    lam, box = LAM[first:] + LAM[:first], BOX[first:] + BOX[:first]
    theirs, mine = fixed(monkeypatch, lam, box, mode=mode, cutmix_alpha=1.0, num_classes=4, **options)
    expected, found = theirs(X.clone(), Y), mine(X, Y)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, atol=1e-6)


def test_multi_label_targets_are_smoothed_towards_a_half(monkeypatch):
    many = (torch.rand(6, 4, generator=generator()) > 0.5).long()
    theirs, mine = fixed(monkeypatch, LAM, [False] * 6, mode="elem", num_classes=4, multi_label=True)
    assert torch.allclose(theirs(X.clone(), many)[1], mine(X, many)[1], atol=1e-6)


@pytest.mark.parametrize("mode", [*MODES, "half"])
@pytest.mark.parametrize("arrays", [True, False])
def test_collating_gives_what_timm_gives(mode, arrays, monkeypatch):
    theirs, mine = fixed(monkeypatch, LAM, BOX, "FastCollateMixup", mode=mode, cutmix_alpha=1.0, num_classes=4)
    batch = [(x.numpy() if arrays else x, y) for x, y in BYTES]
    found = mine(batch)
    assert torch.equal(torch.stack([x for x, _ in BYTES]), torch.stack([torch.as_tensor(x) for x, _ in batch]))
    expected = theirs([(x.copy() if arrays else x.clone(), y) for x, y in batch])
    assert found[0].dtype == torch.uint8
    assert (expected[0].int() - found[0].int()).abs().max() <= 1  # timm rounds its float64, we a float32
    assert torch.allclose(expected[1].float(), found[1], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{"mixup_alpha": 0.3}, {"mixup_alpha": 0.0, "cutmix_alpha": 2.0}, {"prob": 0.6}])
def test_own_shares_are_distributed_as_those_of_timm(mode, options):
    x, y, n = torch.zeros(40, 1, 16, 16), torch.arange(40) % 20, 40 if mode != "batch" else 400
    options = {"mode": mode, "num_classes": 20, "label_smoothing": 0.0, "cutmix_alpha": 1.0, **options}
    theirs, mine = timm_data.Mixup(**options), ours.Mixup(**options, generator=generator(1))
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002  (timm draws from NumPy's global state)
    try:
        expected = torch.cat([theirs(x.clone(), y)[1][:20, :].diagonal() for _ in range(n)])
    finally:
        np.random.set_state(state)  # noqa: NPY002
    found = torch.cat([mine(x, y)[1][:20, :].diagonal() for _ in range(n)])
    rows = 1 if mode == "batch" else 20  # draws that are independent
    error = (expected.var() / (n * rows) * 2).sqrt().item()
    assert abs(expected.mean() - found.mean()) < 4 * error
    assert abs((expected == 1).float().mean() - (found == 1).float().mean()) < 4 * (0.5 / (n * rows)) ** 0.5
    assert abs(expected.std() - found.std()) < 0.04


def test_mixup_and_cutmix_take_turns_by_switch_prob():
    x = torch.arange(40.0).view(-1, 1, 1, 1).expand(40, 1, 16, 16)
    mix = ours.Mixup(1.0, 1.0, switch_prob=0.25, mode="elem", num_classes=2, generator=generator(2))
    flat = sum(
        int((m.amax((1, 2, 3)) == m.amin((1, 2, 3))).sum()) for m, _ in (mix(x, Y[:1].expand(40)) for _ in range(50))
    )
    assert abs(flat / 2000 - 0.75) < 0.05  # a few boxes are empty or whole


def test_the_sides_of_minmax_boxes():
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 20, 20)
    mix = ours.Mixup(0.0, cutmix_minmax=(0.2, 0.5), num_classes=2, label_smoothing=0.0, generator=generator(3))
    sides = set()
    for _ in range(200):
        mixed, target = mix(x, torch.tensor([0, 1]))
        sides |= {int(mixed[0, 0].amax(dim=0).sum()), int(mixed[0, 0].amax(dim=1).sum())}
        assert torch.isclose(target[0, 1], mixed[0].mean())
    assert sides == set(range(4, 10))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_odd_batches_and_untouched_inputs(mode, rows):
    x, y = X[:rows].clone(), Y[:rows].clone()
    mixed, target = ours.Mixup(1.0, 1.0, mode=mode, num_classes=4, label_smoothing=0.0)(x, y)
    assert torch.equal(x, X[:rows])
    assert mixed.shape == x.shape
    assert torch.allclose(target.sum(dim=1), torch.ones(rows))
    if rows % 2:
        middle = rows // 2
        assert torch.allclose(mixed[middle], x[middle])
        assert target[middle, y[middle]] == 1


def test_odd_batches_are_collated():
    images, target = ours.FastCollateMixup(mode="half", num_classes=4)(BYTES[:5])
    assert images.shape == (3, 3, 12, 10)
    assert target.shape == (3, 4)


@pytest.mark.parametrize("mode", MODES)
def test_labels_follow_the_pixels_in_half_precision_and_any_memory_format(mode):
    x = Y.half().view(-1, 1, 1, 1).expand(6, 3, 12, 10).contiguous(memory_format=torch.channels_last)
    mix = ours.Mixup(1.0, 1.0, mode=mode, num_classes=4, label_smoothing=0.0, generator=generator(4))
    for _ in range(10):
        mixed, target = mix(x, Y)
        assert mixed.dtype == torch.float16
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(mixed.float().mean(dim=(1, 2, 3)), target @ torch.arange(4.0), atol=5e-3)


def test_soft_targets_are_those_of_class_ids():
    soft = torch.nn.functional.one_hot(Y, 4)
    by_id = ours.Mixup(num_classes=4, generator=generator())(X, Y)[1]
    assert torch.allclose(ours.Mixup(num_classes=4, generator=generator())(X, soft)[1], by_id)


def test_disabled_it_only_smooths():
    mix = ours.Mixup(1.0, 1.0, mode="elem", num_classes=4)
    mix.mixup_enabled = False
    x, target = mix(X, Y)
    assert torch.equal(x, X)
    assert torch.allclose(target[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


def test_workers_draw_differently():
    twice = BYTES[:4] * 2
    loader = DataLoader(twice, 4, collate_fn=ours.FastCollateMixup(num_classes=4), num_workers=2)
    (first, _), (second, _) = list(loader)
    assert not torch.equal(first, second)


def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    for mode in MODES:
        options = {"cutmix_alpha": 1.0, "mode": mode, "num_classes": 4}
        cpu = ours.Mixup(**options, generator=generator(5))(X, Y)
        gpu = ours.Mixup(**options, generator=generator(5))(X.cuda(), Y.cuda())
        for a, b in zip(cpu, gpu, strict=True):
            assert b.device.type == "cuda"
            assert torch.allclose(a, b.cpu(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup_alpha": 0.0}, "one of mixup_alpha, cutmix_alpha"),
        ({"mixup_alpha": -1}, "mixup_alpha must be"),
        ({"cutmix_minmax": (0.5, 0.2)}, "cutmix_minmax must be"),
        ({"prob": 2}, "prob must be"),
        ({"mode": "half"}, "mode must be one of 'batch', 'pair', 'elem'"),
        ({"label_smoothing": -0.1}, "label_smoothing must be"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"generator": 1}, "generator must be"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ours.Mixup(**options)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X.byte(), Y, {}, "floating point"),
        (X[0], Y, {}, "must be images"),
        (X, Y[:5], {}, "target must be class ids"),
        (X, Y + 4, {}, "class ids must lie in"),
        (X, torch.zeros(6, 3), {}, r"target must be class ids \(6,\) or \(6, 4\)"),
        (X, Y, {"multi_label": True}, "multi_label needs targets"),
    ],
)
def test_wrong_inputs_are_refused(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        ours.Mixup(num_classes=4, **options)(x, y)


def test_floats_are_not_collated():
    with pytest.raises(ValueError, match="8-bit images"):
        ours.FastCollateMixup(num_classes=4)([(X[0], 0), (X[1], 1)])
