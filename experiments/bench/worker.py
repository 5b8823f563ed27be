"""One side of a benchmark in a process of its own: python -m experiments.bench.worker '{"kind": "jax", ...}'

Kinds: "jax" (our training step), "cohort" (members of the quickstart's transformer, together), "torch"
(experiments/bench/torch_model.py), "matmul" (this machine's float32 rate).
It says "ready" on standard output after its first step; for each number of seconds that it then reads on standard
input it works about that long and answers {"seconds": ..., "steps": ...}. So the sides of a benchmark take turns.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

LENGTH, BATCH = 128, 32


def main() -> None:
    side = json.loads(sys.argv[1])
    if side.get("core") is not None:
        os.sched_setaffinity(0, {side["core"]})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    step, steps_per_call = {"jax": jax_side, "cohort": cohort_side, "torch": torch_side, "matmul": matmul_side}[
        side["kind"]
    ](side)
    step()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < float(line):
            step()
            calls += 1
        found = {"seconds": time.perf_counter() - start, "steps": calls * steps_per_call}
        print(json.dumps(found), file=answers, flush=True)


def jax_run(side: dict[str, Any]) -> Any:
    """The transformer's run of a benchmarked shape."""
    from deeplearn.data import Data
    from deeplearn.families import transformer
    from deeplearn.optim import Optim
    from deeplearn.train.run import Run

    heads = side["heads"]
    model = transformer.Config(seq_len=LENGTH, width=side["d"], depth=side["layers"], heads=heads, kv_heads=heads)
    return Run(
        family="transformer",
        size=side["d"],
        model=model,
        data=Data("shakespeare", seq_len=LENGTH),
        optim=Optim(b2=0.95, weight_decay=0.1, clip=0.0),  # what the PyTorch side does
        batch_size=BATCH,
        microbatches=side["microbatches"],
        mesh=side.get("mesh", "data:1"),
    )


def jax_side(side: dict[str, Any]) -> tuple[Callable[[], None], int]:
    devices = side.get("devices", 1)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"

    import jax

    from deeplearn import data, sharding
    from deeplearn.train import loop, state as states

    run = jax_run(side)
    mesh = sharding.make_mesh(run.mesh)
    count = run.steps_per_dispatch
    batches = data.train_iterator(run.data, run.batch_size, 0)
    context = loop.on_mesh(mesh)
    context.__enter__()  # for the life of the process
    program = loop.compiled_steps(loop.program(run), mesh, count)
    carry = [states.create(run, mesh)]

    def step() -> None:
        carry[0], metrics = program(carry[0], loop.put(run, batches.take(count), sharding.of_batch(mesh, 1)))
        jax.block_until_ready(metrics)

    return step, count


def cohort_side(side: dict[str, Any]) -> tuple[Callable[[], None], int]:
    """Updates of all members count, as they would if each were alone."""
    import jax
    import numpy as np

    from deeplearn import data, sharding
    from deeplearn.train import cohort, loop, state as states
    from experiments.configs.transformer import get_config

    run, members = get_config(side["size"]), side["members"]
    mesh, count = sharding.one_device(), run.steps_per_dispatch
    loop.on_mesh(mesh).__enter__()  # for the life of the process
    rows = data.train_iterator(run.data, run.batch_size, 0).take(count)
    batch = loop.put(run, {name: np.stack([x] * members) for name, x in rows.items()}, cohort.where(mesh))
    program = cohort.compiled_steps(loop.program(run), mesh, count, members)
    carry = [cohort.stacked(loop.program(run), mesh, [states.create(run, mesh)] * members)]

    def step() -> None:
        carry[0], metrics = program(carry[0], batch)
        jax.block_until_ready(metrics)

    return step, count * members


def torch_side(side: dict[str, Any]) -> tuple[Callable[[], None], int]:
    import torch

    from deeplearn import data
    from experiments.bench.torch_model import Trainer

    torch.set_num_threads(side.get("threads", 2))
    trainer = Trainer(side["d"], side["layers"], side["heads"])
    batches = data.train_iterator(data.Data("shakespeare", seq_len=LENGTH), BATCH, 0)

    def step() -> None:
        trainer.step(torch.from_numpy(next(batches)["tokens"]).long()).item()

    return step, 1


def matmul_side(side: dict[str, Any]) -> tuple[Callable[[], None], int]:
    """One step is a float32 product of two n x n matrices."""
    import jax
    from jax import numpy as jnp

    n = side["n"]
    x_NxN = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(jnp.dot)

    def step() -> None:
        jax.block_until_ready(product(x_NxN, x_NxN))

    return step, 1


if __name__ == "__main__":
    main()
