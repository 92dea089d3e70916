"""In place of timm.data.Mixup: the same arguments, and the last, odd batch need not be dropped."""

import torch
from sklearn.datasets import load_digits
from timm.loss import SoftTargetCrossEntropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from omnimix.integrations.timm import Mixup
from omnimix.networks import create

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target))
training, test = random_split(data, [1201, len(data) - 1201])  # 18 batches of 64 and one of 49

mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, switch_prob=0.5, mode="elem", label_smoothing=0.1, num_classes=10)
criterion = SoftTargetCrossEntropy()
model = create("small-cnn", (1, 8, 8), 10)  # or timm.create_model(...)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for epoch in range(4):
    mixup.mixup_enabled = epoch < 3  # as in timm's scripts: the last epoch sees plain images
    for x, y in DataLoader(training, batch_size=64, shuffle=True):
        x, target = mixup(x, y)
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: training loss of the last batch ({len(y)} images) {loss.item():.3f}")

model.eval()
with torch.no_grad():
    hits = [model(x).argmax(dim=1) == y for x, y in DataLoader(test, batch_size=256)]
print(f"test accuracy {torch.cat(hits).float().mean().item():.3f}")
