"""The laws that can be fitted by name, each with its paper; those in more than size and data are in `conditions`.

Laws of one column call it "tokens"; `read_csv(names={"tokens": ...})` reads any column of a file as that.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

from deeplearn.laws import conditions
from deeplearn.laws.forms import Array, Form, Log, namespace

LOG_6 = math.log(6.0)

CHINCHILLA = Form(  # approach 3 of Hoffmann et al. 2022, arXiv 2203.15556
    name="chinchilla",
    formula="L = E + A N^-alpha + B D^-beta",
    columns=("params", "tokens"),
    exponents={"alpha": (0.0, 2.5), "beta": (0.0, 2.5)},
    coefficients=("E", "A", "B"),
    terms=lambda p, x: (0.0 * x.params, -p.alpha * x.params, -p.beta * x.tokens),
    allocation=lambda p: (p.alpha, p.beta),
)

KAPLAN = Form(  # equation 1.5 of Kaplan et al. 2020, arXiv 2001.08361, with A = Nc^(alpha_N / alpha_D) and B = Dc
    name="kaplan",
    formula="L = (A N^-(alpha_N / alpha_D) + B / D)^alpha_D",
    columns=("params", "tokens"),
    exponents={"alpha_N": (0.0, 2.0), "alpha_D": (0.02, 2.0)},
    coefficients=("A", "B"),
    terms=lambda p, x: (-p.alpha_N / p.alpha_D * x.params, -x.tokens + 0.0 * p.alpha_D),
    power=lambda p: p.alpha_D,
    allocation=lambda p: (p.alpha_N / p.alpha_D, 1.0 + 0.0 * p.alpha_D),
)

JOINT = Form(  # equation 4 of Droppo and Elibol 2021, arXiv 2106.09488: Kaplan's law with a floor, E^gamma
    name="joint",
    formula="L = (E + A N^-a + B D^-b)^gamma",
    columns=("params", "tokens"),
    exponents={"a": (0.0, 2.5), "b": (0.0, 2.5), "gamma": (0.05, 2.0)},
    coefficients=("E", "A", "B"),
    terms=lambda p, x: (0.0 * x.params, -p.a * x.params, -p.b * x.tokens),
    power=lambda p: p.gamma,
    allocation=lambda p: (p.a, p.b),
)

GADRE = Form(  # Gadre et al. 2024, arXiv 2403.08540: E + (A M^eta + B M^-eta) C^-eta with M = D / N and C = 6 N D
    name="gadre",
    formula="L = E + A (6 N^2)^-eta + B (6 D^2)^-eta",
    columns=("params", "tokens"),
    exponents={"eta": (0.0, 1.25)},
    coefficients=("E", "A", "B"),
    terms=lambda p, x: (0.0 * x.params, -p.eta * (LOG_6 + 2 * x.params), -p.eta * (LOG_6 + 2 * x.tokens)),
    allocation=lambda p: (2 * p.eta, 2 * p.eta),
)

CONSTANT = Form(  # what any other law must beat
    name="constant",
    formula="L = E",
    columns=("tokens",),
    exponents={},
    coefficients=("E",),
    terms=lambda p, x: (0.0 * x.tokens,),
)

POWER = Form(  # equations 1.1 to 1.3 of Kaplan et al. 2020, arXiv 2001.08361, in params, tokens or compute alone
    name="power",
    formula="L = A x^-a",
    columns=("tokens",),
    exponents={"a": (0.0, 2.5)},
    coefficients=("A",),
    terms=lambda p, x: (-p.a * x.tokens,),
)

POWER_CONSTANT = Form(  # Hestness et al. 2017, arXiv 1712.00409, and Henighan et al. 2020, arXiv 2010.14701
    name="power_constant",
    formula="L = E + A x^-a",
    columns=("tokens",),
    exponents={"a": (0.0, 2.5)},
    coefficients=("E", "A"),
    terms=lambda p, x: (0.0 * x.tokens, -p.a * x.tokens),
)


def _broken(p: SimpleNamespace, x: SimpleNamespace) -> tuple[Array, Array]:
    xp = namespace(p.f)
    f = xp.exp(p.f)
    return 0.0 * x.tokens, -p.c0 * x.tokens - p.c1 * f * xp.logaddexp(0.0 * x.tokens, (x.tokens - p.d) / f)


BNSL = Form(  # equation 1 of Caballero et al. 2022, arXiv 2210.14891, with one break, at d; c1 is the change of slope
    name="bnsl",
    formula="L = E + A x^-c0 (1 + (x / d)^(1 / f))^(-c1 f)",
    columns=("tokens",),
    exponents={"c0": (0.0, 2.5), "c1": (-2.5, 2.5), "d": "tokens", "f": Log(0.05, 5.0)},
    coefficients=("E", "A"),
    terms=_broken,
)

FORMS = {
    form.name: form
    for form in (
        CHINCHILLA, KAPLAN, JOINT, GADRE, CONSTANT, POWER, POWER_CONSTANT, BNSL, *conditions.ALL,
    )
}  # fmt: skip
