"""What of a layer is kept for the backward pass, and what is computed again: the policies of `jax.checkpoint` by name.

From the most kept to the least, which is also from the least computed again to the most, but for sequences so long
that attention outweighs the projections:

none: everything.
dots: matrix products without batch axes, so the projections but no scores (the split of Korthikanti et al. 2022, arXiv
    2205.05198).
attention: what attention gives, so that a kernel or a ring runs once. The plain form computes its scores again.
full: nothing but the layer's input (Chen et al. 2016, arXiv 1604.06174).
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

ATTENTION = "attention"  # the name of what attention gives: its output, and what its gradient needs beside the inputs

_CUDNN = "dot_product_attention_fwd_wrapper"  # has a second output, which cannot be given a name from outside

Policy = Callable[..., Any]

_POLICIES: dict[str, Policy] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(ATTENTION),
        lambda primitive, *_, **__: primitive.name == _CUDNN,
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
POLICIES = tuple(_POLICIES)


def of_attention(x: Array) -> Array:
    """x, marked as what the policy "attention" keeps."""
    return checkpoint_name(x, ATTENTION)


def policy(name: str) -> Policy:
    """One of POLICIES, as `jax.checkpoint` takes it."""
    return _POLICIES[name]


def remat(layer: type[nn.Module], name: str, scanned: bool) -> type[nn.Module]:
    """The layer under one of POLICIES. scanned: it is the body of a scan, so the compiler cannot merge the passes."""
    if name == "none":
        return layer
    return nn.remat(layer, prevent_cse=not scanned, policy=policy(name))
