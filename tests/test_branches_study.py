"""The comparison of a law of branches with one of independent runs, on runs that follow a known law."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplearn import laws
from experiments import branches_report as branches


def arm(spent, noise, shift=0.0, alpha=0.35):
    rows, rng = [], np.random.default_rng(noise)
    for n in (10_000, 20_000, 40_000, 80_000):
        for tokens in (500_000, 1_000_000, 2_000_000):
            loss = (1.1 + 35 * n**-alpha + 300 * tokens**-0.42) * np.exp(0.002 * rng.normal()) + shift
            flops = 7.5 * n * tokens
            rows.append(
                {"size": n // 1000, "params_no_embed": n, "tokens": tokens, "loss": float(loss), "unit": "nats/token",
                 "status": "done", "split": "fit", "flops": flops, "flops_spent": spent * flops, "wall_s": 2.0}
            )  # fmt: skip
    columns = ([r[name] for r in rows] for name in ("params_no_embed", "tokens", "loss"))
    return rows, laws.fit(laws.runs(*columns, unit="nats/token"), starts=8, replicates=40)


def test_both_laws_side_by_side_and_as_a_figure(tmp_path):
    arms = {"branches": arm(0.5, 1, shift=0.01), "cosine": arm(1.0, 2)}
    found = branches.compare({name: (rows, fit.to_json()) for name, (rows, fit) in arms.items()})
    assert found["flops_ratio"] == pytest.approx(0.5)
    assert found["arms"]["branches"]["flops"] == found["arms"]["cosine"]["flops_spent"]
    assert [(r["size"], r["tokens"]) for r in found["runs"][:2]] == [(10, 500_000), (10, 1_000_000)]
    for name, (_, fit) in arms.items():
        p, other = (
            found["arms"][name]["params"],
            found["arms"]["cosine" if name == "branches" else "branches"]["params"],
        )
        assert p["alpha"]["value"] == fit.params["alpha"].value
        for exponent in branches.EXPONENTS:
            inside = other[exponent]["lo"] <= p[exponent]["value"] <= other[exponent]["hi"]
            where = "branches in cosine" if name == "branches" else "cosine in branches"
            assert found["within"][exponent][where] == inside
    out = io.StringIO()
    branches.show(found, Console(file=out, width=160))
    assert (
        "The branches took 0.500 of the FLOPs of the independent runs; training took 24 s (branches)" in out.getvalue()
    )
    branches.draw(arms, found, "params_no_embed", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert min(image.size) > 400


def test_an_exponent_outside_is_said():
    arms = {"branches": arm(0.5, 1, alpha=0.6), "cosine": arm(1.0, 2)}
    found = branches.compare({name: (rows, fit.to_json()) for name, (rows, fit) in arms.items()})
    assert found["within"]["alpha"] == {"branches in cosine": False, "cosine in branches": False}
    out = io.StringIO()
    branches.show(found, Console(file=out, width=160))
    assert "alpha: each in the other's interval? OUTSIDE (branches in cosine)" in out.getvalue()
