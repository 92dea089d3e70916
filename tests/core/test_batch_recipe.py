import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omnimix import Batch, Classification, Mixed, MultiLabel, Recipe, Regression
from omnimix.core.objective import MixedLoss
from omnimix.core.recipe import mix_labels, one_hot
from omnimix.core.task import infer_task

PARTNER = torch.tensor([[0, 1], [1, 0]])
SHARE = torch.tensor([[0.25, 0.75], [0.25, 0.75]])
LOGITS = torch.tensor([[1.0, 2, 0], [0, 0, 1]])
Y = torch.tensor([0, 2])


def test_batch_of_tuples_and_dicts():
    x, y = torch.randn(3, 2), torch.arange(3)
    assert len(Batch.of((x, y))) == 3
    assert Batch.of((x, y, y)).domain is y
    tokens = Batch.of({"input_ids": y, "attention_mask": y, "labels": y})
    assert set(tokens.x) == {"input_ids", "attention_mask"}
    assert Batch.of({"x": x, "y": y, "index": y}).x is x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": torch.ones(2)}, "exactly one of"),
        ((torch.ones(2), torch.ones(3)), r"batch.y has shape \(3,\)"),
        ((torch.ones(0, 2), torch.ones(0)), "empty"),
        (({"a": torch.ones(2), "b": torch.ones(3)}, torch.ones(2)), "same first dimension"),
        (torch.ones(3), "must be a Batch"),
    ],
)
def test_bad_batches_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Batch.of(data)


def test_guests_lie_behind_the_anchors():
    batch = Batch(torch.arange(6.0), torch.arange(6), anchors=2)
    assert len(batch) == 2
    assert batch.columns == 3
    assert batch.alone.x.tolist() == [0, 1]
    with pytest.raises(ValueError, match="anchors = 4 must divide the 6 rows"):
        Batch(torch.arange(6.0), torch.arange(6), anchors=4)


def test_mixed_loss_hand_value_of_the_mixup_card():
    mixed = Mixed(None, Y, Recipe(PARTNER, SHARE))
    for target in (None, "two-part", "soft"):
        for criterion in (F.cross_entropy, nn.CrossEntropyLoss()):
            assert mixed.loss(criterion, LOGITS, target).item() == pytest.approx(1.729525, abs=1e-6)
        summed = mixed.loss(nn.CrossEntropyLoss(reduction="sum"), LOGITS, target)
        assert summed.item() == pytest.approx(2 * 1.729525, abs=1e-6)


def test_mixed_loss_of_bce_and_mse():
    draw = torch.Generator().manual_seed(0)
    output, y = torch.randn(2, 4, generator=draw), torch.randint(2, (2, 4), generator=draw).float()
    mixed = Mixed(None, y, Recipe(PARTNER, SHARE))
    soft = 0.25 * y + 0.75 * y[[1, 0]]
    expected = F.binary_cross_entropy_with_logits(output, soft)
    for target in ("two-part", "soft"):
        assert mixed.loss(nn.BCEWithLogitsLoss(), output, target).item() == pytest.approx(expected.item(), rel=1e-6)
    assert mixed.loss(F.mse_loss, output).item() == pytest.approx(F.mse_loss(output, soft).item(), rel=1e-6)
    gap = mixed.loss(F.mse_loss, output, "two-part") - mixed.loss(F.mse_loss, output, "soft")
    assert gap.item() == pytest.approx(0.25 * 0.75 * (y - y[[1, 0]]).square().mean().item(), rel=1e-4)


UNMIXED = Recipe(PARTNER, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
WEIGHT = torch.tensor([1.0, 5.0, 0.5])


@pytest.mark.parametrize(
    ("criterion", "y"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHT), Y),
        (functools.partial(F.cross_entropy, weight=WEIGHT), Y),
        (functools.partial(F.cross_entropy, ignore_index=0), Y),
        (F.cross_entropy, torch.tensor([0, -100])),
        (nn.CrossEntropyLoss(), torch.tensor([0, -100])),
        (nn.CrossEntropyLoss(reduction="sum"), Y),
        (nn.KLDivLoss(reduction="batchmean"), torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])),
        (nn.BCEWithLogitsLoss(), torch.tensor([[1.0, 0, 1], [0, 1, 0]])),
    ],
)
def test_unmixed_samples_give_the_criterions_own_value(criterion, y):
    assert Mixed(None, y, UNMIXED).loss(criterion, LOGITS).item() == pytest.approx(criterion(LOGITS, y).item())


def test_real_targets_never_broadcast_against_outputs():
    output, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.0, 5.0, 1.0])
    unmixed = Recipe(torch.tensor([[0, 0], [1, 1], [2, 2]]), torch.tensor([[1.0, 0.0]] * 3))
    expected = F.mse_loss(output[:, 0], y).item()
    assert Mixed(None, y, unmixed).loss(F.mse_loss, output).item() == pytest.approx(expected)
    assert Mixed(None, y[:, None], unmixed).loss(F.mse_loss, output[:, 0]).item() == pytest.approx(expected)


def test_half_precision_losses_do_not_overflow():
    y = torch.zeros(128, dtype=torch.float16)
    recipe = Recipe(torch.arange(128).unsqueeze(1).expand(128, 2), torch.tensor([[0.5, 0.5]] * 128))
    loss = Mixed(None, y, recipe).loss(F.mse_loss, torch.full((128,), 31.6, dtype=torch.float16))
    assert loss.item() == pytest.approx(998, rel=0.01)


def test_class_ids_out_of_range_are_refused():
    for y in (Y, Y.view(2, 1)):
        with pytest.raises(ValueError, match=r"class ids must lie in 0..1, got 0..2"):
            Mixed(None, y, Recipe(PARTNER, SHARE)).soft_target(2)


def test_per_sample_shares_reach_the_loss():
    share = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    losses = F.cross_entropy(LOGITS, Y, reduction="none"), F.cross_entropy(LOGITS, Y[[1, 0]], reduction="none")
    expected = (losses[0][0] + 0.5 * losses[0][1] + 0.5 * losses[1][1]) / 2
    assert Mixed(None, Y, Recipe(PARTNER, share)).loss(F.cross_entropy, LOGITS).item() == pytest.approx(expected.item())


def test_a_criterion_that_gives_one_number_is_refused():
    with pytest.raises(ValueError, match="one loss per sample"):
        Mixed(None, Y, Recipe(PARTNER, SHARE)).loss(lambda o, y: F.cross_entropy(o, y), LOGITS)


def test_loss_weight_and_label_share_are_used():
    recipe = Recipe(PARTNER, SHARE, label_share=torch.tensor([[1.0, 0], [1, 0]]), loss_weight=torch.tensor([2.0, 0]))
    expected = F.cross_entropy(LOGITS[:1], Y[:1])
    assert Mixed(None, Y, recipe).loss(F.cross_entropy, LOGITS).item() == pytest.approx(expected.item())


def test_soft_target_and_dense_labels():
    mixed = Mixed(None, Y, Recipe(PARTNER, SHARE))
    assert torch.allclose(mixed.soft_target(3), torch.tensor([[0.25, 0, 0.75], [0.75, 0, 0.25]]))
    with pytest.raises(ValueError, match="needs num_classes"):
        mixed.soft_target()
    dense = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    assert one_hot(dense, 3).sum(dim=1).eq(1).all()
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    two_part = Mixed(None, dense, Recipe(PARTNER, SHARE)).loss(F.cross_entropy, logits)
    soft = F.cross_entropy(logits, mix_labels(one_hot(dense, 3), Recipe(PARTNER, SHARE)))
    assert two_part.item() == pytest.approx(soft.item(), rel=1e-5)


def test_objective_equals_the_functional_loss():
    recipe = Recipe(PARTNER, SHARE)
    for target in ("two-part", "soft"):
        assert MixedLoss(target)(LOGITS, Y, recipe, Classification(3)).mean().item() == pytest.approx(
            1.729525, abs=1e-6
        )
    y = torch.tensor([1.0, 3.0])
    losses = MixedLoss()(torch.zeros(2, 1), y, recipe, Regression(1))
    assert losses.tolist() == pytest.approx([2.5**2, 1.5**2])
    with pytest.raises(ValueError, match="target must be"):
        MixedLoss("hard")


def test_recipe_shapes_and_unmixed_rows():
    with pytest.raises(ValueError, match=r"both be \(B, K\)"):
        Recipe(PARTNER, SHARE[:, :1])
    assert Recipe(torch.tensor([[0, 1], [1, 1]]), SHARE).unmixed.tolist() == [False, True]


def test_tasks():
    assert isinstance(infer_task(torch.tensor([0, 2])), Classification)
    assert infer_task(torch.tensor([0, 2])).outputs == 3
    assert isinstance(infer_task(torch.tensor([[1.0, 1.0], [0.0, 1.0]])), MultiLabel)
    assert isinstance(infer_task(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), Classification)
    assert isinstance(infer_task(torch.tensor([0.5, 2.0])), Regression)
    assert Regression(1).losses(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).tolist() == [0, 4]
    with pytest.raises(ValueError, match="do not match"):
        Regression(2).losses(torch.zeros(3, 2), torch.zeros(3))
