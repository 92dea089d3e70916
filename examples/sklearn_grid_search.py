"""scikit-learn: is mixing of use on these data, and how strong should it be? A grid search over methods."""

from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score

from omnimix.integrations.sklearn import MixClassifier, MixRegressor

# The five lines: methods by name, their parameters as method__NAME.
X, y = load_digits(return_X_y=True)
grid = [{"method": ["erm"]}, {"method": ["mixup"], "method__alpha": [0.2, 1.0]}]
search = GridSearchCV(MixClassifier(epochs=10, random_state=0), grid, cv=3)
search.fit(X[:600], y[:600])
print(f"best: {search.best_params_}, accuracy on unseen digits {search.score(X[600:], y[600:]):.3f}")

for parameters, mean, spread in zip(
    *(search.cv_results_[key] for key in ("params", "mean_test_score", "std_test_score")), strict=True
):
    print(f"  {mean:.3f} (sd over folds {spread:.3f})  {parameters}")

# Regression, several targets too: C-Mixup mixes samples whose targets are close.
X, y = load_diabetes(return_X_y=True)
for method in ("erm", "c-mixup", "c-mixup:alpha=0.5"):
    scores = cross_val_score(MixRegressor(method, epochs=20, random_state=0), X, y, cv=3)
    print(f"diabetes, {method}: R^2 {scores.mean():.3f}")
