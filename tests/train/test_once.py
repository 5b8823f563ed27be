"""What is dear is built once, whoever asks."""

import dataclasses
import threading
import time

import pytest
from short_runs import short_run

from deeplearn import sharding
from deeplearn.train import cohort, loop
from deeplearn.train.once import once


def test_threads_that_want_the_same_wait_for_one():
    built = []

    @once(4)
    def build(key):
        built.append(key)
        time.sleep(0.05)
        return object()

    found = []
    threads = [threading.Thread(target=lambda: found.append(build(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1] and len({id(x) for x in found}) == 1


def test_the_oldest_is_let_go_and_an_exception_is_not_kept():
    built = []

    @once(2)
    def build(key):
        built.append(key)
        if key == 0:
            raise ValueError("no")
        return key

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            build(0)
    assert [build(k) for k in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert built == [0, 0, 1, 2, 3, 2]


def test_what_a_thread_prepares_is_what_a_cohort_finds(monkeypatch):
    run = short_run("transformer", 4)
    runs = [run, dataclasses.replace(run, seed=1)]
    thread = threading.Thread(target=cohort.prepare, args=(runs,))
    thread.start()
    thread.join()
    mesh = sharding.mesh_of_members(run.mesh, 2)

    def compiles(*_, **__):
        raise AssertionError("it is compiled already")

    monkeypatch.setattr(cohort, "make_steps", compiles)
    with loop.on_mesh(mesh):
        kept = cohort.compiled_steps(loop.program(runs[1]), mesh, 4, 2)
    assert kept.memory_analysis().temp_size_in_bytes > 0
