"""Manifold mixup in Lightning: the module is an ordinary one, the callback is all that is added."""

import logging

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import omnimix as om
from omnimix.integrations.lightning import Mixing


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch  # in training y arrives as soft targets, which cross_entropy takes as they are
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch  # never mixed
        self.log("accuracy", (self(x).argmax(dim=1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    train = DataLoader(torch.utils.data.Subset(data, range(900)), 64, shuffle=True)
    valid = DataLoader(torch.utils.data.Subset(data, range(900, len(data))), 256)
    for name, options in (("erm", {}), ("manifold-mixup", {"alpha": 2.0})):
        lightning.seed_everything(0, verbose=False)
        trainer = lightning.Trainer(
            max_epochs=10,
            accelerator="cpu",
            callbacks=[Mixing(name, om.Classification(10), **options)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Digits(), train, valid)
        print(f"{name}: accuracy {trainer.callback_metrics['accuracy']:.3f}")
