"""What `experiments.branches` found: two laws side by side, as a table and as a figure."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

EXPONENTS = ("alpha", "beta")


def compare(arms: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]) -> dict[str, Any]:
    """Both arms side by side. arms: name -> (rows of runs, law as in law.json)."""
    found: dict[str, Any] = {"arms": {}, "within": {}, "runs": []}
    for arm, (rows, law) in arms.items():
        cost = {name: sum(r[name] for r in rows) for name in ("flops", "flops_spent", "wall_s")}
        found["arms"][arm] = {**cost, "n_runs": law["n_runs"], "params": law["params"], "warnings": law["warnings"]}
    branches, cosine = (found["arms"][arm]["params"] for arm in ("branches", "cosine"))
    for name in EXPONENTS:
        a, b = branches[name], cosine[name]
        found["within"][name] = {
            "branches in cosine": b["lo"] <= a["value"] <= b["hi"],
            "cosine in branches": a["lo"] <= b["value"] <= a["hi"],
        }
    found["flops_ratio"] = found["arms"]["branches"]["flops_spent"] / found["arms"]["cosine"]["flops_spent"]
    for a, b in zip(*(rows for rows, _ in arms.values()), strict=True):
        found["runs"].append({"size": a["size"], "tokens": a["tokens"], "branches": a["loss"], "cosine": b["loss"]})
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """The comparison on the terminal."""
    laws = Table("law of", "runs", *(f"{name}, 95 % interval" for name in EXPONENTS), "E", "FLOPs spent", box=None)
    for arm, x in found["arms"].items():
        spans = (f"{p['value']:.3f} ({p['lo']:.3f} to {p['hi']:.3f})" for p in (x["params"][n] for n in EXPONENTS))
        laws.add_row(arm, str(x["n_runs"]), *spans, f"{x['params']['E']['value']:.3f}", f"{x['flops_spent']:.3g}")
    console.print(laws, highlight=False)
    for name, checks in found["within"].items():
        said = " and ".join(f"{'inside' if yes else 'OUTSIDE'} ({what})" for what, yes in checks.items())
        console.print(f"{name}: each in the other's interval? {said}", highlight=False, soft_wrap=True)
    seconds = " and ".join(f"{x['wall_s']:.0f} s ({arm})" for arm, x in found["arms"].items())
    console.print(
        f"The branches took {found['flops_ratio']:.3f} of the FLOPs of the independent runs; training took {seconds}, "
        "added up over the workers.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    ratio = np.array([r["branches"] / r["cosine"] for r in found["runs"]])
    console.print(
        f"A branch ends with {ratio.mean():.4f} of the loss of its cosine run on average ({ratio.min():.4f} to "
        f"{ratio.max():.4f}).",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for arm, x in found["arms"].items():
        for line in x["warnings"]:
            console.print(f"warning, {arm}: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def draw(arms: dict[str, tuple[list[dict[str, Any]], Any]], found: dict[str, Any], count: str, path: Path) -> None:
    """Loss against tokens with both laws, and the exponents with their intervals. arms: name -> (rows, fit)."""
    import matplotlib
    from matplotlib.figure import Figure

    from deeplearn.sweep import style

    with matplotlib.rc_context(style.RC):
        figure = Figure((style.WIDTH, 3.8))
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
        looks = {"branches": ("o", "-"), "cosine": ("s", "--")}
        for (arm, (rows, fit)), (marker, line) in zip(arms.items(), looks.values(), strict=True):
            for n, colour in style.colours(r[count] for r in rows).items():
                tokens, loss = np.array([(r["tokens"], r["loss"]) for r in rows if r[count] == n]).T
                filled = colour if arm == "branches" else "none"
                left.plot(tokens, loss, marker, color=colour, markerfacecolor=filled, markersize=5)
                along = np.geomspace(tokens.min() / 1.05, tokens.max() * 1.05, 50)
                left.plot(along, fit.curve(np.full_like(along, n), along), line, color=colour, linewidth=1.0)
            left.plot([], [], f"{marker}{line}", color="#555555", label=f"{arm}: runs and law")
        every = [r["tokens"] for r in found["runs"]]
        style.log_axis(left.xaxis, min(every) / 1.15, max(every) * 1.15)
        left.set(xlabel="D, training tokens", ylabel=f"Final held-out loss ({arms['branches'][1].unit})")
        style.legend(left, "upper right")
        style.key(left, style.colours(r[count] for r in arms["branches"][0]), count)
        left.get_legend().set_in_layout(False)  # it may reach over the other panel, whose title is left out for that
        left.set_title(" ", fontsize=13)  # room for it
        for i, (arm, (marker, _)) in enumerate(looks.items()):
            for j, name in enumerate(EXPONENTS):
                p = found["arms"][arm]["params"][name]
                ends = [[p["value"] - p["lo"]], [p["hi"] - p["value"]]]
                filled = style.INTERVAL if arm == "branches" else "none"
                right.errorbar(
                    [j + 0.2 * (i - 0.5)], [p["value"]], ends, fmt=marker, color=style.INTERVAL, capsize=3,
                    markerfacecolor=filled, label=arm if j == 0 else None,
                )  # fmt: skip
        right.set_xticks(range(len(EXPONENTS)), EXPONENTS)
        right.set_xlim(-0.5, len(EXPONENTS) - 0.5)
        right.set(xlabel="Exponents, 95 % intervals", ylim=(0, 1.3 * right.get_ylim()[1]))
        right.legend(loc="upper right")
        agree = all(yes for checks in found["within"].values() for yes in checks.values())
        said = "each exponent within the other's interval" if agree else "NOT each exponent within the other's interval"
        style.title(figure, f"A law of branches for {found['flops_ratio']:.0%} of the FLOPs: {said}")
        figure.savefig(path)
