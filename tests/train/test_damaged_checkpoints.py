"""Every file of a checkpoint damaged in turn: never loaded as good, falls back one, and says so."""

import gc
import random
import shutil

import jax
import numpy as np
import pytest
from short_runs import short_run

from deeplearn import sharding
from deeplearn.train import loop, state as states
from deeplearn.train.checkpoint import Checkpoints

OLD, NEW = 4, 8
FLIPS = 8

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    # Orbax leaves the reads that fail in a damaged checkpoint to the garbage collector, which then warns of each.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collect_failed_reads():
    yield
    for _ in range(3):  # what one round finalises may let go of more
        gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run, a folder with two checkpoints of it, and what was saved in each, on the host."""
    folder, mesh, kept = tmp_path_factory.mktemp("saved"), sharding.one_device(), {}
    run = short_run("transformer")
    with loop.on_mesh(mesh), Checkpoints(folder) as checkpoints:
        for step in (OLD, NEW):
            state = states.create(short_run("transformer", seed=step), mesh)
            state = state._replace(step=jax.device_put(np.int32(step), state.step.sharding))
            checkpoints.save(step, state, {"iterator": {"row": step}, "wall_s": 1.0}, wait=True)
            kept[step] = jax.device_get(state)
    return run, folder, kept


def damages(file, dice):
    """What is done to a file: (name, its new bytes, or None for no file)."""
    whole = file.read_bytes()
    yield "removed", None
    for length in sorted({0, 1, len(whole) // 2, len(whole) - 1}):
        yield f"cut to {length} of {len(whole)} bytes", whole[:length]
    for place in sorted(dice.sample(range(len(whole)), FLIPS)):
        bit = dice.randrange(8)
        flipped = bytes([whole[place] ^ 1 << bit])
        yield f"bit {bit} of byte {place} flipped", whole[:place] + flipped + whole[place + 1 :]
    yield "nothing", whole  # also lets go of what a reader in the background still holds of the last damaged one


def test_no_damage_to_any_file_is_loaded_as_good(saved, tmp_path, record_property):
    run, folder, kept = saved
    mesh, dice, tries, fell_back = sharding.one_device(), random.Random(0), 0, 0
    for file in sorted(p.relative_to(folder) for p in (folder / str(NEW)).rglob("*") if p.is_file()):
        for what, content in damages(folder / file, dice):
            copy, said = tmp_path / "copy", []
            shutil.copytree(folder, copy)
            if content is None:
                (copy / file).unlink()
            else:
                (copy / file).write_bytes(content)
            with loop.on_mesh(mesh), Checkpoints(copy) as checkpoints:
                state, beside = checkpoints.restore(states.abstract(run, mesh), said.append)
                left = checkpoints.steps
            state, case = jax.device_get(state), f"{file}: {what}; {said}"
            step = int(state.step)
            jax.tree.map(lambda x, y, case=case: np.testing.assert_array_equal(x, y, case), state, kept[step])
            assert beside == {"iterator": {"row": step}, "wall_s": 1.0}, case
            if step == OLD:
                # A checkpoint without its mark of success, or cut short under its own name, is none at all.
                assert len(said) == 1 and f"checkpoint {NEW} is damaged, falling back" in said[0], case
                assert left == [OLD], case
            else:
                assert said == [] and left == [OLD, NEW], case
            assert step == NEW or what != "nothing", case
            tries, fell_back = tries + (what != "nothing"), fell_back + (step == OLD)
            shutil.rmtree(copy)
    assert fell_back > tries / 3, "most of the files matter"
    record_property("fault", "each file of a checkpoint removed, cut short, flipped")
    record_property("tries", tries)
