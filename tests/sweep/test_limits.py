"""Budgets, the rule for hopeless units, and rounds of an active sweep, on units whose losses are made up."""

import dataclasses
import functools
import io
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console
from test_local import unit

from deeplearn import laws
from deeplearn.config import ConfigError
from deeplearn.optim import Optim
from deeplearn.sweep import active, budget, findings, hopeless, ledger, local, report, study, training
from deeplearn.sweep.grid import Sweep
from deeplearn.sweep.staff import Staff
from deeplearn.train import loop


@pytest.fixture(autouse=True)
def quick_fits(monkeypatch):
    """They run longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    monkeypatch.setattr(laws, "fit", functools.partial(laws.fit, starts=32, replicates=60))
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def units():
    fits = [unit(size, tokens) for size in (16, 24, 32) for tokens in (8192, 16384, 32768)]
    return [*fits, unit(32, 32768 * 4, "held_out"), unit(48, 32768 * 8, "held_out")]


@pytest.fixture(scope="module")
def candidates():
    sizes, tokens = (16, 24, 32, 48), (4096, 8192, 16384, 32768)
    return [unit(size, d, seed=seed) for size in sizes for d in tokens for seed in (1, 2)]


def quiet():
    return Console(file=io.StringIO(), width=160)


def enter(root, units):
    ledger.create(root, "s", {u.id: u.identity_json() for u in units})


def write_loss(root, unit, noise=0.003):
    """A result as of training, of a known law and noise that is a function of the unit."""
    loss = 1.1 + 30 * unit.params_no_embed**-0.35 + 300 * unit.run.tokens**-0.42
    seed = (unit.params, unit.run.tokens, unit.run.seed)
    loss *= math.exp(noise * np.random.default_rng(seed).standard_normal())
    result = {"status": "done", "loss": loss, "unit": "nats/token", "wall_s": 1.0, "tokens_per_s": 1000.0}
    result |= {"members": 1, "steps_spent": unit.run.steps}
    ledger.write_json(ledger.directory(root, unit.id) / "result.json", result)


def write_log(root, unit, loss_of):
    folder = ledger.directory(root, unit.id)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"step": step, "next_token": loss_of(step)} for step in range(1, unit.run.steps + 1))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ids(units):
    return [u.id for u in units]


def test_a_budget_pays_for_the_cheapest_and_keeps_room_for_a_test(units):
    *fits, test, dear = units
    fits = sorted(fits, key=lambda u: u.flops)
    all_of_them = sum(u.flops for u in units)
    assert ids(budget.affordable(units, {}, (), all_of_them)) == ids([*fits, test, dear])
    least = sum(u.flops for u in fits[:6]) + test.flops
    assert ids(budget.affordable(units, {}, (), 1.001 * least)) == ids([*fits[:6], test])
    budget.check(units, {}, (), 1.001 * least)
    with pytest.raises(ConfigError, match=r"the 6 cheapest fitted runs and the cheapest held-out run take"):
        budget.check(units, {}, (), 0.999 * least)
    with pytest.raises(ConfigError, match="and others here have taken"):
        budget.check(units, {dear.id: dear.flops}, {dear.id}, 1.001 * least)
    # A dear run that has ended is one of the runs that a law needs.
    spent = sum(u.flops for u in (*fits[:5], fits[-1], test))
    budget.check(units, {fits[-1].id: fits[-1].flops}, {fits[-1].id}, 1.001 * spent)
    with pytest.raises(ConfigError, match="holds no sweep"):
        budget.check(units, {fits[-1].id: fits[-1].flops}, {fits[-1].id}, 0.999 * spent)
    # What was spent counts, and is not spent again; what nothing more is spent on leaves its room to others.
    taken = {fits[0].id: fits[0].flops, fits[1].id: fits[1].flops / 2}
    assert ids(budget.affordable(units, taken, {fits[0].id}, 1.001 * least)) == ids([*fits[:6], test])
    early = {**taken, fits[5].id: 0.0}
    assert fits[6].id in ids(budget.affordable(units, early, {fits[0].id, fits[5].id}, least + 1.001 * fits[6].flops))


def test_what_was_spent_is_read_from_the_files(units, tmp_path):
    done, stopped, new, old = (*units[:3], unit(16, 4096, seed=7))
    enter(tmp_path, [done, stopped, new, old])
    write_loss(tmp_path, done)
    write_loss(tmp_path, old)
    write_log(tmp_path, stopped, lambda step: 3.0)
    log = ledger.directory(tmp_path, stopped.id) / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[: stopped.run.steps // 2]))
    taken = budget.spent(tmp_path, units)
    assert taken == pytest.approx({done.id: done.flops, stopped.id: stopped.flops / 2, old.id: old.flops})


def test_a_sweep_says_what_its_budget_left_out(units, tmp_path):
    """All that is paid for has a result already, so that nothing has to be trained."""
    *fits, test, dear = units
    for u in (*fits[:8], test):
        write_loss(tmp_path, u)
    enter(tmp_path, units)
    limits = budget.Limits(flops=1.001 * sum(u.flops for u in (*fits[:8], test)))
    done = study.run(Sweep("s", [], []), units, tmp_path, quiet(), Staff(), limits=limits)
    assert [told["id"] for told in done.law["not_fitted"]] == [fits[8].id, dear.id]
    assert all(
        told["status"] == "left_out" and "more than the budget" in told["why"] for told in done.law["not_fitted"]
    )
    assert f"{fits[8].id}" in (tmp_path / "runs.csv").read_text() and done.rows[8]["status"] == "left_out"
    assert done.fit.n_runs == 8
    assert findings.not_fitted(done.rows, done.law)[1].startswith(f"left out: {dear.id} (size 48, 262 k tokens): its")
    with pytest.raises(ConfigError, match="holds no sweep"):
        study.run(Sweep("s", [], []), units, tmp_path / "new", quiet(), Staff(), limits=budget.Limits(flops=1e6))


def test_without_time_nothing_begins_and_the_next_command_goes_on(units, tmp_path):
    limits = budget.Limits(seconds=0.0)
    with pytest.raises(study.OutOfTime, match=r"0 runs are done.* the same command goes on from here"):
        study.run(Sweep("s", [], []), units, tmp_path, out := quiet(), Staff(), limits=limits)
    assert all(f"left out: {u.id}" in out.file.getvalue() for u in units)
    for u in units[:-1]:
        write_loss(tmp_path, u)
    (told,) = training.not_fitted(training.Job(tmp_path, quiet(), Staff(), limits=limits), units)
    assert (told["id"], told["why"]) == (units[-1].id, "the time did not suffice: it was not begun")


@pytest.mark.slow
def test_workers_end_when_nothing_may_begin(units, tmp_path):
    enter(tmp_path, units)
    asked = []
    with Staff(1) as staff:
        local.execute(tmp_path, units[:2], lambda *_: None, staff, may_start=lambda u: bool(asked.append(u)))
    assert asked and not list(tmp_path.glob("units/*/attempts"))


@pytest.fixture(scope="module")
def rates():
    """Four learning rates of one run, and one of another size."""
    optims = [Optim(learning_rate=rate) for rate in (0.001, 0.01, 0.1, 1.0)]
    return [unit(16, 8192, optim=optim) for optim in optims] + [unit(24, 8192, optim=optims[-1])]


FALL = {0.001: 0.5, 0.01: 2.0, 0.1: 1.8, 1.0: -1.0}


def falling(unit):
    return lambda step: 5.0 - FALL[unit.run.optim.learning_rate] * min(1.0, step / (unit.run.steps / 8))


def test_the_rule_finds_the_same_units_in_whatever_order(rates, tmp_path):
    enter(tmp_path, rates)
    found = {}
    for count, u in enumerate(rates, 1):
        write_log(tmp_path, u, falling(u))
        found = hopeless.found(tmp_path, rates[:count], 0.3)
    slow, best, near, up, other = rates
    assert set(found) == {slow.id, up.id, other.id}, "another size is no sibling"
    steps = slow.run.steps
    assert found[slow.id] == (
        f"at step {steps // 4} of {steps} its training loss is 4.5, more than 0.3 above the 3 of {best.id}"
    )
    assert found[up.id].endswith("it has learnt nothing") and "it has learnt nothing" in found[other.id]
    assert hopeless.found(tmp_path, rates[::-1], 0.3) == found
    assert set(hopeless.found(tmp_path, rates, 0.1)) == {*found, near.id}


def test_a_worker_ends_a_unit_once_a_sibling_has_shown_better(rates, tmp_path):
    slow, best, *_ = rates
    enter(tmp_path, rates)
    write_log(tmp_path, slow, falling(slow))
    look = hopeless.watch(tmp_path, slow.run, 0.3)
    for step in range(1, slow.run.steps // 2):
        look(step)  # there is no sibling to compare with
    write_log(tmp_path, best, falling(best))
    with pytest.raises(loop.Hopeless, match=f"more than 0.3 above the 3 of {best.id}") as ended:
        for step in range(slow.run.steps // 2, slow.run.steps + 1):
            look(step)
    assert isinstance(ended.value, loop.Ended) and ended.value.status == "hopeless"
    watched = hopeless.watch(tmp_path, best.run, 0.3)
    for step in range(1, best.run.steps + 1):
        watched(step)


def test_a_hopeless_unit_is_named_and_kept_out_of_the_law(units, tmp_path):
    fits = units[:9]
    bad = unit(16, 8192, optim=dataclasses.replace(fits[0].run.optim, learning_rate=9.0))
    late = unit(16, 16384, optim=dataclasses.replace(fits[0].run.optim, learning_rate=9.0))
    enter(tmp_path, [*fits, bad, late])
    for u in (*fits, late):
        write_loss(tmp_path, u)
        write_log(tmp_path, u, lambda step, u=u: 3.0 if u is not late else 4.0)
    ledger.finish(ledger.claim(tmp_path, bad.id), {"status": "hopeless", "loss": None, "message": "at step 8: far"})
    limits = budget.Limits(hopeless=0.3)
    done = study.run(Sweep("s", [], []), [*fits, bad, late], tmp_path, quiet(), Staff(), limits=limits)
    assert done.fit.n_runs == 9 and [told["id"] for told in done.law["not_fitted"]] == [bad.id, late.id]
    out = quiet()
    report.text_summary(done.rows, done.fit, done.law, out)
    assert f"hopeless: {bad.id} (size 16, 8.19 k tokens): at step 8: far" in out.file.getvalue()
    (told,) = training.not_fitted(training.Job(tmp_path, quiet(), Staff()), [bad, late])
    assert told["id"] == bad.id, "what has a loss is only left out where the rule is asked for"
    with pytest.raises(ConfigError, match=r"family 'gan' trains .* against"):
        from experiments import cli

        hopeless.check([cli.load_config("gan").get_config()])


@pytest.mark.slow
def test_rounds_narrow_the_interval_until_it_is_as_asked(units, candidates, tmp_path, monkeypatch):
    """A stand-in for training writes the loss of a known law; decisions, files and report are the real ones."""

    def execute(root, waiting, tell, *_):
        for u in waiting:
            ledger.claim(root, u.id)
            write_loss(root, u, noise=0.001)

    monkeypatch.setattr(local, "execute", execute)
    units, aim = [*(u for u in units[:9] if u.run.tokens < 32768), units[-1]], active.Aim(4e11, 0.1)
    sweep = Sweep("s", [], [], count="params_no_embed")
    out = quiet()
    done = study.run(sweep, units, tmp_path, out, Staff(), candidates=candidates, aim=aim)
    rounds = active.read(tmp_path)
    chosen = [id for told in rounds for id in told["chosen"]]
    assert len(rounds) >= 2 and not rounds[-1]["chosen"]
    assert len(set(chosen)) == len(chosen) == done.fit.n_runs - 6
    widths = [math.inf if told["width"] is None else told["width"] for told in rounds]
    assert rounds[-1]["why"] == "the interval is as narrow as asked" and widths[-1] <= 0.1 < widths[0]
    text = out.file.getvalue()
    assert f"round {len(rounds)}: nothing more is trained for it: the interval is as narrow as asked" in text
    assert text.index("nothing more is trained") < text.index("predicted for"), "held-out runs come last"
    page = report.publish(tmp_path, done.rows, {}, done.fit, done.law, {}, "").read_text()
    assert 'alt="interval by round"' in page
    # What was decided is not decided again: as by a command that was killed in its first round.
    active.write(tmp_path, rounds[:1])
    assert study.run(sweep, units, tmp_path, quiet(), Staff(), candidates=candidates, aim=aim).law["rounds"] == rounds
    assert study.run(sweep, units, tmp_path, quiet(), Staff(), candidates=candidates).fit.n_runs == done.fit.n_runs
    # A budget ends it earlier, and is kept.
    room = sum(u.flops for u in units) + 1.05 * rounds[0]["cost"]
    limits = budget.Limits(flops=room)
    short = study.run(sweep, units, tmp_path / "short", quiet(), Staff(), limits=limits, candidates=candidates, aim=aim)
    assert sum(budget.spent(tmp_path / "short", short_units(short, units, candidates)).values()) <= room
    assert short.law["rounds"][-1]["why"] != "the interval is as narrow as asked"


def short_units(done, units, candidates):
    known = {row["id"] for row in done.rows}
    return [u for u in (*units, *candidates) if u.id in known]


def test_aims_that_no_sweep_can_have(units, tmp_path):
    for aim, candidates, words in (
        (active.Aim(1e12, 0.0), units[:1], "positive numbers"),
        (active.Aim(1e12, 0.1), [], "chooses among Sweep.candidates"),
    ):
        with pytest.raises(ConfigError, match=words):
            active.check(aim, candidates)
    assert training.Job(tmp_path, quiet(), Staff()).seconds_left() == math.inf
