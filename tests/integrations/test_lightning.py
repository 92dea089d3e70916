import os
import socket
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import omnimix as om
from omnimix.core.objective import LabelPolicy

lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")
from omnimix.integrations.lightning import Mixing  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(22) % 3
REAL = X.sum(dim=1)
THREE = om.Classification(3)


class Plain(lightning.LightningModule):
    """An ordinary module: it knows nothing of mixing."""

    def __init__(self, outputs=3, loss=F.cross_entropy):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))
        for parameter in self.net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2
        self.criterion, self.seen, self.judged = loss, [], []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append((x, y))
        output = self(x)
        loss = self.criterion(output if y.ndim > 1 else output.squeeze(1), y)
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.judged.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Asking(Plain):
    def training_step(self, batch, batch_idx):
        return self.mixing.loss(self, batch)


def fit(module, callback, data, *, trainer=lightning.Trainer, ckpt=None, valid=None, **options):
    options = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **options}
    options.setdefault("enable_checkpointing", False)
    callbacks = callback if isinstance(callback, list) else [callback]
    trainer = trainer(callbacks=callbacks, enable_model_summary=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data, valid, ckpt_path=ckpt)
    return trainer


def batches(*tensors, size=8):
    return DataLoader(TensorDataset(*(tensors or (X, Y))), size)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("erm", {}),
        ("mixup", {"alpha": 1.0}),
        ("manifold-mixup", {}),
        ("midpoint-mixup", {}),
        ("early-stopped-mixup", {"stop": 0.5}),
    ],
)
def test_an_unchanged_module_trains_as_a_loop_of_ones_own(name, options):
    module = Plain()
    fit(module, Mixing(name, THREE, **options), batches())

    own = Plain()
    method = om.create(name, **options).setup(own.net, THREE, steps=6, generator=torch.Generator().manual_seed(0))
    optimizer = own.configure_optimizers()
    for _ in range(2):
        method.before_epoch()
        for batch in batches():
            method.step(own.net, om.Batch.of(batch), optimizer)
            method.after_step()
        method.after_epoch()
    assert torch.allclose(weights(module), weights(own), atol=1e-6)
    assert not torch.equal(weights(module), weights(Plain()))


@pytest.mark.parametrize("name", ["regmixup", "decoupled-mixup", "mixup", "manifold-mixup"])
def test_methods_with_a_loss_of_their_own_are_asked_for_it(name):
    module = Asking()
    fit(module, Mixing(name, THREE, in_step=True), batches())

    own = Plain()
    method = om.create(name).setup(own.net, THREE, steps=6, generator=torch.Generator().manual_seed(0))
    optimizer = own.configure_optimizers()
    for _ in range(2):
        for batch in batches():
            method.step(own.net, om.Batch.of(batch), optimizer)
            method.after_step()
    assert torch.equal(weights(module), weights(own))


def test_only_training_is_mixed_and_the_module_is_left_as_it_was():
    module = Plain()
    fit(module, Mixing("mixup", THREE), batches(), valid=batches())
    x, y = module.seen[0]
    assert y.shape == (8, 3)
    assert torch.allclose(y.sum(dim=1), torch.ones(8))
    assert not torch.equal(x, X[:8])
    assert all(torch.equal(y, Y[8 * (i % 3) : 8 * (i % 3) + 8]) for i, (_, y) in enumerate(module.judged[2:]))
    assert torch.equal(module.judged[2][0], X[:8])
    assert "training_step" not in vars(module)


def test_batches_keep_their_form():
    class Reads(Plain):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch)
            return F.cross_entropy(self(batch["image"]), batch["label"])

    module = Reads()
    fit(module, Mixing("mixup", THREE), DataLoader([{"image": x, "label": y} for x, y in zip(X, Y, strict=True)], 8))
    assert set(module.seen[0]) == {"image", "label"}
    assert module.seen[0]["label"].shape == (8, 3)


def test_cutmix_targets_follow_the_box_really_cut():
    x = torch.zeros(8, 1, 9, 9)
    x[1::2] = 1.0
    y = torch.arange(8) % 2

    class Pixels(Plain):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch)
            return self.net[2].weight.sum()

    module = Pixels()
    fit(module, Mixing("cutmix", om.Classification(2)), batches(x, y), max_epochs=5)
    for mixed, target in module.seen:
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), target[:, 1], atol=1e-6)
    assert any(((t > 0) & (t < 1)).any() for _, t in module.seen)


def test_partners_from_the_whole_training_set_and_real_targets():
    module, mixing = Plain(1, F.mse_loss), Mixing("c-mixup", om.Regression(1), bandwidth=0.1)
    fit(module, mixing, mixing.loader(TensorDataset(X, REAL), 8))
    x, y = module.seen[0]
    assert x.shape == (8, 4)
    assert y.shape == (8,)
    assert torch.allclose(x.sum(dim=1), y, atol=1e-5)
    assert len(module.seen) == 6


@pytest.mark.parametrize("name", ["c-mixup", "choose"])
def test_workers_that_fetch_ahead_change_nothing(name):
    def train(workers):
        method = om.create("c-mixup")
        method = method if name == "c-mixup" else om.Choose([method, om.create("mixup")])
        module, mixing = Asking(1), Mixing(method, om.Regression(1), in_step=True)
        fit(module, mixing, mixing.loader(TensorDataset(X, REAL), 4, num_workers=workers))
        return weights(module)

    assert torch.equal(train(0), train(2))


def test_weights_of_samples_are_no_soft_targets():
    class Weighs(LabelPolicy):
        by_row = True

        def __call__(self, recipe, context):
            return replace(recipe, loss_weight=torch.ones(len(recipe.partner)))

    with pytest.raises(ValueError, match="in_step=True"):
        fit(Plain(), Mixing(om.Mix(labels=Weighs()), THREE), batches())
    fit(Asking(), Mixing(om.Mix(labels=Weighs()), THREE, in_step=True), batches())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_counts_training_batches(accumulate):
    module, mixing = Plain(), Mixing("early-stopped-mixup", THREE, stop=0.5)
    fit(module, mixing, batches(), max_epochs=4, accumulate_grad_batches=accumulate)
    hard = [bool(((y == 0) | (y == 1)).all()) for _, y in module.seen]
    assert hard == [False] * 6 + [True] * 6
    assert mixing.method.steps_done == 12


@pytest.mark.parametrize(
    ("name", "options"),
    [("mixup", {}), ("early-stopped-mixup", {"stop": 0.7}), ("c-mixup", {}), ("regmixup", {"in_step": True})],
)
def test_a_run_resumed_from_a_checkpoint_is_the_run_undisturbed(tmp_path, name, options):
    class Stop(lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise ZeroDivisionError

    def train(folder, *more, ckpt=None):
        if name == "c-mixup":
            mixing, module = Mixing(name, om.Regression(1), **options), Plain(1, F.mse_loss)
            data = mixing.loader(TensorDataset(X, REAL), 8, num_workers=2)
        else:
            mixing, data = Mixing(name, THREE, **options), batches()
            module = Asking() if mixing.in_step else Plain()
        keep = lightning.callbacks.ModelCheckpoint(folder, save_last=True)
        options_ = {"max_epochs": 4, "enable_checkpointing": True, "ckpt": ckpt}
        if more:
            with pytest.raises(ZeroDivisionError):
                fit(module, [mixing, keep, *more], data, **options_)
            assert not {"mixing", "training_step"} & set(vars(module))
        else:
            fit(module, [mixing, keep], data, **options_)
        return weights(module)

    whole = train(tmp_path / "whole")
    train(tmp_path / "cut", Stop())
    last = tmp_path / "cut" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert torch.equal(train(tmp_path / "cut", ckpt=last), whole)


def test_half_precision():
    module = Plain()
    fit(module, Mixing("mixup", THREE), batches(), precision="bf16-true")
    assert module.seen[0][0].dtype == module.seen[0][1].dtype == torch.bfloat16


def test_the_other_package_name():
    other = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning")
    module = type("Other", (other.LightningModule,), {k: v for k, v in vars(Plain).items() if k != "__init__"})()
    module.net, module.criterion, module.seen = nn.Sequential(nn.Linear(4, 3)), F.cross_entropy, []
    fit(module, Mixing("mixup", THREE), batches(), trainer=other.Trainer)
    assert module.seen[0][1].shape == (8, 3)


class Judged(Asking):
    """Logs its validation loss, and has a batch norm whose statistics must follow the averaged weights."""

    def __init__(self, outputs=3):
        super().__init__(outputs)
        self.net.insert(1, nn.BatchNorm1d(8))

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


def test_swad_follows_validation_and_leaves_the_mean_weights():
    module, mixing = Judged(), Mixing("swad", THREE, in_step=True, patience=2, tolerance=2)
    fit(module, mixing, batches(), valid=batches(), max_epochs=5)

    own = Judged()
    method = om.create("swad", patience=2, tolerance=2)
    method.setup(own.net, THREE, steps=15, generator=torch.Generator().manual_seed(0))
    optimizer = own.configure_optimizers()
    for _ in range(5):
        own.net.train()
        for batch in batches():
            method.step(own.net, om.Batch.of(batch), optimizer)
            method.after_step()
        own.net.eval()
        with torch.no_grad():
            losses = [F.cross_entropy(own.net(x), y) * len(y) for x, y in batches()]
        method.after_validation(sum(losses).item() / len(X))
    last = weights(own)
    own.net.train()
    method.after_training(own.net, map(om.Batch.of, batches()))
    assert torch.allclose(weights(module), weights(own), atol=1e-6)
    assert torch.allclose(module.net[1].running_mean, own.net[1].running_mean, atol=1e-6)
    assert not torch.allclose(weights(module), last, atol=1e-4)


def test_qt_dog_leaves_rounded_weights():
    class Convolves(Asking):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(8, 3))

    module, mixing = Convolves(), Mixing("qt-dog", THREE, in_step=True, bits=3, start=0.5)
    fit(module, mixing, batches(), max_epochs=2)
    assert all(len(row.unique()) <= 8 for row in module.net[1].weight)
    rates = {group["lr"] for group in mixing.method.side.optimizer.param_groups}
    assert rates == {0.1}  # that of the module's SGD
    assert isinstance(mixing.method.side.optimizer, torch.optim.SGD)


def test_styles_of_the_training_domains_come_from_the_loader():
    class Maps(Asking):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
            )

    domain = torch.arange(22) % 2
    module, mixing = Maps(), Mixing("tss", THREE, in_step=True, balance=0.0, alpha=0.0, taps=["1"])
    fit(module, mixing, mixing.loader(TensorDataset(X, Y, domain), 8), max_epochs=1)
    other = om.create("tss", taps=["1"]).setup(module.net, THREE, om.Table(domain=domain))
    other.after_training(module.net, [om.Batch(X, Y, domain)])
    for found, wanted in zip(mixing.method.bank["1"], other.bank["1"], strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    assert mixing.method.predict(module, X).shape == (22, 3)


TWO = """
import sys
sys.path.insert(0, sys.argv[2])
from test_lightning import *

class Writes(Plain):
    def training_step(self, batch, batch_idx):
        torch.save(batch, f"{sys.argv[1]}/{self.global_rank}-{self.current_epoch}-{batch_idx}.pt")
        return super().training_step(batch, batch_idx)

same = TensorDataset(X[:4].repeat(6, 1), Y[:4].repeat(6))
for epochs, name, ckpt in ((2, "whole", None), (1, "cut", None), (2, "cut", sys.argv[1] + "/cut/last.ckpt")):
    mixing = Mixing("selective-mixup", THREE, label="any")
    keep = lightning.callbacks.ModelCheckpoint(f"{sys.argv[1]}/{name}", save_last=True)
    module = Writes()
    fit(module, [mixing, keep], mixing.loader(same, 4), ckpt=ckpt, max_epochs=epochs, strategy="ddp", devices=2,
        use_distributed_sampler=False, enable_checkpointing=True)
    torch.save(weights(module), f"{sys.argv[1]}/{name}.pt")
"""


@pytest.mark.slow
def test_two_processes_have_their_own_shares_and_draws_and_resume(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), os.path.dirname(__file__)]
    both = [
        subprocess.Popen(command, env={**where, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors[0][-2000:]
    first, second = (torch.load(tmp_path / f"{rank}-1-0.pt") for rank in (0, 1))
    assert not torch.equal(first[1], second[1])
    assert len(list(tmp_path.glob("1-1-*.pt"))) == 3
    assert torch.equal(torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "cut.pt"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixing("regmixup", THREE), "RegMixup makes the loss itself.*in_step=True"),
        (lambda: Mixing("mixup", THREE, strength=2), "no parameter 'strength'"),
        (lambda: Mixing(om.Mixup(), THREE, alpha=2.0), "alpha belong to a method given by name"),
        (lambda: Mixing(om.mixup, THREE), "method must be a name such as 'mixup'"),
        (lambda: fit(Plain(), Mixing("selective-mixup", THREE), batches()), "mixing.loader"),
        (lambda: fit(Plain(), Mixing("c-mixup", THREE, table=om.Table(label=REAL)), batches()), "is for regression"),
        (lambda: fit(Plain(), Mixing("mixup", 3), batches()), "task must be an omnimix.Task"),
        (lambda: fit(Plain(), Mixing("regmixup", THREE, in_step=True), batches()), "did not call self.mixing.loss"),
        (lambda: Mixing("c-mixup", om.Regression(1)).loader([(X[0], REAL[0])], 1), "omnimix.Table"),
        (lambda: next(iter(Mixing("c-mixup", om.Regression(1)).loader(TensorDataset(X, REAL), 4))), "has not begun"),
        (lambda: fit(Plain(), Mixing("mixup", THREE), DataLoader(X, 4)), "a batch must be"),
        (lambda: fit(Asking(), Mixing("sam", THREE, in_step=True), batches()), "SAM makes more of a step"),
        (lambda: fit(Asking(), Mixing("swad", THREE, in_step=True), batches()), "SWAD follows the validation loss"),
        (
            lambda: fit(Judged(), Mixing("swad", THREE, in_step=True, monitor="loss"), batches(), valid=batches()),
            "Judged logs no 'loss'.*val_loss",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_module_without_forward_and_one_with_another_mixing():
    class Bare(lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            return self.mixing.loss(self, batch)

        def configure_optimizers(self):
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.raises(ValueError, match=r"Bare has no forward"):
        fit(Bare(), Mixing("regmixup", THREE, in_step=True), batches())
    module = Asking()
    module.mixing = 0.3
    with pytest.raises(ValueError, match="is the callback's place"):
        fit(module, Mixing("regmixup", THREE, in_step=True), batches())
