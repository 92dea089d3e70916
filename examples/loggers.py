"""A comparison in TensorBoard: one folder a run, with its history, its test metrics and its settings.

`log_runs(by_address("mlflow:http://localhost:5000"))` sends the same to MLflow.
"""

import sys
import tempfile
from pathlib import Path

from omnimix.compare import compare, settings
from omnimix.integrations.loggers import by_address, log_runs

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    asked = settings(data="digits", methods=("erm", "mixup"), seeds=(0, 1), epochs=20, lr=0.01, net="mlp:hidden=32")
    result = compare(
        asked, folder / "comparison", workers=1, watch=log_runs(by_address(f"tensorboard:{folder / 'logs'}"))
    )
    for run in result.runs:
        print(f"{run.method}, seed {run.seed}: {result.primary} {run.metrics[result.primary]:.3f}")
    print("logged:", *sorted(path.name for path in (folder / "logs").iterdir()))
    print(f"see them with: tensorboard --logdir {folder / 'logs'}")
