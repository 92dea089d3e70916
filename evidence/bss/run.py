"""Does a linear classifier still tell the domains of PACS apart after Batch Styles Standardization?

    python evidence/bss/run.py [--data FOLDER] [--rows 300] [--seeds 5]

FOLDER holds PACS. 300 images a domain at 64 x 64; batches of 48 with images of all domains, each in the style of one
image drawn for the batch, with a fixed share r of the spectrum. Features: mean and standard deviation of every channel,
and the logarithm of the mean amplitude in five rings of frequency, of every channel, or of the grey image, in which the
phases of the channels count too. Logistic regression on standardised features, accuracy of naming the domain in 5-fold
cross-validation; chance is 25 %. A seed draws batches, donors and folds.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnimix.data import load
from omnimix.domains.generalize import exchange_amplitudes
from omnimix.domains.measure import linear_domain_accuracy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "evidence"))
from _common import record_all  # noqa: E402

SHARES, BATCH, RINGS = (0.001, 0.01, 0.05, 0.3, 1.0), 48, 5


def rings(x: Tensor) -> Tensor:
    """(N, C RINGS) logarithms of the mean amplitude of each channel of x in rings of frequency."""
    spectrum = torch.fft.fft2(x).abs()
    axes = [torch.fft.fftfreq(side).abs() for side in spectrum.shape[2:]]
    radius = torch.linalg.vector_norm(torch.stack(torch.meshgrid(*axes, indexing="ij")), dim=0)
    ring = (radius / 0.5 * RINGS).long().clamp(max=RINGS - 1)
    return torch.cat([spectrum[:, :, ring == one].mean(2).clamp(min=1e-6).log() for one in range(RINGS)], dim=1)


def features(x: Tensor, grey: bool) -> Tensor:
    """(N, F) means and standard deviations of the channels, and rings of the grey image or of every channel."""
    return torch.cat((x.mean((2, 3)), x.std((2, 3)), rings(x.mean(1, keepdim=True) if grey else x)), dim=1)


def one_style(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The images, batch by batch in the style of one of them; in their order."""
    made = torch.empty_like(x)
    for rows in torch.split(torch.randperm(len(x), generator=generator), BATCH):
        donor = torch.randint(len(rows), (1,), generator=generator).expand(len(rows))
        made[rows] = exchange_amplitudes(x[rows], donor, torch.full((len(rows),), share))
    return made


def own_styles(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The same with a donor for every image: plain Fourier augmentation."""
    donor = torch.randint(len(x), (len(x),), generator=generator)
    return exchange_amplitudes(x, donor, torch.full((len(x),), share))


def measure(x: Tensor, domain: Tensor, seeds: int, grey: bool) -> dict[str, list[float]]:
    """By arm, the accuracy of naming the domain with every seed."""
    arms: dict[str, list[float]] = {}
    for seed in range(seeds):
        views = {"raw": x}
        views |= {f"bss, r = {share:g}": one_style(x, share, torch.Generator().manual_seed(seed)) for share in SHARES}
        views["donor for every image, r = 1"] = own_styles(x, 1.0, torch.Generator().manual_seed(seed))
        for arm, view in views.items():
            found = 100 * linear_domain_accuracy(features(view, grey), domain, seed=seed)
            arms.setdefault(arm, []).append(found)
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("OMNIMIX_DATA") or ROOT.parent / "shared" / "data") / "pacs64"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = load(f"pacs:{args.data}", rows=args.rows)
    assert source.domain is not None
    x, domain = source.take(torch.arange(len(source))), source.domain
    outcomes: dict[str, Any] = {
        "domain accuracy, %, of each channel": (measure(x, domain, args.seeds, False), "raw", False),
        "domain accuracy, %, of channels and the grey image": (measure(x, domain, args.seeds, True), "raw", False),
    }
    record_all(args.out, {"rows": args.rows, "seeds": args.seeds, "batch": BATCH, "rings": RINGS}, outcomes)


if __name__ == "__main__":
    main()
