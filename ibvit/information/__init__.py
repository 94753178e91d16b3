"""Information that heads carry and share: I(X;U) and NMI of channels of a million Gaussians.

A channel is p(u|x) = N(μ(x), diag σ²(x)), ρ = ln σ², for M equally likely inputs x. In nats (paper, Eq. 4 to 6)::

    I(X;U)   = E_x E_{u|x} log p(u|x) / p(u),     p(u) = (1/M) Σ_i p(u|x_i)
    I(U;V)   = I(X;U) + I(X;V) − I(X;U,V)         = E log p(u,v) / (p(u) p(v))
    NMI(U,V) = I(U;V) / √(I(U;U′) I(V;V′)),       U′, V′ second, independent draws for the same x

**Dropped dimensions: certified.** The dimensions are independent given x, so for any split into kept A and dropped::

    I(X;U_A) ≤ I(X;U) ≤ I(X;U_A) + Σ_{j∉A} ½ (log s_j² − mean ρ_j),   s_j² = var μ_j + mean σ_j²

(KL to the best Gaussian, never above the KL to the prior.) Dimensions that together stay below `idle_nats` are left
out, their sum is `bias_bound`. That can only lower I(U;V) and I(U;U′), by at most the sums of these bounds; the NMI's
`bias_bound` is the widest ratio they allow.

**Quadrature: error below 1e-6 nats, estimated.** With one active dimension per head (or two in one), the density on a
grid is a matrix product of one-dimensional Gaussians, and the trapezoid rule converges geometrically: `quadrature`.

**Sampling: standard errors, estimated.** With r = log p(u|x) at the draw's own x, and ℓ(i) = log p(u|x_i) − r::

    log p(u|x)/p(u)          = log M − log Σ_i e^ℓ(i)
    log p(u,v)/(p(u) p(v))   = log M + log Σ_i e^(ℓ_u(i) + ℓ_v(i)) − log Σ_i e^ℓ_u(i) − log Σ_i e^ℓ_v(i)

The sums are at least 1, so they need no running maximum; e^(ℓ_u + ℓ_v) is the product of exponentials that the single
sums need anyway, so a joint costs one multiply-add, U and U′ never double the dimensions, and all pairs of a matrix
share one pass. E e^ℓ(i) ≤ 1 over draws (it is ∫ p_i), so by Markov's inequality a float32 sum exceeds 2⁵⁰ with a
probability below M 2⁻⁵⁰, 1e-9: such samples are done again with a running maximum. Float32 is used in the direct form
Σ_j ((u_j − μ_ij) / σ_ij)², whose rounding does not grow with μ/σ as that of the expanded square does; above a few
hundred terms additions are float64.

- `mc`: Eq. 4 to the letter. x and u are drawn independently; error bars are those of independent samples.
- `stratified` (the `auto` default): x runs through the inputs sorted by their KL to the aggregate, one from each of n
  equal strata. All terms of an NMI come from the same draws, two of u for each x, so the conditional log-densities
  cancel. The same terms with the aggregate replaced by the Gaussian of equal mean and covariance are quadratic in u and
  have known means: regression on them (`controls`) removes what is Gaussian about a channel.
- Means further than `channel.MAX_RATIO` σ from their average are refused: float32 would not tell them apart. What
  rounding does within this limit is in no bound: 3e-5 nats in a test at the limit, in proportion below it.
- Errors: the jackknife over 128 independent batches (32 in a pilot), regression and ratio included (`statistics`).

Where little is shared and much is sampled away, I(U;U′) may come out at or below zero: that NMI is not a number. At
information near log M the estimate is carried by rare draws, and its error is as uncertain as they are rare.

*Resources.* The channels' active dimensions in float32, and a backend's layout of them: as much again on a CPU; on a
GPU 20 bytes per dimension for each of four pairs, 160 while a pair is laid out. A call takes `backends.WORKSPACE_BYTES`
beside its results, on a GPU `GPU_WORKSPACE_BYTES`; draws and controls a few times `sampling.BLOCK_BYTES`; the finest
quadrature 1 GiB. Under torch.distributed every rank takes a share of the batches, and all get the same answer to
rounding.

*Sources.* Murphy 2026 (arXiv 2602.04784), Eq. 4 to 6; Murphy et al. 2025 (NMI of soft clusterings); Kolchinsky and
Tracey 2017 (entropy of mixtures by pairwise distances); Owen 2013, "Monte Carlo theory, methods and examples", ch. 8
(stratification, control variates); Trefethen and Weideman 2014 (trapezoid rule); Quenouille 1956, Tukey 1958
(jackknife).

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> mu = rng.normal(size=(1000, 4)) * [2, 1, 0, 0]  # two active dimensions of four
    >>> mutual_information(mu, np.zeros_like(mu)).method
    'quadrature'
"""

from ibvit.information.api import mutual_information, nmi, nmi_matrix
from ibvit.information.channel import load_channel
from ibvit.information.estimate import Estimate, EstimateMatrix
from ibvit.information.estimation import Options

__all__ = ["Estimate", "EstimateMatrix", "Options", "load_channel", "mutual_information", "nmi", "nmi_matrix"]
