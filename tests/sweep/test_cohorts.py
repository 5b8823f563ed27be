"""Which units train together, in which order, and how many at a time."""

import dataclasses
import threading

import pytest

from deeplearn import config
from deeplearn.sweep import cohorts, ledger, worker
from deeplearn.sweep.grid import unit_of
from deeplearn.train import loop, memory
from experiments import cli


def unit(size=16, budget=8192, seed=0, **optim):
    run = cli.load_config("transformer").get_config(size=size)
    run = dataclasses.replace(run, budget=budget, seed=seed, optim=dataclasses.replace(run.optim, **optim))
    return unit_of(run, "fit")


@pytest.fixture(scope="module")
def units():
    rates = (1e-2, 3e-3, 1e-3, 3e-4)
    return [unit(size, budget, learning_rate=r) for size in (16, 24) for budget in (8192, 16384) for r in rates]


def choose(waiting, measured=None, together=None, started=None, workers=1, cheapest_first=False):
    return cohorts.choose(waiting, measured or {}, together or {}, started or {}, workers, cheapest_first)


def test_what_differs_only_in_traced_numbers_goes_together(units):
    first = choose(units)
    assert {(u.run.size, u.run.tokens) for u in first} == {(24, 16384)} and len(first) == 4
    same = [unit(), unit(seed=1), unit(weight_decay=0.1), unit(b1=0.8, b2=0.9), unit(learning_rate=1.0)]
    assert len(choose(same, {loop.program(same[0].run): {8: 1.0}})) == 5
    for other in (unit(budget=16384), unit(size=24), unit(clip=0.5), unit(schedule="cosine"), unit(warmup=0.2)):
        assert len(choose([unit(), other])) == 1


def test_the_dearest_come_first_unless_a_budget_may_end_the_sweep(units):
    taken, left = [], list(units)
    while left:
        chosen = choose(left)
        taken.append(chosen[0].flops)
        left = [u for u in left if u not in chosen]
    assert taken == sorted(taken, reverse=True) and len(taken) == 4
    assert choose(units, cheapest_first=True)[0].flops == min(taken)


def test_no_worker_stands_idle_for_a_wider_cohort(units):
    alike = units[:4]
    quick, slow = ({loop.program(alike[0].run): {4: rate}} for rate in (1e6, 100.0))
    assert len(choose(alike, quick, workers=2)) == 4, "but nothing is gained where little is left"
    assert [len(choose(alike, slow, workers=n)) for n in (1, 2, 4)] == [4, 2, 1]


def test_what_was_begun_together_goes_on_together(units):
    a, b, c, d = sorted(units[:4], key=lambda u: u.id)
    pair = {u.id: (a.id, c.id) for u in (a, c)}
    assert choose([d, c, b, a], together=pair) == [c, a]
    assert choose([c, d], together=pair) == [c], "what has ended is left out"
    assert choose([a, b, c, d], together={a.id: (a.id,)}) == [a], "as is what was begun alone"
    assert choose([b, c, d], together=pair | {d.id: (d.id,)}) == [b]
    trunks = {a.id: ("s", "t"), d.id: ("s", "t"), c.id: ("u",)}
    assert choose([a, b, c, d], started=trunks) == [a, d], "so do those that trunks have started together"


def test_the_width_climbs_while_that_is_faster():
    much = 10**9
    assert cohorts.width({}, much) == cohorts.FIRST == 4
    assert cohorts.width({4: 1000.0}, much) == 8
    assert cohorts.width({4: 1000.0}, 1000) == 4, "nothing is tried that cannot pay"
    assert cohorts.width({4: 1000.0, 8: 1500.0}, much) == 16
    assert cohorts.width({4: 1000.0, 8: 900.0}, much) == 2
    assert cohorts.width({4: 1000.0, 8: 900.0, 2: 990.0}, much) == 1, "a narrower one is as good"
    assert cohorts.width({4: 1000.0, 8: 900.0, 2: 500.0}, much) == 4


def test_rates_come_from_results(units):
    results = {units[0].id: {"tokens_per_s": 5.0, "members": 4}, units[1].id: {"tokens_per_s": 7.0, "members": 4}}
    results[units[2].id] = {"status": "diverged"}
    results[units[4].id] = {"tokens_per_s": 9.0}
    assert cohorts.rates(units, results) == {loop.program(units[0].run): {4: 7.0, 1: 9.0}}


@pytest.mark.slow
def test_what_does_not_fit_together_is_trained_in_halves(tmp_path, monkeypatch):
    short = {"eval_examples": 64, "eval_batch": 32, "mesh": "data:1", "steps_per_dispatch": 4}
    runs = [dataclasses.replace(unit(16, 1024, seed).run, **short) for seed in range(3)]
    described = {config.identity(run): config.to_dict(run) for run in runs}
    ledger.create(tmp_path, "s", described)
    monkeypatch.setattr(memory, "free", lambda: 10**6)
    told = []
    silent = lambda **event: told.append((event["event"], event["id"]))  # noqa: E731
    worker.train_units(tmp_path, list(described.values()), [[]] * 3, silent, threading.Event())
    assert [ledger.results(tmp_path)[unit]["members"] for unit in described] == [1, 1, 1]
    assert [kind for kind, _ in told if kind != "progress"] == ["message", "done", "message", "done", "done"]
