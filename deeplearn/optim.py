"""Optimiser recipes: a name, a schedule, and the numbers that may be traced.

What fixes the program (names, shares of the schedule) is Python; what only fills it (peak rate, weight decay, betas,
length of the run, seed) is a `Hyper` of scalars in the training state, so that one compiled step serves every budget,
rate and seed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array, numpy as jnp

from deeplearn.config import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Optim:
    """warmup and decay are shares of the run, so that neither can outlast a small budget.

    warmup_steps: the warm-up in updates, in place of the share, which then keeps its default; 0 is the share. Under
    "wsd" runs that differ in budget alone are then the same to the bit until the shorter one decays, so that a sweep
    trains what they share once (`train/branches.py`). Where it outlasts a run, that run is refused before it starts.

    schedule: "wsd" (warm up, stay, decay linearly to zero over the last `decay` of the run: Hägele et al. 2024,
    arXiv 2405.18392), "cosine" (to zero; decay is not used) or "constant". clip: the gradient's global norm; 0 is none.
    base_size: the family's size that learning_rate is for; other widths follow from it by `train/transfer.py`. 0: the
    rate is the same for all parameters, and for this run's size.
    """

    name: str = "adamw"
    learning_rate: float = 3e-3
    schedule: str = "wsd"
    warmup: float = 0.05
    warmup_steps: int = 0
    decay: float = 0.3
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    clip: float = 1.0
    base_size: int = 0

    def __post_init__(self):
        if self.name not in _DIRECTIONS:
            raise ConfigError(f"optim.name {self.name!r} is unknown{nearest(self.name, _DIRECTIONS)}")
        if self.schedule not in _SCHEDULES:
            raise ConfigError(f"optim.schedule {self.schedule!r} is unknown{nearest(self.schedule, _SCHEDULES)}")
        if not 0 <= self.warmup <= 1 or not 0 <= self.decay <= 1:
            raise ConfigError(f"optim.warmup {self.warmup} and optim.decay {self.decay} are shares between 0 and 1")
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.warmup_steps must be at least 0, not {self.warmup_steps}")
        if self.warmup_steps and self.warmup != Optim.warmup:
            raise ConfigError(
                f"optim.warmup {self.warmup} and optim.warmup_steps {self.warmup_steps} both say how long the warm-up "
                f"is: leave out optim.warmup"
            )
        if self.base_size < 0:
            raise ConfigError(f"optim.base_size is {self.base_size}; it is a size of the family, or 0")


class Hyper(NamedTuple):
    """What a run's numbers are, as arrays: rate, weight decay and betas float32, steps and seed int32."""

    learning_rate: Array
    weight_decay: Array
    b1: Array
    b2: Array
    steps: Array
    seed: Array


TRACED = ("learning_rate", "weight_decay", "b1", "b2")  # the fields of Optim that a Hyper holds


def hyper(optim: Optim, steps: int, seed: int) -> Hyper:
    """The traced numbers of one run of `steps` updates, on the host."""
    return Hyper(*(np.float32(getattr(optim, name)) for name in TRACED), np.int32(steps), np.int32(seed))


_DIRECTIONS: dict[str, Callable[[Optim, Hyper], optax.GradientTransformation]] = {
    "adamw": lambda o, h: optax.scale_by_adam(b1=h.b1, b2=h.b2, eps=o.eps),
    "lion": lambda o, h: optax.scale_by_lion(b1=h.b1, b2=h.b2),
    "sgd": lambda o, h: optax.trace(decay=h.b1),
}

_SCHEDULES: dict[str, Callable[[Optim, Array], Array]] = {
    "constant": lambda o, share: jnp.ones_like(share),
    "cosine": lambda o, share: 0.5 * (1 + jnp.cos(jnp.pi * share)),
    "wsd": lambda o, share: jnp.minimum(1.0, (1 - share) / max(o.decay, 1e-9)),
}


def learning_rate(optim: Optim, hyper: Hyper, step: Array) -> Array:
    """The rate of update number `step` (from 0), float32."""
    done = step.astype(jnp.float32) + 0.5
    share = done / hyper.steps.astype(jnp.float32)
    risen = done / optim.warmup_steps if optim.warmup_steps else share / max(optim.warmup, 1e-9)
    return hyper.learning_rate * jnp.minimum(1.0, risen) * _SCHEDULES[optim.schedule](optim, share)


def stable_steps(optim: Optim, steps: int) -> int:
    """The first updates of a run of `steps` whose rates do not depend on `steps`, bit for bit; 0 if there are none.

    Those are the updates of "wsd" after an absolute warm-up, up to the cooldown. An update whose rate is the peak but
    for rounding is left out: the margin is more than float32 loses on the way.
    """
    if optim.schedule == "constant" and optim.warmup_steps:
        return steps
    if optim.schedule != "wsd" or not optim.warmup_steps:
        return 0
    return max(0, math.floor((1 - optim.decay - 5e-7) * steps + 0.5))


def _is_matrix(params: Any) -> Any:
    """True for kernels: norms, biases and lookup tables are not decayed."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)


def direction(optim: Optim, hyper: Hyper, rates: Any = None) -> optax.GradientTransformation:
    """Gradient to direction of descent, everything but the learning rate. `hyper` may be traced.

    rates: a factor on the rate of each parameter, as a tree of floats; None is 1. Weights decay without it.
    """
    clip = optax.clip_by_global_norm(optim.clip) if optim.clip else optax.identity()
    factors = [] if rates is None else [optax.stateless(lambda u, _: jax.tree.map(lambda r, x: r * x, rates, u))]
    decay = optax.add_decayed_weights(hyper.weight_decay, mask=_is_matrix)
    return optax.chain(clip, _DIRECTIONS[optim.name](optim, hyper), *factors, decay)
