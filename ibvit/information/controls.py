"""Control variates: what the information would be if the aggregate were Gaussian.

Every control is a function of one draw whose mean over x and u is known exactly from the first two moments of the
channel: replace the mixture p(u) by the Gaussian q with the same mean and covariance Σ, and log p(u|x)/q(u) is a
quadratic in u. Its parts, each with mean 0, are

    χ = ½ (|ε|² − d)            of the draw,    ε = (u − μ(x)) / σ(x)
    h = ½ Σ_j (ρ_j(x) − mean)   of the input
    q = ½ (uᵀ Σ⁻¹ u − d)        of the marginal (μ has mean 0)

and for two columns, log q(u, v) / (q(u) q(v)) minus its mean, −½ zᵀ (J⁻¹ − 1) z with z = (u, v) whitened separately and
J its correlation matrix. Where the aggregate is Gaussian they carry all of the variance; elsewhere the regression
finds how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ibvit.information.channel import ROWS_AT_ONCE, Channel

CONTROLS = 3  # of each member of a term: (χ, h, q) of a single, (g, q_a, q_b) of a pair


class GaussianControls:
    """Second moments of channels over the same inputs, and the controls that follow from them."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        ends = list(accumulate((c.dims for c in channels), initial=0))
        blocks = [slice(a, b) for a, b in pairwise(ends)]
        covariance = _covariance_of_means(channels)
        self._whiten: list[Tensor] = []
        self._mean_logvar: list[Tensor] = []
        for channel, block in zip(channels, blocks, strict=True):
            rho = channel.logvar.double()
            aggregate = covariance[block, block] + torch.diag(rho.exp().mean(0))
            factor = torch.linalg.cholesky(aggregate)
            self._whiten.append(torch.linalg.inv(factor).T)  # u @ whiten has covariance 1
            self._mean_logvar.append(rho.mean(0))
        self._blocks, self._covariance = blocks, covariance
        self._precision_gain: dict[tuple[int, int], Tensor] = {}

    def single(self, c: int, epsilon: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """(χ, h, q) `[3, S]` for draws epsilon, logvar of their inputs, and whitened u, all `[S, d]`."""
        chi = 0.5 * (epsilon.double().square() - 1).sum(1)
        log_width = 0.5 * (logvar.double() - self._mean_logvar[c]).sum(1)
        return torch.stack([chi, log_width, _marginal(z)])

    def pair(self, a: int, b: int, z_a: Tensor, z_b: Tensor) -> Tensor:
        """(g, q_a, q_b) `[3, S]` for whitened draws `[S, d]` of channels a and b that are independent given x."""
        z = torch.cat([z_a, z_b], 1)
        gain = -0.5 * ((z @ self._gain(a, b)) * z).sum(1)
        return torch.stack([gain, _marginal(z_a), _marginal(z_b)])

    def whiten(self, c: int, u: Tensor) -> Tensor:
        """u of channel c in coordinates where its aggregate has covariance 1; `[S, d]` float64."""
        return u.double() @ self._whiten[c]

    def _gain(self, a: int, b: int) -> Tensor:
        """J⁻¹ − 1 `[d_a + d_b, d_a + d_b]`."""
        if (a, b) not in self._precision_gain:
            shared = self._whiten[a].T @ self._covariance[self._blocks[a], self._blocks[b]] @ self._whiten[b]
            one_a, one_b = (torch.eye(n, dtype=shared.dtype, device=shared.device) for n in shared.shape)
            joint = torch.cat([torch.cat([one_a, shared], 1), torch.cat([shared.T, one_b], 1)])
            self._precision_gain[a, b] = torch.linalg.inv(joint) - torch.eye(len(joint)).to(joint)
        return self._precision_gain[a, b]


def _marginal(z: Tensor) -> Tensor:
    return 0.5 * (z.square() - 1).sum(1)


def _covariance_of_means(channels: Sequence[Channel]) -> Tensor:
    """Covariance over x of all the channels' μ side by side, `[Σd, Σd]` float64."""
    width = sum(c.dims for c in channels)
    total = torch.zeros(width, width, dtype=torch.float64, device=channels[0].mu.device)
    for start in range(0, channels[0].components, ROWS_AT_ONCE):
        rows = torch.cat([c.mu[start : start + ROWS_AT_ONCE] for c in channels], 1).double()
        total += rows.T @ rows
    return total / channels[0].components
