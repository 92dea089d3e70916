"""Training and comparisons in TensorBoard, MLflow, CSV, ...: whatever speaks Lightning's logger interface.

    fit(..., progress=log_to(TensorBoardLogger("logs")))
    compare(..., watch=log_runs(lambda name: TensorBoardLogger("logs", name=name, version="")))

A comparison's runs are logged as each ends, one logger a run, from the process that writes the store: engines and their
workers know nothing of it. Loggers come from `lightning.pytorch.loggers`, `lightning.fabric.loggers` or elsewhere; they
need `log_metrics(metrics, step)`, `log_hyperparams(params)` and `finalize(status)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..compare.jobs import Plan, Unit
    from ..compare.store import Failure, Run

Watch = Callable[[Any, Any, int, Any], AbstractContextManager[Callable[[Any], None]]]


def log_to(logger: Any) -> Callable[[int, int, dict[str, float]], None]:
    """A `progress` for `omnimix.train.fit`: each row of the history becomes metrics at the step of its epoch.

    After the last epoch the logger is finalized, which writes out what it holds.
    """
    _check(logger)

    def progress(done: int, epochs: int, row: dict[str, float]) -> None:
        logger.log_metrics(_numbers(row), step=done)
        if done == epochs:
            logger.finalize("success")

    return progress


def log_runs(make: Callable[[str], Any], watch: Watch | None = None) -> Watch:
    """A `watch` for `omnimix.compare.run.compare`, which logs every run when it ends.

    make: called with the name of a run, such as "c-mixup-alpha=0.5-seed3-1f09ab", gives its logger. Logged are the
    history (step: the epoch), the test metrics as "test_" + name at the last epoch, and as hyperparameters the method,
    the seed, the parameters and the key of the store; of failed runs the error. Runs that the store held already are
    not logged again. watch: another one that is told everything, too, such as a progress display.
    """

    @contextmanager
    def both(
        plan: Plan, units: list[Unit], found: int, fractions: np.ndarray
    ) -> Iterator[Callable[[Run | Failure], None]]:
        broken = False

        def ended(outcome: Run | Failure) -> None:
            nonlocal broken
            if broken:
                return
            try:
                log_run(_check(make(run_name(outcome))), outcome)
            except Exception as error:  # the comparison is worth more than its log
                broken = True
                warnings.warn(f"logging stopped: {error}; the results are in the store", stacklevel=2)

        if watch is None:
            yield ended
            return
        with watch(plan, units, found, fractions) as tell:

            def told(outcome: Run | Failure) -> None:
                ended(outcome)
                tell(outcome)

            yield told

    return both


def log_run(logger: Any, outcome: Run | Failure) -> None:
    """Write one finished or failed run, with its history where there is one, and close the logger."""
    config = outcome.config
    settings = {
        "method": outcome.method,
        "seed": outcome.seed,
        **{f"parameter_{name}": value for name, value in config.get("parameters", {}).items()},
        "key": outcome.key,
    }
    if hasattr(outcome, "error"):
        logger.log_hyperparams({**settings, "error": outcome.error})
        logger.finalize("failed")
        return
    history = outcome.history
    logger.log_hyperparams(
        {**settings, "data": outcome.data, "device": outcome.device, "best_epoch": outcome.best_epoch}
    )
    for row in history:
        logger.log_metrics(_numbers(row), step=int(row["epoch"]))
    last = int(history[-1]["epoch"]) if history else 0
    found = {f"test_{name}": value for name, value in outcome.metrics.items()}
    found.update(
        {f"test_{name}.{_safe(at)}": v for at, scores in outcome.domains.items() for name, v in scores.items()}
    )
    logger.log_metrics(_numbers({**found, "seconds": outcome.seconds}), step=last)
    logger.finalize("success")


def run_name(outcome: Run | Failure) -> str:
    """The method with its parameters, the seed and the beginning of the key, in letters that folders take."""
    return f"{_safe(outcome.method)}-seed{outcome.seed}-{outcome.key[:6]}"


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.=+" else "-" for c in name)


def by_address(address: str) -> Callable[[str], Any]:
    """What makes loggers from "tensorboard:FOLDER", "mlflow:URI" or "csv:FOLDER"; for command lines.

    TensorBoard and CSV get a folder a run in FOLDER, MLflow a run each of the experiment "omnimix" at URI (a server, or
    a file such as sqlite:///runs.db). ValueError for what is not known, not installed or cannot be reached.
    """
    kind, _, place = address.partition(":")
    if kind not in ("tensorboard", "mlflow", "csv") or not place:
        raise ValueError(f"a logger is tensorboard:FOLDER, mlflow:URI or csv:FOLDER, got {address!r}")
    try:
        from lightning.pytorch import loggers
    except ImportError:
        raise ValueError(f"logging to {address} needs Lightning: pip install lightning") from None
    if kind == "csv":
        return lambda name: loggers.CSVLogger(place, name=name, version="")
    if kind == "tensorboard":
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ValueError(f"logging to {address} needs TensorBoard: pip install tensorboard")
        return lambda name: loggers.TensorBoardLogger(place, name=name, version="")
    if find_spec("mlflow") is None:
        raise ValueError(f"logging to {address} needs MLflow: pip install mlflow")
    from mlflow import MlflowClient

    try:  # now, not when the first run has ended
        MlflowClient(place).search_experiments(max_results=1)
    except Exception as error:
        raise ValueError(f"MLflow cannot log to {place}: {error}") from error
    return lambda name: loggers.MLFlowLogger("omnimix", run_name=name, tracking_uri=place)


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if value is not None and name != "epoch"}


def _check(logger: Any) -> Any:
    missing = [name for name in ("log_metrics", "log_hyperparams", "finalize") if not hasattr(logger, name)]
    if missing:
        raise ValueError(
            f"a logger of Lightning's interface is needed, such as lightning.pytorch.loggers.CSVLogger; {logger!r} has "
            f"no {', '.join(missing)}"
        )
    return logger
