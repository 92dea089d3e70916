"""In place of torchvision's v2.MixUp and v2.CutMix: the same code, any mixing method by its name."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, default_collate, random_split
from torchvision.transforms import v2

from omnimix.integrations.torchvision import CutMix, Mix, MixUp
from omnimix.networks import create

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target))
training, test = random_split(data, [1200, len(data) - 1200])

# Every batch gets one of the three; per_sample draws a share (and a box) for each image rather than one for the batch.
mix = v2.RandomChoice([
    MixUp(num_classes=10, alpha=0.2),
    CutMix(num_classes=10, per_sample=True),
    Mix("fmix", num_classes=10),
])  # fmt: skip
loader = DataLoader(training, batch_size=64, shuffle=True, collate_fn=v2.Compose([default_collate, mix]))

model = create("small-cnn", (1, 8, 8), 10)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for epoch in range(4):
    for x, target in loader:  # target: (64, 10), soft
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: training loss of the last batch {loss.item():.3f}")

model.eval()
with torch.no_grad():
    hits = [model(x).argmax(dim=1) == y for x, y in DataLoader(test, batch_size=256)]
print(f"test accuracy {torch.cat(hits).float().mean().item():.3f}")
