"""scikit-learn estimators: a multi-layer perceptron trained by any mixing method, with omnimix's own training loop.

They clone, pickle, and sit in pipelines and in `GridSearchCV` as scikit-learn's own do; what is fitted is tensors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import nn

from ..core import registry
from ..core.checks import one_of
from ..core.method import Method
from ..core.random import permutation
from ..core.task import Classification, Regression, Task
from ..networks import create
from ..train import Budget, Data, Part, fit
from ..train.evaluate import outputs

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn < 1.6

    def validate_data(_estimator: Any, *args: Any, **options: Any) -> Any:
        return _estimator._validate_data(*args, **options)


NESTED = "method__"
"""`set_params(method__alpha=0.2)` sets the parameter `alpha` of the method."""


class _MixEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: parameters, split, scaling, training, and the network's output."""

    def __init__(
        self,
        method: str = "mixup",
        *,
        method_params: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (128, 128),
        epochs: int = 100,
        batch_size: int = 32,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        validation_fraction: float = 0.1,
        standardize: bool = True,
        random_state: Any = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.method = method
        self.method_params = method_params
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters; deep: also those in `method_params`, as `method__NAME`."""
        found: dict[str, Any] = super().get_params(deep=False)
        if deep and isinstance(self.method_params, Mapping):
            found |= {NESTED + name: value for name, value in self.method_params.items()}
        return found

    def set_params(self, **params: Any) -> Any:
        """Change parameters by name; `method__NAME` changes `method_params`."""
        nested = {name.removeprefix(NESTED): params.pop(name) for name in list(params) if name.startswith(NESTED)}
        super().set_params(**params)
        if nested:
            self.method_params = {**(self.method_params or {}), **nested}
        return self

    def _method(self) -> Method:
        name, given = self.method, self.method_params or {}
        if not isinstance(name, str):
            raise ValueError(f"method must be a name such as 'mixup', or 'mixup:alpha=0.2', got {name!r}")
        if not isinstance(given, Mapping):
            raise ValueError(f"method_params must be a dict such as {{'alpha': 0.2}} or None, got {given!r}")
        if ":" in name:
            try:
                from ..compare.spec import Spec
            except ModuleNotFoundError as error:
                raise ImportError(
                    f"method={name!r}: parameters as text need the package {error.name!r}, "
                    'pip install "omnimix[compare]"; or give them as method_params'
                ) from error
            spec = Spec.parse(name)
            if spec.control or spec.times != 1:
                raise ValueError(f"method={name!r}: rows of a comparison such as @2x or @pairs are no estimators")
            name, given = spec.name, {**dict(spec.parameters), **given}
        if "any" not in (inputs := registry.info(name).inputs):
            raise ValueError(f"{name} needs {' or '.join(inputs)} inputs, X is a table; use another method")
        return registry.create(name, **{key: _plain(value) for key, value in given.items()})

    def _network(self, outputs: int, seed: int) -> nn.Module:
        return create("mlp", (self.n_features_in_,), outputs, seed=seed, hidden=self._hidden)

    def _train(self, X: np.ndarray[Any, Any], y: np.ndarray[Any, Any], task: Task) -> None:
        """Learn from X (n, D) and y: class ids (n,), or real values (n,) or (n, outputs) in their own units."""
        method, seed = self._method(), int(check_random_state(self.random_state).randint(2**31 - 1))
        share = _plain(self.validation_fraction)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ValueError(f"validation_fraction must be a number in [0, 1), got {share!r}")
        rows, valid = _split(y if task.name == "classification" else np.zeros(len(y)), int(share * len(X)), seed)
        budget = Budget(
            _plain(self.epochs),
            _plain(self.batch_size),
            _plain(self.lr),
            weight_decay=_plain(self.weight_decay),
            drop_last=False,
            select="best" if len(valid) else "last",
            accelerator=one_of("device", self.device, ("cpu", "gpu")),
        )
        self._hidden = [*map(_plain, self.hidden)] if isinstance(self.hidden, Iterable) else self.hidden
        self.scaler_ = _scaler(self.standardize).fit(X[rows])
        self.target_scaler_: Any = None
        if task.name == "regression":
            self.target_scaler_ = _scaler(self.standardize).fit(y[rows].reshape(len(rows), -1))

        def part(some: np.ndarray[Any, Any]) -> Part:
            x, own = torch.from_numpy(self.scaler_.transform(X[some])).float(), torch.from_numpy(y[some])
            if self.target_scaler_ is None:
                return Part(x, own)
            scaled = self.target_scaler_.transform(y[some].reshape(len(some), -1))
            return Part(x, torch.from_numpy(scaled).float().view(own.shape), raw=own)

        scale = None
        if self.target_scaler_ is not None and self.standardize:
            scale = torch.from_numpy(self.target_scaler_.mean_), torch.from_numpy(self.target_scaler_.scale_)
        data = Data(part(rows), part(valid) if len(valid) else None, None, task, scale)
        model, tell = self._network(task.outputs, seed), _progress(type(self).__name__) if self.verbose else None
        done = fit(method, model, data, budget, seed=seed, progress=tell)
        self.weights_ = {name: value.cpu() for name, value in model.state_dict().items()}
        self.history_, self.n_iter_, self.best_epoch_ = done.history, len(done.history), done.best_epoch

    def _predict(self, X: Any, task: Task) -> np.ndarray[Any, Any]:
        """(n, outputs) probabilities or scaled values, in float64: a row's prediction is that of any batch it is in."""
        check_is_fitted(self)
        x = torch.from_numpy(self.scaler_.transform(validate_data(self, X, reset=False, dtype=np.float64)))
        model = self._network(task.outputs, seed=0).double()
        model.load_state_dict(self.weights_)
        return task.predict(outputs(model, Method(), Part(x, x))).numpy()


class MixClassifier(ClassifierMixin, _MixEstimator):  # type: ignore[misc]
    """A multi-layer perceptron for class labels (integers, strings, ...), trained with a mixing method.

    `MixClassifier("mixup:alpha=0.2").fit(X, y).predict_proba(X)`. method: a name from `omnimix.methods` and its
    parameters, as text or in `method_params`, a dict, which comes first; `set_params(method__alpha=0.2)` and grids
    reach them by name. hidden: widths of the hidden layers. epochs, batch_size, lr, weight_decay: of Adam.
    validation_fraction: in [0, 1), the share of rows held out, by class, to choose the epoch with the best loss; 0: all
    rows train, the last epoch is kept. standardize: X by mean and deviation of the training rows. random_state: an
    integer for the same result every time. device: "cpu" or "gpu". verbose: progress on standard error.

    Fitted: classes_, n_features_in_, feature_names_in_, n_iter_ (epochs run), best_epoch_, history_ (a dict an epoch),
    weights_ (tensors by name), scaler_. ValueError for values out of range, for methods that need images, domains or
    real targets, and for X that is sparse or holds NaN; TrainingError if the loss becomes NaN.
    """

    def fit(self, X: Any, y: Any) -> MixClassifier:
        """X: (n, D) numbers, n >= 2. y: (n,) labels."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, multi_output=False)
        check_classification_targets(y)
        self.classes_, ids = np.unique(column_or_1d(y), return_inverse=True)
        self._train(X, ids.astype(np.int64), Classification(len(self.classes_)))
        return self

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """(n, classes) probabilities, in the order of `classes_`."""
        check_is_fitted(self)
        return self._predict(X, Classification(len(self.classes_)))

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """(n,) most probable labels."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


class MixRegressor(RegressorMixin, _MixEstimator):  # type: ignore[misc]
    """A multi-layer perceptron for one or more real targets, trained with a mixing method; by default C-Mixup.

    standardize: X and y by mean and deviation of the training rows; a `bandwidth` of C-Mixup stays in units of y. The
    rows held out are drawn uniformly. Others, and what is fitted: see `MixClassifier`.
    """

    def __init__(
        self,
        method: str = "c-mixup",
        *,
        method_params: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (128, 128),
        epochs: int = 100,
        batch_size: int = 32,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        validation_fraction: float = 0.1,
        standardize: bool = True,
        random_state: Any = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        super().__init__(
            method,
            method_params=method_params,
            hidden=hidden,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            validation_fraction=validation_fraction,
            standardize=standardize,
            random_state=random_state,
            device=device,
            verbose=verbose,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _more_tags(self) -> dict[str, Any]:  # scikit-learn < 1.6
        return {"multioutput": True}

    def fit(self, X: Any, y: Any) -> MixRegressor:
        """X: (n, D) numbers, n >= 2. y: (n,) or (n, outputs) real values."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, multi_output=True, y_numeric=True)
        y = y.astype(np.float64)
        self._width = None if y.ndim == 1 else y.shape[1]
        self._train(X, y, Regression(self._width or 1))
        return self

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """(n,) or (n, outputs) values in the units of y."""
        check_is_fitted(self)
        values = self.target_scaler_.inverse_transform(self._predict(X, Regression(self._width or 1)))
        return np.asarray(values.ravel() if self._width is None else values)


def _plain(value: Any) -> Any:
    """NumPy's numbers, of which grids are made, as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _scaler(standardize: bool) -> StandardScaler:
    return StandardScaler(with_mean=standardize, with_std=standardize)


def _split(strata: np.ndarray[Any, Any], held: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(training rows, validation rows): `held` of them, evenly spaced in a random order that is sorted by stratum.

    Fewer where a stratum would have no row left to train on: its first one stays.
    """
    order = permutation(len(strata), torch.Generator().manual_seed(seed)).numpy()
    order = order[np.argsort(strata[order], kind="stable")]
    out = np.zeros(len(order), dtype=bool)
    out[((np.arange(held) + 0.5) * len(order) / max(held, 1)).astype(int)] = True
    start = np.flatnonzero(np.diff(strata[order], prepend=strata[order[:1]] - 1))
    out[start] &= ~np.logical_and.reduceat(out, start)
    return order[~out], order[out]


def _progress(name: str) -> Callable[[int, int, dict[str, float]], None]:
    """A line on standard error that shows epoch, losses and the time left; where that is no terminal, ten lines."""
    start, live = time.perf_counter(), sys.stderr.isatty()

    def tell(done: int, total: int, row: dict[str, float]) -> None:
        if live or done == total or done % max(1, total // 10) == 0:
            left = (time.perf_counter() - start) / done * (total - done)
            losses = "".join(f"{k.replace('_', ' ')} {row[k]:.4g}, " for k in ("train_loss", "valid_loss") if k in row)
            line = f"{name}: epoch {done}/{total}, {losses}{left:.0f} s left"
            print(f"\r{line:<79}" if live else line, end="" if live and done < total else "\n", file=sys.stderr)

    return tell
