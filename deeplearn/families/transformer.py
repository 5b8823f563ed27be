"""Decoder-only transformer language model: RMSNorm before each layer, RoPE, grouped-query attention, GELU or SwiGLU.

Vaswani et al. 2017 (arXiv 1706.03762) with the changes of LLaMA (Touvron et al. 2023, arXiv 2302.13971).
"""

import dataclasses
import math
from typing import Any

import jax
from flax import linen as nn
from jax import Array, numpy as jnp

from deeplearn.config import ConfigError, aside, nearest
from deeplearn.families import next_token
from deeplearn.families.family import Batch, Objective, Variables
from deeplearn.layers import mlp, moe, remat
from deeplearn.layers.attention import Attention
from deeplearn.layers.dense import Dense
from deeplearn.layers.embed import Embed
from deeplearn.layers.losses import chunked_cross_entropy, cross_entropy
from deeplearn.layers.norm import RMSNorm
from deeplearn.layers.pipeline import bubble, pieces_of, pipeline
from deeplearn.layers.placement import places

UNIT = "nats/token"
SPREADS_SEQUENCE = True
SIZES = (16, 24, 32, 48, 64, 80, 96, 128, 256, 512, 1024, 2048, 4096)


@dataclasses.dataclass(frozen=True)
class Config:
    """mlp_width 0 means 4 width for "gelu" and 8/3 width for "swiglu", in multiples of 8.

    experts: number of expert MLPs in each layer, of which a token passes through top_k; 0 is one plain MLP. dispatch,
    capacity_factor: see `layers/moe.py`. balance_loss, router_z_loss: weights of the losses that keep the router even
    and its logits small (ST-MoE, Zoph et al. 2022, arXiv 2202.08906). loss_chunk: positions of each sequence whose
    logits exist at a time; 0 is all. rounds: how often a piece of the batch goes round the stages of a pipeline, of
    which each has some layers for each round (`layers/pipeline.py`). remat: what of a layer is kept for the backward
    pass, see `layers/remat.py`.
    """

    vocab: int = 256
    seq_len: int = 128
    width: int = 64
    depth: int = 4
    heads: int = 2
    kv_heads: int = 2
    mlp: str = "gelu"
    mlp_width: int = 0
    experts: int = 0
    top_k: int = 2
    dispatch: str = "capacity"
    capacity_factor: float = 1.25
    balance_loss: float = 1e-2
    router_z_loss: float = 1e-3
    qk_norm: bool = False
    tied: bool = False
    rope_base: float = 10_000.0
    loss_chunk: int = 0
    scan_layers: bool = False
    rounds: int = 1
    remat: str = aside("none")

    def __post_init__(self):
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(f"model.width {self.width} is not an even multiple of model.heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.mlp not in mlp.KINDS:
            raise ConfigError(f"model.mlp {self.mlp!r} is unknown{nearest(self.mlp, mlp.KINDS)}")
        if self.experts and not 1 <= self.top_k <= self.experts:
            raise ConfigError(f"model.top_k {self.top_k} is not between 1 and model.experts {self.experts}")
        if self.dispatch not in moe.DISPATCHES:
            raise ConfigError(f"model.dispatch {self.dispatch!r} is unknown{nearest(self.dispatch, moe.DISPATCHES)}")
        if self.rounds < 1 or self.depth % self.rounds:
            raise ConfigError(f"model.depth {self.depth} is not a multiple of model.rounds {self.rounds}")
        if self.rounds > 1 and not self.scan_layers:
            raise ConfigError(f"model.rounds {self.rounds} is for a pipeline, which wants model.scan_layers=true")
        if self.remat not in remat.POLICIES:
            raise ConfigError(f"model.remat {self.remat!r} is unknown{nearest(self.remat, remat.POLICIES)}")


def config(size: int) -> Config:
    """The dial is the width; depth is sqrt(width) / 2 (width 4096: 32 layers, as LLaMA 7B), MLP width 4 * width.

    Heads have 32 channels (64 from width 512, 128 from 2048), or the next divisor up. Parameters without embeddings
    are 12 * width^2 * depth plus the head and norms: 10 k at 16, 214 k at 64, 6.4 G at 4096.
    """
    head_dim = 32 if size < 512 else 64 if size < 2048 else 128
    heads = next((h for h in range(size // head_dim, 1, -1) if size % (2 * h) == 0), 1)
    depth = max(1, round(size**0.5 / 2))
    return Config(width=size, depth=depth, heads=heads, kv_heads=heads)


def at_size(config: Config, size: int) -> Config:
    """With heads as wide as they are, if such heads divide the size, and as many of them to a key head."""
    wanted = max(1, size * config.heads // config.width)
    heads = next((h for h in range(wanted, 1, -1) if size % (2 * h) == 0), 1)
    kv_heads = math.gcd(heads, max(1, heads * config.kv_heads // config.heads))
    mlp_width = config.mlp_width and max(1, round(config.mlp_width * size / config.width))
    return dataclasses.replace(config, width=size, heads=heads, kv_heads=kv_heads, mlp_width=mlp_width)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x_BxLxD -> (x_BxLxD, what a router has to say)."""

    config: Config

    @nn.compact
    def __call__(self, x_BxLxD: Array) -> tuple[Array, moe.Routing | None]:
        c = self.config
        out_scale = (2 * c.depth) ** -0.5  # so that the residual stream's variance does not grow with depth
        width = c.mlp_width or (4 * c.width if c.mlp == "gelu" else -(-8 * c.width // 24) * 8)
        attend = Attention(c.heads, c.kv_heads, c.width // c.heads, c.qk_norm, c.rope_base, out_scale, name="attention")
        x_BxLxD = x_BxLxD + attend(RMSNorm(name="attention_norm")(x_BxLxD))
        normed_BxLxD, routing = RMSNorm(name="mlp_norm")(x_BxLxD), None
        if c.experts:
            setup = (width, c.experts, c.top_k, c.mlp, c.dispatch, c.capacity_factor, out_scale)
            y_BxLxD, routing = moe.MoE(*setup, name="moe")(normed_BxLxD)
        else:
            y_BxLxD = mlp.MLP(width, c.mlp, out_scale, name="mlp")(normed_BxLxD)
        return nn.with_logical_constraint(x_BxLxD + y_BxLxD, ("batch", "length", "embed_activation")), routing


def _scanned(layer: type[nn.Module], length: int, axis: str) -> type[nn.Module]:
    """So many layers in order, whose parameters are stacked along a first axis of this name."""
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=length,
        metadata_params={nn.PARTITION_NAME: axis},
    )


def _pipelined(config: Config, params: Any, x_BxLxD: Array, stages: int) -> tuple[Array, moe.Routing | None]:
    """What the stacked layers do, from the same parameters, in stages."""
    stage = _scanned(Block, config.depth // config.rounds // stages, "layers")(config, parent=None)
    params_RxN = params if config.rounds > 1 else jax.tree.map(lambda w: w[None], params)
    keep = remat.policy(config.remat)
    return pipeline(lambda params, x: stage.apply({"params": params}, x), params_RxN, x_BxLxD, stages, keep)


def _check_stages(config: Config, stages: int) -> None:
    cut = stages * config.rounds
    if stages > 1 and not config.scan_layers:
        raise ConfigError(f"a pipeline of {stages} stages wants model.scan_layers=true")
    if config.depth % cut:
        near = max(1, round(config.depth / cut)) * cut
        of = f"{stages} stages of a pipeline in {config.rounds} rounds"
        raise ConfigError(f"model.depth {config.depth} does not divide over {of}; {near} would")


class Transformer(nn.Module):
    """tokens_BxL -> logits_BxLxV and the layers' routing; logits at t see tokens up to and including t.

    head: False gives x_BxLxD, what the head reads, in place of the logits.
    """

    config: Config

    @nn.compact
    def __call__(self, tokens_BxL: Array, head: bool = True) -> tuple[Array, moe.Routing | None]:
        c = self.config
        embed = Embed(c.vocab, c.width, name="embed")
        x_BxLxD = embed(tokens_BxL)
        _check_stages(c, places("stages"))
        block = remat.remat(Block, c.remat, c.scan_layers)
        if not c.scan_layers:
            layers = []
            for i in range(c.depth):
                x_BxLxD, layer = block(c, name=f"layer_{i}")(x_BxLxD)
                layers.append(layer)
            routing = jax.tree.map(lambda *x: jnp.stack(x), *layers)
        elif places("stages") == 1 or self.is_initializing():
            stack = _scanned(block, c.depth // c.rounds, "layers")
            stack = _scanned(stack, c.rounds, "rounds") if c.rounds > 1 else stack
            x_BxLxD, routing = stack(c, name="layers")(x_BxLxD)
        else:
            x_BxLxD, routing = _pipelined(c, self.variables["params"]["layers"], x_BxLxD, places("stages"))
        x_BxLxD = RMSNorm(name="final_norm")(x_BxLxD)
        if not head:
            return x_BxLxD, routing
        logits = embed.attend(x_BxLxD) if c.tied else Dense(c.vocab, ("embed", "vocab"), name="head")(x_BxLxD)
        return logits, routing


example = next_token.example
tokens_per_example = next_token.tokens_per_example


def init(config: Config, key: Array, batch: Batch) -> Variables:
    return Transformer(config).init(key, batch["tokens"][:, :-1])


def apply(config: Config, variables: Variables, tokens_BxL: Array) -> Array:
    """Next-token logits_BxLxV. Tokens and logits are in the order of `ring.ordered`."""
    return Transformer(config).apply(variables, tokens_BxL)[0]


def active_parameters(config: Config, boxed_params: Any) -> int:
    """Parameters that one token passes through."""
    return moe.active_parameters(boxed_params, config.top_k)


def idle(config: Config, batch: int) -> float:
    """Of the layers, as if there were nothing else."""
    stages = places("stages")
    return 0.0 if stages == 1 else bubble(stages, config.rounds, pieces_of(batch // places("batch"), stages))


def _total(
    config: Config, variables: Variables, inputs_BxL: Array, targets_BxL: Array
) -> tuple[Array, Array | float, dict[str, Array]]:
    x, routing = Transformer(config).apply(variables, inputs_BxL, head=config.loss_chunk == 0)
    if config.loss_chunk == 0:
        total = jnp.sum(cross_entropy(x, targets_BxL))
    else:
        params = variables["params"]
        kernel_DxV = params["embed"]["embedding"].T if config.tied else params["head"]["kernel"]
        total = chunked_cross_entropy(x, kernel_DxV, targets_BxL, config.loss_chunk)
    if routing is None:
        return total, 0.0, {}
    metrics = {name: jnp.mean(getattr(routing, name)) for name in ("balance", "z", "dropped")}
    added = config.balance_loss * metrics["balance"] + config.router_z_loss * metrics["z"]
    return total, added, {f"router/{name}": value for name, value in metrics.items()}


def objectives(config: Config) -> tuple[Objective, ...]:
    return next_token.objectives(_total, config)


def evaluate(config: Config, variables: Variables, batch: Batch, key: Array) -> tuple[Array, Array]:
    del key
    return next_token.evaluate(_total, config, variables, batch)


def sample(
    config: Config, variables: Variables, key: Array, prompt_BxL: Array, length: int, temperature: float = 1.0
) -> Array:
    """Continue each prompt by `length` tokens, seeing at most the last seq_len. Returns tokens_BxM, prompt included."""
    batch, start = prompt_BxL.shape
    buffer_BxM = jnp.pad(prompt_BxL, ((0, 0), (0, length)))
    window = min(config.seq_len, start + length)

    def step(buffer_BxM, i):
        begin = jnp.maximum(i - window, 0)
        seen_BxL = jax.lax.dynamic_slice(buffer_BxM, (0, begin), (batch, window))
        logits_BxLxV = apply(config, variables, seen_BxL)
        logits_BxV = jax.lax.dynamic_index_in_dim(logits_BxLxV, i - begin - 1, axis=1, keepdims=False)
        token_B = jax.random.categorical(jax.random.fold_in(key, i), logits_BxV / temperature)
        return jax.lax.dynamic_update_slice(buffer_BxM, token_B[:, None].astype(buffer_BxM.dtype), (0, i)), None

    buffer_BxM, _ = jax.lax.scan(step, buffer_BxM, jnp.arange(start, start + length))
    return buffer_BxM
