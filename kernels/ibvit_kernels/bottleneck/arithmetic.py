"""Device functions that the bottleneck's forward and backward kernels share: GELU, Philox normals, the latent order.

Only adds, multiplies, ``exp2``, ``log`` and ``sqrt``: no library call with a slow path, so nothing spills, and Triton's
interpreter runs the same arithmetic as the GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def normal_tail(x: tl.tensor) -> tl.tensor:
    """Φ(−|x|) = exp2(P(|x|)): P is fitted to log2 Φ, minimax in the error of GELU, 9e-8·max(1, |x|).

    P's leading coefficient is negative, so the tail goes to zero, not to infinity, for any x.
    """
    t = tl.abs(x)
    p = -1.9918629732273985e-06 * t + 2.927153582277242e-05
    p = p * t - 0.00013808587391395122
    p = p * t - 0.0002534424711484462
    p = p * t + 0.007216397672891617
    p = p * t - 0.05260305479168892
    p = p * t - 0.45917221903800964
    p = p * t - 1.1511096954345703
    p = p * t - 0.9999998807907104
    return tl.exp2(p)


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """x Φ(x), the erf form."""
    return tl.maximum(x, 0.0) - tl.abs(x) * normal_tail(x)


@triton.jit
def gelu_and_slope(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """GELU and its derivative Φ(x) + x φ(x)."""
    tail = normal_tail(x)
    density = INV_SQRT_2PI * tl.exp2(x * x * (-0.5 * LOG2E))
    slope = tl.where(x < 0, tail, 1.0 - tail) + x * density
    return tl.maximum(x, 0.0) - tl.abs(x) * tail, slope


@triton.jit
def _normal_pair(radius_word: tl.tensor, angle_word: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Box–Muller: R cos θ, R sin θ. θ = 2π·angle_word·2⁻³² is reduced to [-π/4, π/4] exactly, in integers."""
    u = radius_word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt(-2.0 * tl.log(u))
    shifted = angle_word + 0x20000000
    quadrant = shifted >> 30
    t = ((shifted & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) * (9.313225746154785e-10 * HALF_PI)
    s = t * t
    sine = t + t * s * ((-1.9515295891e-4 * s + 8.3321608736e-3) * s - 1.6666654611e-1)
    cosine = 1.0 - 0.5 * s + s * s * ((2.443315711809948e-5 * s - 1.388731625493765e-3) * s + 4.166664568298827e-2)
    swap = (quadrant & 1) != 0
    x = tl.where(swap, sine, cosine)
    y = tl.where(swap, cosine, sine)
    x = tl.where((quadrant == 1) | (quadrant == 2), -x, x)
    y = tl.where(quadrant >= 2, -y, y)
    return radius * x, radius * y


@triton.jit
def standard_normal(
    seed: tl.tensor,
    step: tl.tensor,
    sample: tl.tensor,  # [ROWS], global sample index
    token: tl.tensor,  # [ROWS]
    block: tl.tensor,
    head: tl.tensor,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
) -> tl.tensor:
    """ε [ROWS, LATENTS] of one head, float32, in the column order of `latent_of_column`.

    One Philox call gives four normals. In the accumulator of a tensor core one thread holds columns 2t, 2t + 1, 2t + 8,
    2t + 9 of a row. The thread computes the four normals of these columns, so that ε and μ lie in the same registers.
    """
    offs_quad = tl.arange(0, LATENTS // 4)
    c0 = ((block << 20) + (head << 8) + offs_quad).to(tl.uint32)[None, :]
    zeros = tl.zeros([ROWS, LATENTS // 4], tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed, c0 + zeros, token.to(tl.uint32)[:, None] + zeros, sample.to(tl.uint32)[:, None] + zeros,
        step.to(tl.uint32) + zeros,
    )  # fmt: skip
    n0, n1 = _normal_pair(w0, w1)
    n2, n3 = _normal_pair(w2, w3)
    eps = tl.join(tl.join(n0, n2), tl.join(n1, n3))  # [ROWS, quads, a, b] holds normal 2a + b of a quad
    eps = tl.reshape(eps, [ROWS, LATENTS // 16, 4, 2, 2])
    return tl.reshape(tl.permute(eps, [0, 1, 3, 2, 4]), [ROWS, LATENTS])


@triton.jit
def latent_of_column(LATENTS: tl.constexpr) -> tl.tensor:
    """The latent in each column of the kernels' [·, LATENTS] tiles: 16k + 4t + 2a + b in column 16k + 8a + 2t + b."""
    offs_c = tl.arange(0, LATENTS)
    return (offs_c & ~15) + ((offs_c >> 1) & 3) * 4 + ((offs_c >> 3) & 1) * 2 + (offs_c & 1)
