"""Figures and report of a sweep whose runs follow a known law, up to noise."""

import base64
import html.parser
import io
import json

import matplotlib
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplearn import laws
from deeplearn.sweep import figures, findings, report

COMMAND = "python -m experiments.sweep --config=<quick & dirty>"
NAMES = {
    "learning_curves", "loss_against_compute", "fitted_surface", "predicted_against_measured", "optimal_allocation"
}  # fmt: skip


def row(i, size, tokens, split):
    n = 12 * size**2 * round(size**0.5 / 2)
    noise = np.exp(0.004 * np.random.default_rng(i).normal())
    return {
        "id": f"{i:012x}", "family": "transformer", "size": size, "params": n + 512 * size, "params_no_embed": n,
        "params_active": n + 512 * size, "tokens": tokens, "flops": 7.5 * n * tokens, "flops_6nd": 6.0 * n * tokens,
        "flops_spent": 7.5 * n * tokens,
        "loss": float((1.1 + 35 * n**-0.35 + 300 * tokens**-0.42) * noise), "unit": "nats/token", "seed": 0,
        "wall_s": 75.0, "tokens_per_s": 4e4, "status": "done", "split": split,
    }  # fmt: skip


def make_rows():
    runs = [(size, tokens, "fit") for size in (16, 24, 32, 48, 64) for tokens in (200_000, 400_000, 800_000, 1_600_000)]
    runs += [(80, 5_000_000, "held_out"), (96, 6_000_000, "held_out")]
    return [row(i, *run) for i, run in enumerate(runs)]


def make_law(rows, fit):
    held_out = [r for r in rows if r["split"] == "held_out"]
    band = fit.predict(*(np.array([r[name] for r in held_out], np.float64) for name in ("params_no_embed", "tokens")))
    entries = [
        {
            "id": r["id"], "flops": r["flops"], "predicted": float(v), "lo": float(lo), "hi": float(hi),
            "measured": r["loss"] if r["status"] == "done" else None,
            "predicted_at": "2025-01-31T10:20:30.456+00:00", "started_at": "2025-01-31T10:20:31.789+00:00",
        }
        for r, v, lo, hi in zip(held_out, band.value, band.lo, band.hi, strict=True)
    ]  # fmt: skip
    return {**fit.to_json(), "count": "params_no_embed", "held_out": entries}


def make_fit(rows):
    used = [r for r in rows if r["split"] == "fit" and r["status"] == "done"]
    columns = (np.array([r[name] for r in used], np.float64) for name in ("params_no_embed", "tokens", "loss"))
    return laws.fit(laws.runs(*columns), starts=16, replicates=60)


@pytest.fixture(scope="module")
def study():
    rows = make_rows()
    fit = make_fit(rows)
    return rows, fit, make_law(rows, fit)


@pytest.fixture(scope="module")
def published(study, tmp_path_factory):
    rows, fit, law = study
    root = tmp_path_factory.mktemp("sweep")
    for r in rows:
        tokens = np.linspace(0, r["tokens"], 60)[1:]
        losses = r["loss"] * (1 + 5e3 / tokens)
        lines = [
            {"step": i, "tokens": t, "learning_rate": 1.0, "next_token": loss, "next_token/gradient_norm": 1.0}
            for i, (t, loss) in enumerate(zip(tokens, losses, strict=True), 1)
        ]
        folder = root / "units" / r["id"]
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    versions = {"git": "1a2b3c", "jax": "0.10.2"}
    return root, report.publish(root, rows, report.curves(root, rows), fit, law, versions, COMMAND)


class Page(html.parser.HTMLParser):
    """Text, addresses and images of a page; refuses tags that are not closed in order."""

    EMPTY = ("meta", "img", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.words, self.addresses, self.images, self.open = [], [], {}, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "srcset") if name in attrs]
        if tag == "img":
            self.images[attrs["alt"].replace(" ", "_")] = attrs["src"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64)


def test_every_figure_is_a_small_picture_and_lies_in_the_page(published):
    root, path = published
    page = Page(path.read_text())
    assert set(page.images) == NAMES
    for name, source in page.images.items():
        data = (root / "figures" / f"{name}.png").read_bytes()
        assert source == "data:image/png;base64," + base64.b64encode(data).decode()
        assert len(data) < 300_000
        assert pixels(data).std() > 10
        assert pixels(data).shape[1] >= 700


def test_the_page_needs_no_network_and_no_script(published):
    text = published[1].read_text()
    page = Page(text)
    assert all(address.startswith("data:") for address in page.addresses)
    without_images = "".join(part.split('"', 1)[-1] for part in text.split("data:image/png;base64,"))
    for reference in ("http:", "https:", "url(", "@import", "<script", "//"):
        assert reference not in without_images


def test_the_page_says_what_was_predicted_and_measured(study, published):
    rows, fit, law = study
    words = " ".join(Page(published[1].read_text()).words)
    for p in law["held_out"]:
        assert findings.verdict(p) in words
        for key in ("predicted", "lo", "hi", "measured"):
            assert f"{p[key]:.4f}" in words
    for interval in fit.params.values():
        assert f"{interval.value:.4g}" in words and f"{interval.lo:.4g} to {interval.hi:.4g}" in words
    for r in rows:
        assert r["id"] in words and f"{r['loss']:.4f}" in words
    assert f"{law['held_out'][1]['flops'] / max(r['flops'] for r in rows[:20]):.3g} times" in words
    assert COMMAND in words and "1a2b3c" in words and "2025-01-31 10:20:30" in words


def test_what_is_written_by_others_is_escaped(published):
    assert "&lt;quick &amp; dirty&gt;" in published[1].read_text()


def test_curves_are_read_from_the_logs_of_the_units(study, published):
    rows, _, _ = study
    tokens, loss = report.curves(published[0], rows)[rows[0]["id"]]
    assert tokens[-1] == rows[0]["tokens"] and len(tokens) == 59
    np.testing.assert_allclose(loss, rows[0]["loss"] * (1 + 5e3 / tokens))


def test_the_summary_fits_a_terminal_and_says_what_counts(study):
    rows, fit, law = study
    out = io.StringIO()
    report.text_summary(rows, fit, law, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    for p in law["held_out"]:
        words = f"{p['predicted']:.4f}", f"{p['lo']:.4f} to {p['hi']:.4f}", f"{p['measured']:.4f}", findings.verdict(p)
        assert any(line.startswith(p["id"]) and all(word in line for word in words) for line in lines)
    for name, interval in fit.params.items():
        assert any(line.startswith(name) and f"{interval.value:.4g}" in line for line in lines)


def test_a_loss_outside_its_band_is_called_so(study, tmp_path):
    rows, fit, law = study
    worse = [{**p, "measured": p["hi"] + 0.1} for p in law["held_out"]]
    report.write(tmp_path / "report.html", {}, rows, fit, {**law, "held_out": worse}, {}, "")
    words = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "outside the 95 % band" in words and "inside the" not in words


def test_a_prediction_made_after_training_is_called_so(study):
    first, _ = study[2]["held_out"]
    late = {**first, "started_at": "2025-01-30T00:00:00.000+00:00"}
    assert findings.verdict(late) == f"{findings.verdict(first)}, told afterwards"


def test_the_noise_floor_is_told_in_words(study):
    law = study[2]
    assert findings.noise(law) == []
    runs = laws.runs(np.repeat([1e4, 1e5], 3), np.arange(1.0, 7.0), np.exp([0, 0.02, 0.04, 1, 1.01, 1.02]))
    told = findings.noise({**law, "noise_floor": laws.plain(laws.noise_floor(runs, np.repeat([0, 1], 3)))})
    many = "from 2 sets of runs that differ in their seed alone, 4 degrees of freedom."
    assert told[0] == f"Noise floor: 1.6 % (95 % interval 0.95 to 4.5 %) of the loss, {many}"
    assert told[1].startswith("Noise by size: 2 % (") and told[1].endswith(
        "do not show that it differs, and weigh the same."
    )


def test_runs_without_a_loss_are_shown_by_their_status(study, tmp_path):
    rows, fit, _ = study
    rows = [dict(r) for r in rows]
    for r, status in ((rows[0], "diverged"), (rows[20], "failed"), (rows[21], "new")):
        r.update(status=status, loss="", wall_s="", tokens_per_s="", unit="")
    law = make_law(rows, fit)
    law["held_out"][1]["started_at"] = None
    words = " ".join(Page(report.publish(tmp_path, rows, {}, fit, law, {}, "").read_text()).words)
    assert "diverged" in words and "failed" in words and "not measured" in words


def test_a_law_without_one_of_its_terms_is_still_reported_with_a_warning(tmp_path):
    rows = make_rows()
    for r in rows:
        r["loss"] = 2 + 300 * r["tokens"] ** -0.42
    fit = make_fit(rows)
    words = " ".join(Page(report.publish(tmp_path, rows, {}, fit, make_law(rows, fit), {}, "").read_text()).words)
    assert "comes with warnings" in words and all(warning in words for warning in fit.warnings)


def test_the_envelope_holds_the_runs_that_no_cheaper_one_beats():
    points = [(1.0, 4.0), (2.0, 3.0), (3.0, 3.5), (4.0, 2.0)]
    assert findings.envelope([{"flops": c, "loss": loss} for c, loss in points]) == [points[0], points[1], points[3]]


def test_counted_flops_go_through_those_of_the_runs(study):
    rows, _, law = study
    n, d, _ = findings.numbers(rows, law)
    np.testing.assert_allclose(findings.counted(rows, law, n, d), [r["flops"] for r in rows])


def test_figures_leave_the_settings_of_matplotlib_alone(study):
    before = dict(matplotlib.rcParams)
    figures.draw_all(study[0], {}, study[1], study[2])
    assert dict(matplotlib.rcParams) == before
