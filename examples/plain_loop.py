"""Mixing in a training loop of your own: images by one call a batch, then a method that chooses partners itself."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes, load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import omnimix as om
from omnimix.networks import create

torch.manual_seed(0)

# 1. One call mixes a batch and returns what the loss needs to know. Two lines of the loop are new.
digits = load_digits()
data = TensorDataset(torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target))
training, test = random_split(data, [1200, len(data) - 1200])
model = create("small-cnn", (1, 8, 8), 10)  # any torch module
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(5):
    for x, y in DataLoader(training, batch_size=64, shuffle=True):
        mixed = om.mixup(x, y, alpha=0.2)  # or om.cutmix, om.fmix, ...
        loss = mixed.loss(F.cross_entropy, model(mixed.x))  # in place of F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()  # evaluation never mixes
with torch.no_grad():
    hits = [model(x).argmax(dim=1) == y for x, y in DataLoader(test, batch_size=256)]
print(f"digits with mixup: test accuracy {torch.cat(hits).float().mean().item():.3f}")

# 2. C-Mixup needs partners of similar target from the whole training set: the loader brings them along.
x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
x, y = (x - x.mean(dim=0)) / x.std(dim=0), (y - y.mean()) / y.std()
model = create("mlp", (10,), 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
method = om.create("c-mixup").setup(model, om.Regression(1), om.Table(label=y[:350]))
for _ in range(20):
    for batch in om.partner_loader(TensorDataset(x[:350], y[:350]), method, batch_size=32):
        method.step(model, batch, optimizer)  # loss, backward, optimiser step; or method.loss(model, batch)
        method.after_step()
    method.after_epoch()
model.eval()
with torch.no_grad():
    error = F.mse_loss(model(x[350:]).squeeze(1), y[350:]).item()
print(f"diabetes with C-Mixup: R^2 {1 - error / y[350:].var(correction=0).item():.3f} on unseen patients")
