import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.train import Part, evaluate
from omnimix.train.evaluate import outputs, predictions

X = torch.randn(37, 3, generator=torch.Generator().manual_seed(0))


def net(outputs=1):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, outputs))


def test_batches_do_not_change_the_scores_and_nothing_is_mixed_or_dropped():
    part, model = Part(X, X.sum(1, keepdim=True)), net()
    model.train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    whole = evaluate(model, om.create("mixup"), part, om.Regression(1))
    for size in (1, 10, 37, 100):
        assert evaluate(model, om.create("mixup"), part, om.Regression(1), batch_size=size) == pytest.approx(whole)
    assert [m.training for m in model.modules()] == modes
    assert model[1].num_batches_tracked == 0
    expected = (model.eval()(X) - part.y).square().mean().sqrt().item()
    assert whole["rmse"] == pytest.approx(expected)


def test_predictions_carry_no_gradient_and_come_from_the_method():
    class Twice(om.ERM):
        def predict(self, model, x):
            return 2 * model(x)

    model = net()
    found = outputs(model, Twice(), Part(X, X[:, 0]))
    assert not found.requires_grad
    assert torch.equal(found, 2 * model.eval()(X).detach())


def test_validation_tells_the_method_the_domains_and_scoring_does_not():
    class Own(om.ERM):
        def predict_in(self, model, x, domain):
            return domain.view(-1, 1) * model(x)

    model, domain = net(), torch.arange(37) % 3
    part = Part(X, X[:, 0], domain)
    plain = model.eval()(X).detach()
    assert torch.equal(outputs(model, Own(), part), plain)
    for size in (None, 10):
        assert torch.allclose(outputs(model, Own(), part, size, by_domain=True), domain.view(-1, 1) * plain, atol=1e-6)
    assert torch.equal(outputs(model, Own(), Part(X, X[:, 0]), by_domain=True), plain)
    assert torch.equal(outputs(model, om.ERM(), part, by_domain=True), plain)


def test_errors_are_in_raw_units_where_targets_were_normalised():
    y = 5 * X[:, 0] + 20
    offset, scale = y.mean(), y.std()
    raw = evaluate(nn.Sequential(net(), nn.Flatten(0)), om.ERM(), Part(X, y), om.Regression(1))
    z = Part(X, (y - offset) / scale)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return (self.inner(x) - offset) / scale

    found = evaluate(Scaled(), om.ERM(), z, om.Regression(1), target_scale=(offset, scale))
    assert found == pytest.approx(raw, rel=1e-5)
    two = torch.stack((y, -y), 1)
    prediction, target = predictions(
        torch.zeros(37, 2), torch.zeros(37, 2), om.Regression(2), (two.mean(0), two.std(0))
    )
    assert torch.allclose(prediction, two.mean(0).double().expand(37, 2))
    assert torch.equal(prediction, target)


def test_class_ids_one_hot_targets_and_domains():
    y, model = (X[:, 0] > 0).long(), net(2)
    domain = torch.arange(37) % 3
    found = evaluate(model, om.ERM(), Part(X, y, domain), om.Classification(2))
    assert set(found) == {
        *("accuracy", "nll", "ece", "adaptive_ece", "brier", "worst_domain"),
        *("accuracy@0", "accuracy@1", "accuracy@2"),
    }
    right = model.eval()(X).argmax(1) == y
    assert found["accuracy"] == pytest.approx(right.double().mean().item())
    assert found["worst_domain"] == min(right[domain == d].double().mean().item() for d in range(3))
    assert evaluate(model, om.ERM(), Part(X, torch.eye(2)[y], domain), om.Classification(2)) == found
    with pytest.raises(ValueError, match="not soft ones"):
        evaluate(model, om.ERM(), Part(X, torch.full((37, 2), 0.5)), om.Classification(2))


def test_multi_label():
    y = (X > 0).float()
    assert set(evaluate(net(3), om.ERM(), Part(X, y), om.MultiLabel(3))) == {"accuracy", "nll", "map"}


def test_rows_decoded_when_needed_and_half_precision():
    class Lazy:
        asked = ()

        def __len__(self):
            return 37

        def take(self, rows):
            self.asked += (len(rows),)
            return X[rows]

    lazy, y, model = Lazy(), X[:, 0], net()
    expected = evaluate(model, om.ERM(), Part(X, y), om.Regression(1))
    assert evaluate(model, om.ERM(), Part(lazy, y), om.Regression(1), batch_size=16) == pytest.approx(expected)
    assert lazy.asked == (16, 16, 5)
    assert evaluate(model, om.ERM(), Part(lazy, y), om.Regression(1)) == pytest.approx(expected)
    half = evaluate(model.bfloat16(), om.ERM(), Part(X, y), om.Regression(1))
    assert half["rmse"] == pytest.approx(expected["rmse"], rel=0.05)


def test_what_cannot_be_scored_is_refused():
    model = net()
    with torch.no_grad():
        model[3].bias[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite for 37 of 37 rows"):
        evaluate(model, om.ERM(), Part(X, X[:, 0]), om.Regression(1))
    with pytest.raises(ValueError, match="gives 2 values a row, the targets have 1"):
        evaluate(net(2), om.ERM(), Part(X, X[:, 0]), om.Regression(1))
