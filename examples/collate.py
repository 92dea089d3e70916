"""Mixing in the DataLoader: batches arrive mixed, with soft targets, and the training loop stays as it is."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import omnimix as om
from omnimix.networks import create


def main():
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target))
    training, test = random_split(data, [1200, len(data) - 1200])

    # Each worker draws from a stream of its own. Real-valued targets need no num_classes.
    mixing = om.collate(om.mixup, num_classes=10, alpha=0.2, per_sample=True)
    loader = DataLoader(training, batch_size=64, shuffle=True, collate_fn=mixing, num_workers=1)
    model = create("small-cnn", (1, 8, 8), 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(3):
        for x, target in loader:  # target: (64, 10), each row sums to 1
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: training loss of the last batch {loss.item():.3f}")

    model.eval()
    with torch.no_grad():
        hits = [model(x).argmax(dim=1) == y for x, y in DataLoader(test, batch_size=256)]  # never mixed
    print(f"test accuracy {torch.cat(hits).float().mean().item():.3f}")


if __name__ == "__main__":  # worker processes import this file
    main()
