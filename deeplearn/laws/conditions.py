"""Laws in more than size and data: repeated data, experts, precision, schedules, optimal settings, accuracy."""

from __future__ import annotations

from types import SimpleNamespace

from deeplearn.laws.forms import TINY, Array, Form, Log, namespace


def _repeated(p: SimpleNamespace, x: SimpleNamespace) -> tuple[Array, Array]:
    xp = namespace(p.alpha)

    def worth(log_unique, log_used, log_scale):  # log of U (1 + R* (1 - exp(-R / R*))) with R = used / unique - 1
        scale = xp.exp(log_scale)
        repeats = xp.expm1(log_used - log_unique)
        return log_unique + xp.log1p(-scale * xp.expm1(-repeats / scale))

    data = worth(xp.minimum(x.unique_tokens, x.tokens), x.tokens, p.R_D)
    size = worth(xp.minimum(x.params, x.unique_tokens - p.ratio), x.params, p.R_N)
    return 0.0 * x.params, xp.logaddexp(-p.alpha * size, -p.alpha * (data - p.ratio))


# Muennighoff et al. 2023, arXiv 2305.16264. Their B is A ratio^alpha: data and size have one exponent, and then the
# size that suits U unique tokens, beyond which parameters are in excess, is U / ratio.
DATA_CONSTRAINED = Form(
    name="data_constrained",
    formula="L = E + A (N'^-alpha + (D' / ratio)^-alpha), D' = U (1 + R_D (1 - exp((1 - D / U) / R_D))), N' likewise",
    columns=("params", "tokens", "unique_tokens"),
    exponents={"alpha": (0.0, 2.5), "ratio": Log(1e-2, 1e8), "R_D": Log(0.1, 1e6), "R_N": Log(0.1, 1e6)},
    coefficients=("E", "A"),
    terms=_repeated,
)


def _routed(p: SimpleNamespace, x: SimpleNamespace) -> tuple[Array]:
    xp = namespace(p.a)
    # log of their saturated expert count: E_start for 1 expert, E_max for infinitely many.
    rest = 1.0 / (xp.exp(-p.E_start) - xp.exp(-p.E_max))
    experts = -xp.log(1.0 / (xp.expm1(x.experts) + rest) + xp.exp(-p.E_max))
    return (-p.a * x.params - p.b * experts + p.c * experts * x.params,)


CLARK = Form(  # equations 1 and 2 of Clark et al. 2022, arXiv 2202.01169, in natural logarithms; N of the dense model
    name="clark",
    formula="log L = log A - a log N - b log Ê + c log N log Ê, 1/Ê = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max",
    columns=("params", "experts"),
    exponents={"a": (0.0, 1.0), "b": (0.0, 1.0), "c": (0.0, 0.1), "E_start": Log(1.0, 8.0), "E_max": Log(16.0, 1e5)},
    coefficients=("A",),
    terms=_routed,
)

# Ludziejewski et al. 2025, arXiv 2502.05172, of active parameters, with the number of experts as it is.
MOE = Form(
    name="moe",
    formula="L = E + A X^delta N^(gamma log X - alpha) + B X^-omega D^(zeta log X - beta), X experts",
    columns=("params", "tokens", "experts"),
    exponents={
        "alpha": (0.0, 2.5),
        "beta": (0.0, 2.5),
        "delta": (-1.0, 1.0),
        "gamma": (-0.1, 0.1),
        "omega": (-1.0, 1.0),
        "zeta": (-0.1, 0.1),
    },
    coefficients=("E", "A", "B"),
    terms=lambda p, x: (
        0.0 * x.params,
        p.delta * x.experts + (p.gamma * x.experts - p.alpha) * x.params,
        -p.omega * x.experts + (p.zeta * x.experts - p.beta) * x.tokens,
    ),
)


def _precise(p: SimpleNamespace, x: SimpleNamespace) -> tuple[Array, Array, Array]:
    xp = namespace(p.alpha)
    params = x.params + 3 * xp.log(-xp.expm1(-xp.exp(x.bits - p.gamma)))
    return 0.0 * x.params, -p.alpha * params, -p.beta * x.tokens


PRECISION = Form(  # Kumar et al. 2024, arXiv 2411.04330: weights, activations and KV cache trained in so many bits
    name="precision",
    formula="L = E + A (N (1 - exp(-bits / gamma))^3)^-alpha + B D^-beta",
    columns=("params", "tokens", "bits"),
    exponents={"alpha": (0.0, 2.5), "beta": (0.0, 2.5), "gamma": Log(0.2, 20.0)},
    coefficients=("E", "A", "B"),
    terms=_precise,
)

QUANTIZATION = Form(  # the same paper: what the loss gains when weights are rounded to so many bits after training
    name="quantization",
    formula="degradation = C D^gamma_D N^-gamma_N exp(-bits / gamma)",
    columns=("params", "tokens", "bits"),
    exponents={"gamma_D": (0.0, 2.5), "gamma_N": (0.0, 2.5), "gamma": Log(0.05, 20.0)},
    coefficients=("C",),
    terms=lambda p, x: (p.gamma_D * x.tokens - p.gamma_N * x.params - namespace(p.gamma).exp(x.bits - p.gamma),),
)

LEARNING_RATE = Form(  # Li et al. 2025 ("Step Law"), arXiv 2503.04715: a = -.713, b = .307
    name="learning_rate",
    formula="optimal learning rate = A N^a D^b",
    columns=("params", "tokens"),
    exponents={"a": (-2.0, 2.0), "b": (-2.0, 2.0)},
    coefficients=("A",),
    terms=lambda p, x: (p.a * x.params + p.b * x.tokens,),
)

BATCH_SIZE = Form(  # the same paper: b = .571, and no dependence on N; Zhang et al. 2024, arXiv 2410.21676, agree
    name="batch_size",
    formula="optimal batch size = A D^b",
    columns=("tokens",),
    exponents={"b": (-2.0, 2.0)},
    coefficients=("A",),
    terms=lambda p, x: (p.b * x.tokens,),
)


def _sigmoid(p: SimpleNamespace, x: SimpleNamespace) -> tuple[Array, Array]:
    xp = namespace(p.k)
    return 0.0 * x.loss, -xp.logaddexp(0.0 * x.loss, xp.exp(p.k) * (xp.exp(x.loss) - xp.exp(p.middle)))


ACCURACY = Form(  # the second step of Bhagia et al. 2024, arXiv 2412.04403; `floor` is what guessing gets
    name="accuracy",
    formula="accuracy = floor + gain / (1 + exp(k (loss - middle)))",
    columns=("loss",),
    exponents={"k": Log(0.1, 100.0), "middle": "loss"},
    coefficients=("floor", "gain"),
    terms=_sigmoid,
)


def _annealed(p: SimpleNamespace, x: SimpleNamespace) -> tuple[Array, Array, Array]:
    xp = namespace(p.alpha)
    # S2 is 0 until the rate first falls; its logarithm stays finite.
    log_share = xp.log(xp.maximum(xp.expm1(x.annealed_area - x.area), TINY))
    return 0.0 * x.area, -p.alpha * x.area, x.area + log_share


ANNEALING = Form(  # Tissue et al. 2024, arXiv 2408.11029; `schedule.areas` makes the columns, S1 and S1 + S2
    name="annealing",
    formula="L = E + A S1^-alpha - C S2",
    columns=("area", "annealed_area"),
    exponents={"alpha": (0.0, 2.5)},
    coefficients=("E", "A", "C"),
    terms=_annealed,
    signs=(1, 1, -1),
)

ALL = (
    DATA_CONSTRAINED, CLARK, MOE, PRECISION, QUANTIZATION, LEARNING_RATE, BATCH_SIZE, ACCURACY, ANNEALING,
)  # fmt: skip
