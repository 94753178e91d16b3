"""Compare what two heads transmit, on a channel file made by a few lines of numpy.

    python examples/compare_heads.py

Two "heads" encode the same 100,000 patches. All but one of their 32 latent dimensions have collapsed. The two active
dimensions share a cause, and the normalised mutual information measures how much of their information is common.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import ibvit
from ibvit.information import load_channel

PATCHES, LATENTS = 100_000, 32


def write_heads(folder: Path) -> list[Path]:
    """Two channel files: mu and logvar, [patches, latents], as `ibvit nmi A.npz B.npz` reads them."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=PATCHES)
    files = []
    for name in ("A", "B"):
        mu = np.zeros((PATCHES, LATENTS), np.float32)
        logvar = np.zeros((PATCHES, LATENTS), np.float32)  # collapsed dimensions are the prior N(0, 1)
        mu[:, 0] = 0.8 * cause + 0.6 * rng.normal(size=PATCHES)
        logvar[:, 0] = -3
        files.append(folder / f"{name}.npz")
        np.savez(files[-1], mu=mu, logvar=logvar)
    return files


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = (load_channel(file) for file in write_heads(Path(folder)))

    transmitted = ibvit.mutual_information(*first)
    print(f"head A transmits {transmitted.bits:.4f} bits a patch ({transmitted.method}, {transmitted.seconds:.2f} s)")

    exact = ibvit.nmi(first, second)
    print(f"NMI(A, B) = {exact.value:.6f}, error below {exact.bias_bound:.0e} ({exact.method}, {exact.seconds:.2f} s)")

    sampled = ibvit.nmi(first, second, method="mc", samples=2000)
    print(f"NMI(A, B) = {sampled.value:.3f} ± {sampled.stderr:.3f} by the paper's sampling ({sampled.seconds:.2f} s)")


if __name__ == "__main__":
    main()
