"""Draws mixing.png: what mixup, CutMix and FMix do to two images. Photographs: scikit-learn's samples (CC BY)."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_images

import omnimix as om

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


def main() -> None:
    photos = torch.stack(
        [torch.tensor(image).permute(2, 0, 1)[:, :420, 110:530] / 255 for image in load_sample_images().images]
    )
    x, y, partner = photos.flip(0), torch.tensor([0, 1]), torch.tensor([1, 0])
    rows = {"mixup": om.mixup, "CutMix": om.cutmix, "FMix": om.fmix}
    figure, axes = plt.subplots(len(rows), len(SHARES), figsize=(10, 6.6), layout="constrained")
    for line, (name, mix) in zip(axes, rows.items(), strict=True):
        for axis, lam in zip(line, SHARES, strict=True):
            mixed = mix(x, y, lam=lam, partner=partner, generator=torch.Generator().manual_seed(6))
            axis.imshow(mixed.x[0].permute(1, 2, 0).clamp(0, 1))
            share = mixed.soft_target(2)[0]
            axis.set_title(f"{share[0]:.2f} flower, {share[1]:.2f} temple", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize=13)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
