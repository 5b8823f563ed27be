"""The laws that can be fitted by name, each with its paper."""

from __future__ import annotations

from deeplearn.laws.forms import Form

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

FORMS = {form.name: form for form in (CHINCHILLA, KAPLAN)}
