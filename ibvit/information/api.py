"""The public functions: mutual information of a channel, normalised mutual information of two and of many."""

from __future__ import annotations

from collections.abc import Sequence

from ibvit import arguments
from ibvit.information import estimation
from ibvit.information.backends import Impl
from ibvit.information.channel import Array, Channel, make_channel
from ibvit.information.estimate import Estimate, EstimateMatrix
from ibvit.information.estimation import Method, Options

Parameters = tuple[Array, Array]  # mu and logvar, each [M, d]


def mutual_information(
    mu: Array,
    logvar: Array,
    *,
    samples: int | None = None,
    seed: int = 0,
    method: Method = "auto",
    tolerance: float = 1e-3,
    idle_nats: float = 1e-4,
    impl: Impl = "auto",
    threads: int | None = None,
) -> Estimate:
    """I(X;U) in nats between a uniform input x and u ~ N(mu[x], exp(logvar[x])) (paper, Eq. 4).

    Args:
        mu, logvar: `[M, d]`, float32 or float64, torch (CPU or CUDA) or numpy (memory-mapped too); logvar is ln σ².
        samples, seed, method, tolerance, idle_nats, impl, threads: see `Options`.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
        UnavailableError: an explicit `impl` is not available here; the message says why.

    Example:
        >>> import numpy as np
        >>> mu = np.array([[-9.0], [9.0]])  # two inputs that never look alike: one bit
        >>> estimate = mutual_information(mu, np.zeros((2, 1)))
        >>> round(estimate.bits, 6), estimate.method
        (1.0, 'quadrature')
    """
    options = Options(samples, seed, method, tolerance, idle_nats, impl, threads)
    return estimation.information(make_channel(mu, logvar, options.idle_budget), options)


def nmi(
    first: Parameters,
    second: Parameters,
    *,
    samples: int | None = None,
    seed: int = 0,
    method: Method = "auto",
    tolerance: float = 1e-3,
    idle_nats: float = 1e-4,
    impl: Impl = "auto",
    threads: int | None = None,
) -> Estimate:
    """NMI(U,V) = I(U;V) / √(I(U;U′) I(V;V′)) of two channels over the same inputs (paper, Eq. 5 and 6).

    U′ and V′ are second, independent draws from the same channels, so I(U;U′) = 2 I(X;U) − I(X;U,U′). NMI is 1 for a
    channel with itself, 0 for channels that share nothing, and not a number where a channel carries nothing at all.

    Args:
        first, second: (mu, logvar), each `[M, d]` as in `mutual_information`; M is common, d need not be.
        samples, …, threads: see `Options`.

    Raises:
        TypeError, ValueError, UnavailableError: as in `mutual_information`.

    Example:
        >>> import numpy as np
        >>> mu = np.random.default_rng(0).normal(size=(500, 1))
        >>> round(nmi((mu, np.full((500, 1), -2.0)), (-mu, np.full((500, 1), -2.0))).value, 6)
        1.0
    """
    options = Options(samples, seed, method, tolerance, idle_nats, impl, threads)
    channels = _make_channels({"first": first, "second": second}, options)
    matrix = estimation.nmi_matrix(channels[:1], channels[1:], options)
    value, stderr, bound = (float(array[0, 0]) for array in matrix[:3])
    return Estimate(value, stderr, bound, matrix.samples, matrix.method, matrix.seconds)


def nmi_matrix(
    channels: Sequence[Parameters],
    others: Sequence[Parameters] | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    method: Method = "auto",
    tolerance: float = 1e-3,
    idle_nats: float = 1e-4,
    impl: Impl = "auto",
    threads: int | None = None,
) -> EstimateMatrix:
    """NMI of every channel with every other, in shared passes over the components.

    One draw of x serves all pairs, and the joint density of two channels is the product of exponentials that their own
    sums need anyway: a matrix costs little more than its channels one by one.

    Args:
        channels: (mu, logvar) of each, over the same M inputs.
        others: columns of the matrix; None: `channels` again, and the diagonal is exactly 1.
        samples, …, threads: see `Options`; with `method="auto"`, the pairs that quadrature can do are integrated and
            the rest are sampled together.

    Raises:
        TypeError, ValueError, UnavailableError: as in `mutual_information`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> heads = [(rng.normal(size=(300, 1)), np.full((300, 1), -1.0)) for _ in range(3)]
        >>> matrix = nmi_matrix(heads)
        >>> matrix.value.shape, bool((matrix.value.diagonal() == 1).all())
        ((3, 3), True)
    """
    options = Options(samples, seed, method, tolerance, idle_nats, impl, threads)
    for name, value in (("channels", channels), ("others", others)):
        if not isinstance(value, list | tuple) and not (name == "others" and value is None):
            raise TypeError(f"{name}: expected a list of pairs (mu, logvar), got {arguments.shown(value)}")
    named = {f"channels[{i}]": parameters for i, parameters in enumerate(channels)}
    if not named or (others is not None and not len(others)):
        raise ValueError(f"{'others' if named else 'channels'}: expected at least one channel, got none")
    named |= {f"others[{i}]": parameters for i, parameters in enumerate(others or ())}
    both = _make_channels(named, options)
    rows, columns = both[: len(channels)], both[len(channels) :]
    return estimation.nmi_matrix(rows, columns if others is not None else None, options)


def _make_channels(named: dict[str, Parameters], options: Options) -> list[Channel]:
    """Check all channels, and that they go together."""
    channels: list[Channel] = []
    for name, parameters in named.items():
        if not (isinstance(parameters, tuple | list) and len(parameters) == 2):
            raise TypeError(f"{name}: expected a pair (mu, logvar), got {arguments.shown(parameters)}")
        channel = make_channel(*parameters, options.idle_budget, name)
        if channels and channel.components != channels[0].components:
            raise ValueError(
                f"{name}: expected {channels[0].components} inputs like the others, got {channel.components}"
            )
        if channels and channel.mu.device != channels[0].mu.device:
            raise ValueError(f"{name}: expected on {channels[0].mu.device} like the others, got {channel.mu.device}")
        channels.append(channel)
    return channels
