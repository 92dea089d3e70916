import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from omnimix.integrations import sklearn as module
from omnimix.integrations.sklearn import MixClassifier, MixRegressor

IRIS = load_iris(return_X_y=True)
REAL = make_regression(120, 4, n_informative=3, noise=5.0, random_state=0)


def small(kind=MixClassifier, *args, **options):
    return kind(*args, **{"hidden": (16,), "epochs": 15, "lr": 0.01, "random_state": 0, **options})


@parametrize_with_checks([MixClassifier(epochs=60), MixRegressor(epochs=60)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_labels_may_be_strings_and_probabilities_follow_classes():
    X, y = IRIS
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = small(epochs=40).fit(X, names)
    assert list(model.classes_) == ["setosa", "versicolor", "virginica"]
    assert model.score(X, names) > 0.9
    probabilities = model.predict_proba(X)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (model.classes_[probabilities.argmax(axis=1)] == model.predict(X)).all()


def test_frames_give_feature_names():
    pandas = pytest.importorskip("pandas")
    X, y = IRIS
    frame = pandas.DataFrame(X, columns=list("abcd"))
    model = small(epochs=2).fit(frame, pandas.Series(y))
    assert list(model.feature_names_in_) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "z"}))


@pytest.mark.parametrize(("kind", "data"), [(MixClassifier, IRIS), (MixRegressor, REAL)])
def test_same_state_same_predictions_also_after_pickle_joblib_and_clone(kind, data, tmp_path):
    joblib = pytest.importorskip("joblib")
    X, y = data
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = small(kind, epochs=3).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    expected = model.predict(X)
    joblib.dump(model, tmp_path / "model.joblib")
    same = [
        pickle.loads(pickle.dumps(model)),
        joblib.load(tmp_path / "model.joblib"),
        clone(model).fit(X, y),
        model.set_params(hidden=(3,)),  # what is fitted stays as it is
    ]
    for other in same:
        assert np.array_equal(other.predict(X), expected)
    assert not np.array_equal(small(kind, epochs=3, random_state=1).fit(X, y).predict(X), expected)


def test_the_fitted_weights_are_a_state_dict_of_the_best_epoch():
    model = small(epochs=5).fit(*IRIS)
    assert all(isinstance(value, torch.Tensor) for value in model.weights_.values())
    losses = [row["valid_loss"] for row in model.history_]
    assert model.n_iter_ == 5
    assert model.best_epoch_ == 1 + int(np.argmin(losses))


def test_without_validation_rows_the_last_epoch_is_kept():
    model = small(epochs=3, validation_fraction=0.0).fit(*IRIS)
    assert model.best_epoch_ == 3
    assert "valid_loss" not in model.history_[0]


def test_rows_held_out_represent_the_classes():
    strata = np.repeat([0, 1, 2], [60, 30, 10])
    rows, valid = module._split(strata, 10, seed=3)
    assert np.bincount(strata[valid]).tolist() == [6, 3, 1]
    assert sorted([*rows, *valid]) == list(range(100))
    assert not np.array_equal(module._split(strata, 10, seed=4)[1], valid)


@pytest.mark.parametrize("seed", range(8))
def test_no_class_is_held_out_as_a_whole(seed):
    strata = np.repeat([0, 1, 2, 3], [7, 1, 2, 1])
    for held in (3, 8, 10):
        rows, valid = module._split(strata, held, seed)
        assert set(strata[rows]) == {0, 1, 2, 3}
        assert sorted([*rows, *valid]) == list(range(11))
    assert len(module._split(np.zeros(5), 4, seed)[1]) == 4
    assert [len(part) for part in module._split(np.zeros(2), 0, seed)] == [2, 0]


def test_several_targets_in_their_own_units():
    X, y = REAL
    many = np.stack([y, 1000 - 5 * y], axis=1)
    model = small(MixRegressor, epochs=60).fit(X, many)
    found = model.predict(X)
    assert found.shape == many.shape
    assert model.score(X, many) > 0.8
    assert abs(found[:, 1].mean() - many[:, 1].mean()) < 0.2 * many[:, 1].std()


def test_validation_error_is_in_the_units_of_the_target():
    X, y = REAL
    model = small(MixRegressor, epochs=60).fit(X, y)
    error = np.sqrt(np.mean((model.predict(X) - y) ** 2))
    best = model.history_[model.best_epoch_ - 1]["valid_rmse"]
    assert error / 4 < best < 4 * error


def test_the_bandwidth_of_c_mixup_is_in_units_of_the_target(monkeypatch):
    seen = []
    real = module.fit
    monkeypatch.setattr(module, "fit", lambda method, *a, **k: (seen.append(a[1].train), real(method, *a, **k))[1])
    X, y = REAL
    small(MixRegressor, "c-mixup:bandwidth=2", epochs=1).fit(X, y)
    assert set(seen[0].raw.tolist()) <= set(y.tolist())
    assert abs(seen[0].y.mean()) < 1e-4


def test_parameters_of_the_method_as_text_dict_and_nested():
    made = [
        MixClassifier("mixup:alpha=0.3"),
        MixClassifier(method_params={"alpha": 0.3}),
        MixClassifier().set_params(method__alpha=np.float64(0.3)),
        MixClassifier("mixup:alpha=4", method_params={"alpha": 0.3}),
    ]
    assert [estimator._method().ratio.alpha for estimator in made] == [0.3] * 4
    assert made[2].get_params()["method__alpha"] == 0.3
    assert clone(made[2]).method_params == {"alpha": 0.3}


def test_grid_search_over_methods_and_their_parameters():
    X, y = IRIS
    grid = [{"method": ["erm"]}, {"method": ["mixup"], "method__alpha": [0.2, 1.0], "epochs": np.arange(2, 4)}]
    search = GridSearchCV(make_pipeline(MinMaxScaler(), small()), [
        {f"mixclassifier__{key}": values for key, values in part.items()} for part in grid
    ], cv=2).fit(X, y)  # fmt: skip
    assert len(search.cv_results_["params"]) == 5
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MixClassifier, {"method": "mixupp"}, "did you mean 'mixup'"),
        (MixClassifier, {"method": 3}, "method must be a name"),
        (MixClassifier, {"method": "mixup:=3"}, "not of the form parameter=value"),
        (MixClassifier, {"method": "cutmix"}, "needs image inputs, X is a table"),
        (MixClassifier, {"method": "c-mixup"}, "is for regression"),
        (MixClassifier, {"method_params": {"beta": 1}}, "no parameter 'beta'"),
        (MixClassifier, {"method_params": [1]}, "method_params must be a dict"),
        (MixClassifier, {"validation_fraction": 1.0}, "validation_fraction must be"),
        (MixClassifier, {"epochs": 0}, "epochs must be an integer >= 1"),
        (MixClassifier, {"batch_size": 1.5}, "batch_size must be an integer"),
        (MixClassifier, {"lr": -1.0}, "lr must be"),
        (MixClassifier, {"device": "tpu"}, "device must be one of 'cpu', 'gpu'"),
        (MixClassifier, {"hidden": 16}, "hidden must be a sequence"),
        (MixRegressor, {"method": "decoupled-mixup"}, "is for classification"),
    ],
)
def test_wrong_parameters_are_refused_by_fit(kind, options, message):
    with pytest.raises(ValueError, match=message):
        small(kind, **options).fit(*(IRIS if kind is MixClassifier else REAL))


def test_the_base_install_is_enough():
    extra = ("lightning_fabric", "pydantic", "rich", "typer", "matplotlib", "jinja2")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({extra}))  # None: not to be found
from sklearn.datasets import load_iris
from omnimix.integrations.sklearn import MixClassifier
X, y = load_iris(return_X_y=True)
print(MixClassifier(epochs=1, verbose=True).fit(X, y).n_iter_)
try:
    MixClassifier("mixup:alpha=0.2").fit(X, y)
except ImportError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"1\nmethod='mixup:alpha=0.2': .* need the package '\w+', pip install .*\n", shown)


def test_progress_goes_to_standard_error(capsys):
    small(epochs=20, verbose=True).fit(*IRIS)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("MixClassifier: epoch 20/20, train loss ")
    assert lines[-1].endswith("0 s left")


def test_progress_of_a_terminal_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    small(epochs=3, verbose=True).fit(*IRIS)
    assert capsys.readouterr().err.count("\n") == 1
