"""A transformers encoder as a classifier of texts, fine-tuned on soft labels.

AdamW on the cross-entropy CE(t_i, softmax(logits_i)), learning rate linearly up for a tenth of the steps and down to 0;
of the epochs the one stays whose WORST label is most accurate on the validation documents. The constants are
WebOrganizer's (gte-base-en-v1.5, batches of 512, 5 epochs, learning rate 1e-4, weight decay 0.1). Cost: forward and
backward passes of the encoder; it wants a GPU.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import random
from ...core.checks import at_least, in_unit, non_negative, positive
from .embed import CHARACTERS, Array, contents, library


class TransformerClassifier:
    """Class probabilities of texts by a sequence classifier.

    source: a local folder, or a transformers configuration to begin from random weights. classes: C. tokenizer: folder
    or object; default: that of `source`. batch: texts of one optimiser step, of which `at_once` are in memory. length:
    tokens at which a text is cut. device: of model and batches. Nothing is downloaded, no remote code is run.
    """

    kind = "transformer"

    def __init__(
        self, source: Any, classes: int, *, tokenizer: Any = None, length: int = 512, batch: int = 512,
        at_once: int = 32, lr: float = 1e-4, epochs: int = 5, warmup: float = 0.1, weight_decay: float = 0.1,
        device: str | torch.device | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.classes, self.length = at_least("classes", classes, 2), at_least("length", length, 1)
        self.batch, self.at_once = at_least("batch", batch, 1), at_least("at_once", at_once, 1)
        self.lr, self.epochs = positive("lr", lr), at_least("epochs", epochs, 1)
        self.warmup, self.weight_decay = in_unit("warmup", warmup), non_negative("weight_decay", weight_decay)
        self.worst: list[float] = []
        """The worst label's accuracy on the validation documents, by epoch of the last fit."""
        transformers = library()
        folder = isinstance(source, (str, Path))
        if folder and not Path(source).is_dir():
            raise ValueError(f"there is no folder {source}: download the encoder first, nothing is downloaded here")
        given = source if tokenizer is None and folder else tokenizer
        if given is None:
            raise ValueError("a configuration has no tokenizer: give one")
        if isinstance(given, (str, Path)):
            given = transformers.AutoTokenizer.from_pretrained(given, local_files_only=True)
        self.tokenizer = given
        kind = transformers.AutoModelForSequenceClassification
        with torch.random.fork_rng(devices=[]):  # the new head is drawn from the global state
            torch.manual_seed(seed)
            if folder:
                self.model = kind.from_pretrained(source, num_labels=classes, local_files_only=True)
            else:
                source.num_labels = classes
                self.model = kind.from_config(source)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.float().eval()
        if device is not None:
            self.model.to(device)

    def fit(
        self, texts: Sequence[str], targets: Array, validation: tuple[Sequence[str], Array] | None = None,
        generator: torch.Generator | None = None,
    ) -> TransformerClassifier:  # fmt: skip
        """Train on (N, C) target distributions from the present weights on; without validation the last epoch stays."""
        generator = random.resolve(generator)
        device = self.model.device
        target = torch.as_tensor(np.asarray(targets), dtype=torch.float32)
        steps = self.epochs * math.ceil(len(texts) / self.batch)
        optimizer, schedule = self._optimizer(steps)
        best: tuple[tuple[float, float], dict[str, Tensor]] | None = None
        self.worst = []
        seed = int(random.integers(2**31, 1, generator=generator))
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout draws from the global state
            torch.manual_seed(seed)
            for _ in range(self.epochs):
                self.model.train()
                order = random.permutation(len(texts), generator).tolist()
                for first in range(0, len(order), self.batch):
                    rows = order[first : first + self.batch]
                    for at in range(0, len(rows), self.at_once):
                        some = rows[at : at + self.at_once]
                        logits = self.model(**self._tokens([texts[i] for i in some])).logits
                        loss = F.cross_entropy(logits.float(), target[some].to(device), reduction="sum") / len(rows)
                        torch.autograd.backward(loss)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                self.model.eval()
                if validation is not None:
                    score = _by_label(self.probabilities(validation[0]), validation[1])
                    self.worst.append(score[0])
                    if best is None or score > best[0]:
                        best = score, copy.deepcopy(self.model.state_dict())
        if best is not None:
            self.model.load_state_dict(best[1])
        return self

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str]) -> Array:
        """(N, C) class probabilities."""
        found = np.empty((len(texts), self.classes))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths share a batch: less padding
        for first in range(0, len(order), self.at_once):
            rows = order[first : first + self.at_once]
            found[rows] = self.model(**self._tokens([texts[i] for i in rows])).logits.double().softmax(1).cpu()
        return found

    def save(self, folder: Path) -> None:
        """As transformers does: config.json, safetensors, the tokenizer; and our settings."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        (folder / "omnimix.json").write_text(json.dumps(self._settings(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str | torch.device | None = None) -> TransformerClassifier:
        """What `save` wrote."""
        return cls(folder, **json.loads((folder / "omnimix.json").read_text(encoding="utf-8")), device=device)

    def contents(self) -> dict[str, Any]:
        """All that decides its probabilities, and nothing that they change."""
        return {**self._settings(), **contents(self.model, self.tokenizer)}

    def _settings(self) -> dict[str, Any]:
        names = ("classes", "length", "batch", "at_once", "lr", "epochs", "warmup", "weight_decay")
        return {name: getattr(self, name) for name in names}

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(
            [text[:CHARACTERS] for text in texts], truncation=True, max_length=self.length, padding=True,
            return_tensors="pt",
        ).to(self.model.device)  # fmt: skip

    def _optimizer(self, steps: int) -> tuple[torch.optim.Optimizer, Any]:
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]  # biases and norms do not decay
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.lr,
        )
        rise = max(1, round(self.warmup * steps))

        def factor(step: int) -> float:
            return min((step + 1) / rise, (steps - step) / max(1, steps - rise))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _by_label(probabilities: Array, targets: Array) -> tuple[float, float]:
    """The lowest and the mean accuracy over the labels that occur."""
    true = np.asarray(targets).argmax(1)
    right = probabilities.argmax(1) == true
    rates = [float(right[true == label].mean()) for label in np.unique(true)]
    return min(rates), float(np.mean(rates))
