"""The one place that decides number types: float32 at rest, the run's precision in the computation."""

from typing import Any

import jax
from jax import numpy as jnp

PRECISIONS = ("float32", "bfloat16")


def cast(tree: Any, precision: str) -> Any:
    """Floating arrays of a tree in the type of the computation. Layers keep losses and statistics in float32."""
    if precision == "float32":
        return tree
    return jax.tree.map(lambda x: x.astype(precision) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
