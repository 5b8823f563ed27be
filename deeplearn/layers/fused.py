"""Causal attention by the platform's own kernel, whose scores never lie in main memory (Dao et al. 2022, arXiv
2205.14135): splash attention of `jax.experimental.pallas.ops.tpu` on a TPU, cuDNN's on a GPU of NVIDIA's.

The platform is that of the mesh in force, so a step that is compiled for a machine that is not here has its kernel.
Without a mesh, elsewhere, and for shapes and types that a kernel cannot take, the same is computed by
`attention.causal_attention`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import Array, numpy as jnp

from deeplearn.layers.placement import places, platform
from deeplearn.layers.remat import ATTENTION, of_attention

Kernel = Callable[[Array, Array, Array], Array]  # q_BxLxHxK, k_BxLxGxK, v_BxLxGxK -> y_BxLxHxK, all on one device

_LANES = 128  # numbers in a row of a TPU's registers
_BLOCKS = (512, 256, 128)  # positions that the kernel has in the chip's own memory at a time


def fused_attention(q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array) -> Array | None:
    """`attention.causal_attention` by the platform's kernel: y_BxLxHxK, or None where there is no such kernel."""
    attend, spread = kernel(q_BxLxHxK), places("batch") * places("attention_heads")
    if attend is None or q_BxLxHxK.shape[0] % places("batch"):  # as the one example that parameters are made with
        return None
    if spread < jax.sharding.get_abstract_mesh().size:  # inside a stage of a pipeline, which every device would then do
        return None
    return on_each_device(attend, q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)


def kernel(q_BxLxHxK: Array) -> Kernel | None:
    """The kernel of the platform in force for queries of this shape and type, if it has one."""
    length, width = q_BxLxHxK.shape[1], q_BxLxHxK.shape[3]
    match platform():
        case "tpu" if length % _LANES == 0 and width % _LANES == 0:
            return splash
        case "gpu" if q_BxLxHxK.dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128:
            return cudnn
    return None


def on_each_device(attend: Kernel, q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array) -> Array:
    """`attend` by each device for its own sequences and heads; the compiler cannot spread a kernel by itself.

    Logical axes: ("batch", None, "attention_heads", None). Heads that do not divide over their devices are all on each
    of them, and a key head whose queries are on two devices is on both. Returns y_BxLxHxK.
    """
    heads, groups, parts = q_BxLxHxK.shape[2], k_BxLxGxK.shape[2], places("attention_heads")
    divide = heads % parts == 0
    if divide and groups % parts:
        copies = math.lcm(groups, parts) // groups
        k_BxLxGxK, v_BxLxGxK = (jnp.repeat(x, copies, axis=2) for x in (k_BxLxGxK, v_BxLxGxK))
    spec = nn.logical_to_mesh_axes(("batch", None, "attention_heads" if divide else None))
    spread = jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return spread(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)


def cudnn(q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array) -> Array:
    """By cuDNN, in bfloat16 or float16, with at most 128 channels in multiples of 8."""
    y = jax.nn.dot_product_attention(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, is_causal=True, implementation="cudnn")
    return of_attention(y)


def splash(q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array, interpret: bool = False) -> Array:
    """By splash attention, for lengths and channels in multiples of 128. interpret: without a TPU, slowly."""
    # Imported here, since it takes a second and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel

    length, heads, width = q_BxLxHxK.shape[1:]
    block = next(size for size in _BLOCKS if length % size == 0)
    names = ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")
    (forward, hides), (backward, _) = _blocks_to_visit(length, heads, block)
    attend = splash_kernel.SplashAttentionKernel(
        forward,
        forward,
        backward,
        block_sizes=splash_kernel.BlockSizes(**{f"block_{name}": block for name in names}),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=ATTENTION,
        mask_function=hides,
        interpret=interpret,
    )
    inputs = (x.swapaxes(1, 2) for x in (q_BxLxHxK * width**-0.5, k_BxLxGxK, v_BxLxGxK))
    return jax.vmap(attend)(*inputs).swapaxes(1, 2)


@functools.lru_cache(maxsize=16)
def _blocks_to_visit(length: int, heads: int, block: int) -> tuple[Any, Any]:
    """The causal mask as splash attention wants it, for queries and for keys.

    Which blocks are hidden, partly hidden or seen does not depend on their size; with blocks of two positions it takes
    no time to find out, where the kernel's own would take a minute for 131,072 positions.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import CausalMask, MultiHeadMask

    mask = MultiHeadMask([CausalMask((2 * length // block,) * 2)] * heads)
    found = info.process_mask(mask, (2, 2)), info.process_mask_dkv(mask, (2, 2))
    position_L = np.arange(length, dtype=np.int32)
    return tuple((blocks._replace(q_sequence=position_L), hides) for blocks, hides in found)
