"""Parts of different papers go together: every operation with every pairing, ratio, label policy and objective.

Operations, label policies and objectives are crossed in full; pairings and ratios take turns, so that each meets all.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.objective import MixedLoss
from omnimix.core.operation import Interpolate
from omnimix.core.pairing import RandomPairing
from omnimix.core.ratio import Beta, Constant
from omnimix.networks import create
from omnimix.samples import objective, operation, pairing, saliency
from omnimix.samples.label import AttentionLabels, LabelRatio
from omnimix.samples.operation import Puzzle
from omnimix.samples.operation.fmix import OwnLabel, SizeBiased
from omnimix.samples.ratio.uniform_side import UniformSide

ROWS, CLASSES, SIDE = 6, 3, 8
PAIRINGS = {
    "random": RandomPairing,
    "derangement": pairing.Derangement,
    "other class": lambda: pairing.Criterion("different", "any"),
    "neighbours": lambda: pairing.Neighbours(2),
}
RATIOS = {
    "batch": lambda: Beta(1.0),
    "sample": lambda: Beta(0.5, per_sample=True),
    "constant": lambda: Constant(0.3),
    "side": lambda: UniformSide(0.2, 0.6),
    "size-biased": lambda: SizeBiased(1.0, per_sample=True),
}
MAPS = saliency.SpectralResidual
OPERATIONS = {
    "interpolate": Interpolate,
    "cutmix": operation.CutBox,
    "cutmix, per sample": lambda: operation.CutBox(per_sample=True),
    "fmix": lambda: operation.FourierMask(max_soft=0.2, per_sample=True),
    "gridmix": operation.GridHoles,
    "gridmix-local": lambda: operation.GridCells(2, per_sample=True),
    "smoothmix": lambda: operation.GaussianSpot(per_sample=True),
    "resizemix": operation.PasteResized,
    "saliencymix": lambda: operation.SalientBox(MAPS()),
    "attentivemix": lambda: operation.AttentiveCells(MAPS()),
    "guidedmixup": lambda: operation.GuidedBlend(MAPS()),
    "puzzle-mix": lambda: operation.Puzzle(saliency.InputGradient(), blocks=2),
    "mixpro": lambda: operation.MaskCells(4),
    "snapmix": lambda: operation.SemanticBox(MAPS(), Beta(1.0)),
    "tokenmix": lambda: operation.TokenBlocks(MAPS(), tokens=4),
    "stylecutmix": lambda: operation.StyleBox(Beta(1.0), Beta(1.0)),
    "noise": operation.NoisyInterpolate,
}
LABELS = {
    "area": lambda: None,
    "ratio": lambda: LabelRatio(0.7),
    "own": OwnLabel,
    "attention": lambda: AttentionLabels(0.5),
    "no attention": lambda: AttentionLabels(0.0),
}
OBJECTIVES = {
    "two-part": lambda: MixedLoss("two-part"),
    "soft": lambda: MixedLoss("soft"),
    "decoupled": lambda: objective.Decoupled(0.3),
    "decoupled, sigmoid": objective.DecoupledBCE,
}


def by_hand(kind, logits, y, recipe):
    """The loss, a row and a class at a time."""
    total = 0.0
    for i, z in enumerate(logits):
        weight = [0.0] * CLASSES
        for partner, share in zip(recipe.partner[i].tolist(), recipe.label_share[i].tolist(), strict=True):
            weight[int(y[partner])] += share
        mixed = [c for c in range(CLASSES) if weight[c] > 1e-3]
        if kind == "decoupled, sigmoid":
            target = torch.tensor([float(c in mixed) for c in range(CLASSES)])
            total += F.binary_cross_entropy_with_logits(z, target, reduction="sum")
            continue
        total -= sum(w * z.log_softmax(0)[c] for c, w in enumerate(weight))
        if kind == "decoupled" and len(mixed) > 1:
            for c in mixed:
                others = torch.stack([z[k] for k in range(CLASSES) if k == c or k not in mixed])
                total += 0.3 * (others.logsumexp(0) - z[c])
    return total / len(logits)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create("vit", (2, SIDE, SIDE), CLASSES, width=8, depth=1, heads=2)


@pytest.mark.parametrize("how", OPERATIONS)
def test_an_operation_goes_with_all_the_rest(how, network):
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(ROWS, 2, SIDE, SIDE, generator=g), torch.arange(ROWS) % CLASSES
    table = om.Table(label=y, domain=torch.arange(ROWS) % 2, feature=x.flatten(1))
    apart = []
    for (i, labels), (j, what) in itertools.product(enumerate(LABELS), enumerate(OBJECTIVES)):
        chosen = [*PAIRINGS][(i + j) % len(PAIRINGS)], [*RATIOS][(i + 2 * j) % len(RATIOS)], labels, what
        method = om.Mix(
            PAIRINGS[chosen[0]](),
            RATIOS[chosen[1]](),
            OPERATIONS[how](),
            OBJECTIVES[what](),
            labels=LABELS[labels](),
        ).setup(network, om.Classification(CLASSES), table, generator=g)
        index, guests = method.rows(torch.arange(ROWS))
        rows = index if guests is None else torch.cat((index, guests.T.flatten()))
        batch = om.Batch(x[rows], y[rows], None, rows, ROWS)
        before = method.state_dict()
        loss = method.loss(network, batch)
        assert loss.isfinite(), chosen
        loss.backward()
        method.load_state_dict(before)
        recipe = method.recipe(batch)
        fed = []
        hook = network.register_forward_pre_hook(lambda _, given: fed.append(given[0]))  # noqa: B023
        output, applied = method.forward(network, batch, recipe)
        hook.remove()
        expected = by_hand(what, output, batch.y, applied)
        expected = expected + sum(float(extra) for extra in method._extra)
        torch.testing.assert_close(loss, expected, msg=lambda text: f"{chosen}: {text}")  # noqa: B023
        apart.append(follows_the_labels(labels, applied, method.operation))
        if how != "stylecutmix":  # it changes the styles on both sides of the mask
            shows_the_samples(fed[-1], batch.x, applied)
    assert max(apart) > 1e-3 or applied.mask is None


@pytest.mark.parametrize("how", [how for how in OPERATIONS if how not in ("noise", "resizemix", "snapmix")])
def test_equal_images_stay_as_they_are(how, network):
    """But for noise, and where images are resized."""
    x = torch.rand(1, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).repeat(ROWS, 1, 1, 1)
    operation = Puzzle(MAPS(), blocks=2, transport=False) if how == "puzzle-mix" else OPERATIONS[how]()
    method = om.Mix(operation=operation).setup(network, om.Classification(CLASSES))
    batch = om.Batch(x, torch.arange(ROWS) % CLASSES)
    torch.testing.assert_close(method.mix(batch, method.recipe(batch)).x, x, atol=1e-5, rtol=1e-5)


def follows_the_labels(labels, applied, op):
    """How far labels by attention are from the area; others are looked at."""
    own = applied.label_share[:, 0]
    if labels == "own":
        assert applied.label_share.tolist() == [[1.0, 0.0]] * ROWS
    elif labels == "ratio":
        assert set(own.tolist()) <= {float(torch.tensor(0.7)), float(1 - torch.tensor(0.7))}
        assert torch.equal(own > 0.5, applied.lam >= 0.5)
    elif labels == "attention" and applied.mask is not None:
        assert bool(((own >= 0) & (own <= 1)).all())
        return float((own - applied.lam).abs().max())
    elif op.labels_follow:
        torch.testing.assert_close(own, applied.lam)
    return 0.0


def shows_the_samples(x, images, applied):
    if applied.mask is not None and applied.moved is None:
        own, partner = (images[applied.partner[:, k]] for k in range(2))
        torch.testing.assert_close(x, applied.mask * own + (1 - applied.mask) * partner)
        torch.testing.assert_close(applied.mask.flatten(1).mean(dim=1).expand(ROWS), applied.lam)


def test_three_samples_are_weighted_as_two_are():
    """K = 3: the loss is the weighted sum of three, also of weights that do not sum to 1; K = 2 is mixup."""
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(4, CLASSES, generator=g), torch.tensor([0, 1, 2, 1])
    partner = torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]])
    single = torch.stack([F.cross_entropy(logits, y[partner[:, k]], reduction="none") for k in range(3)], dim=1)
    for weights in ([0.5, 0.3, 0.2], [0.9, 0.8, 0.1]):
        share = torch.tensor(weights).expand(4, 3)
        recipe = om.Recipe(partner, torch.full((4, 3), 1 / 3), share)
        found = MixedLoss()(logits, y, recipe, om.Classification(CLASSES))
        torch.testing.assert_close(found, (single * share).sum(dim=1))
    pair = om.Recipe(partner[:, :2], torch.tensor([[0.6, 0.4]]).expand(4, 2))
    found = MixedLoss()(logits, y, pair, om.Classification(CLASSES))
    torch.testing.assert_close(found, 0.6 * single[:, 0] + 0.4 * single[:, 1])
