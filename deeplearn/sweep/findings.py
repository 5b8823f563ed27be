"""What a sweep found, in numbers and sentences that the figures, the report and the terminal share."""

from typing import Any

import numpy as np

from deeplearn import laws
from deeplearn.sweep.progress import short
from deeplearn.sweep.table import Row

Law = dict[str, Any]  # what law.json holds
MINUS = "\N{MINUS SIGN}"


def done(rows: list[Row], split: str | None = None) -> list[Row]:
    """The rows of runs that ended with a loss."""
    return [r for r in rows if r["status"] == "done" and split in (None, r["split"])]


def numbers(rows: list[Row], law: Law) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N as the law counts it, D and C = 6 N D of each row, all [n]."""
    n, d = (np.array([r[name] for r in rows], np.float64) for name in (law["count"], "tokens"))
    return n, d, 6 * n * d


def optimal(fit: laws.Fit, lo: float, hi: float, count: int = 50) -> laws.Allocation:
    """The optimum for `count` budgets C = 6 N D from lo to hi; those without a finite one are left out."""
    found = fit.optimal(np.geomspace(lo, hi, count))
    has = np.isfinite(found.loss.value)
    parts = (laws.Interval(*(x[has] for x in (i.value, i.lo, i.hi))) for i in (found.params, found.tokens, found.loss))
    return laws.Allocation(found.flops[has], *parts)


def counted(rows: list[Row], law: Law, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """FLOPs that runs of these params and tokens would be counted, from how the counts of rows exceed N D."""
    n, d, _ = numbers(rows, law)
    factor = dict(zip(n, np.array([r["flops"] for r in rows]) / (n * d), strict=True))
    sizes = np.array(sorted(factor))
    return np.interp(np.log(params), np.log(sizes), [factor[n] for n in sizes]) * params * tokens


def envelope(rows: list[Row]) -> list[tuple[float, float]]:
    """(flops, loss) of the runs that no cheaper run beats."""
    best: list[tuple[float, float]] = []
    for flops, loss in sorted((r["flops"], r["loss"]) for r in rows):
        if not best or loss < best[-1][1]:
            best.append((flops, loss))
    return best


def smooth(tokens: np.ndarray, loss: np.ndarray, points: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """A training loss [n] averaged over pieces of equal length in log tokens, of which at most `points` are left."""
    edges = np.geomspace(tokens[0], tokens[-1], points)
    piece = np.searchsorted(edges, tokens)
    count = np.bincount(piece)
    has = count > 0
    return tuple(np.bincount(piece, x)[has] / count[has] for x in (tokens, loss))


def percent(value: float | None, of: float) -> float | None:
    """How far value lies above `of`, in per cent."""
    return None if value is None else 100 * (value / of - 1)


def spending(rows: list[Row]) -> str:
    """What the training of these runs took, counted, against each run on its own. The sentence ends without a stop."""
    whole, spent = (sum(r[name] for r in done(rows)) for name in ("flops", "flops_spent"))
    text = f"The training of {len(done(rows))} runs took {spent:.3g} FLOPs"
    branches = sum(r["flops_spent"] < r["flops"] for r in done(rows))
    if not branches:
        return text
    start = f"{branches} of them went on from a longer one" if branches > 1 else "one of them went on from a longer one"
    return f"{text}: {start}, which saved {1 - spent / whole:.0%} of the {whole:.3g} of each on its own"


def signed(per_cent: float) -> str:
    """`0.5` -> "+0.50 %", in one piece and with a true minus sign."""
    return f"{per_cent:+.2f}\N{NO-BREAK SPACE}%".replace("-", MINUS)


def verdict(p: dict[str, Any]) -> str:
    """Where the measured loss of a held-out entry of the law lies."""
    if p["measured"] is None:
        return "not measured"
    told = "inside the band" if p["lo"] <= p["measured"] <= p["hi"] else "outside the band"
    late = p["started_at"] is not None and p["started_at"] < p["predicted_at"]
    return f"{told}, told afterwards" if late else told


def not_fitted(rows: list[Row], law: Law) -> list[str]:
    """Every run that has no loss to offer, by name and with the reason; one sentence each."""
    by_id = {row["id"]: row for row in rows}
    sentences = []
    for told in law.get("not_fitted", []):
        row = by_id[told["id"]]
        name = f"{told['id']} (size {row['size']}, {short(row['tokens'])} tokens)"
        sentences.append(f"{told['status'].replace('_', ' ')}: {name}: {told['why']}")
    return sentences


def noise(law: Law) -> list[str]:
    """What repeated seeds say of the noise of one run; nothing where no run was repeated."""
    floor = law.get("noise_floor")
    if not floor:
        return []
    sets, dof = (f"{n} {word}{'s' * (n > 1)}" for n, word in ((floor["groups"], "set"), (floor["dof"], "degree")))
    many = f"{sets} of runs that differ in their seed alone, {dof} of freedom"
    said = f"Noise floor: {_scatter(floor)} of the loss, from {many}."
    if len(floor["sizes"]) < 2:
        return [said]
    sizes = ", ".join(f"{_scatter(level)} at N = {short(level['params'])}" for level in floor["sizes"])
    power = f"it goes as N^{floor['power']:.2f}, by which the runs are weighted".replace("-", MINUS)
    equal = "the runs do not show that it differs, and weigh the same"
    return [said, f"Noise by size: {sizes}; {power if floor['power'] else equal}."]


def _scatter(told: dict[str, Any]) -> str:
    value, lo, hi = (f"{100 * told[name]:.2g}" for name in ("value", "lo", "hi"))
    return f"{value} % (95 % interval {lo} to {hi} %)"


def ratio(rows: list[Row], p: dict[str, Any]) -> float:
    """FLOPs of a held-out entry over those of the largest fitted run."""
    return p["flops"] / max(r["flops"] for r in done(rows, "fit"))


def headline(rows: list[Row], law: Law) -> str:
    """What became of the largest held-out run, in one sentence."""
    if not law["held_out"]:
        return "No run was held out, so the law has not been put to the test"
    top = max(law["held_out"], key=lambda p: p["flops"])
    start = f"A run of {ratio(rows, top):.3g} times the largest fitted run's FLOPs: predicted {top['predicted']:.4f}"
    if top["measured"] is None:
        return f"{start}, not measured"
    return f"{start}, measured {top['measured']:.4f} ({verdict(top).replace('the', 'the 95 %')})"


def equation(fit: laws.Fit, raised: str = "{}^{}") -> str:
    """The law with its numbers. raised: how to write a base and an exponent."""
    p = {name: interval.value for name, interval in fit.params.items()}
    if fit.form != "chinchilla":
        return ", ".join([fit.form, *(f"{name} = {value:.3g}" for name, value in p.items())])
    n, d = (raised.format(base, f"{MINUS}{p[exponent]:.3f}") for base, exponent in (("N", "alpha"), ("D", "beta")))
    return f"L = {p['E']:.4g} + {p['A']:.4g} {n} + {p['B']:.4g} {d}"
