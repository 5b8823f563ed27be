"""The contract of a family: what a module in this folder must provide.

A family is a module of pure functions and one dial. Nothing outside this folder branches on a family's name.

    Config                          frozen dataclass of everything that defines the model
    SIZES                           a ladder of values for the dial, smallest first
    UNIT                            unit of `evaluate`, for example "nats/token"
    config(size) -> Config          the dial: one number gives the whole configuration
    at_size(config, size) -> Config the same model at another width: what the dial does to the width, and nothing else
    example(config)                 one example without its batch axis: {name: jax.ShapeDtypeStruct}
    tokens_per_example(config)      what one example counts for in the data budget D (1 for an image)
    init(config, key, batch)        variables {"params": ..., other collections}, parameters boxed with logical axes
    objectives(config)              a tuple of `Objective`; nearly all families have one
    evaluate(config, variables, batch, key) -> (total, weight)
                                    the law is fitted on sum(total) / sum(weight) over the held-out batches
    sample(config, variables, key, ...)   optional: something a person can look at
    active_parameters(config, boxed_params)   optional: parameters that one token passes through, if not all
    idle(config, batch)             optional: share of its arithmetic that serves nothing (a pipeline's bubble), for so
                                    many examples under the rules in force
    SPREADS_SEQUENCE                optional: True if the sequence may be spread over devices (`layers/ring.py`)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Variables = dict[str, Any]
Batch = dict[str, jax.Array]


class Aux(NamedTuple):
    """What a loss returns beside its scalar.

    metrics: scalars to log. state: the updated collections that are not parameters (batch statistics), or {}.
    """

    metrics: dict[str, jax.Array]
    state: dict[str, Any]


class Objective(NamedTuple):
    """One loss and the parameters that it trains.

    trains: top-level keys of variables["params"]; () means all of them.
    loss: (variables, batch, key, train) -> (scalar, Aux).
    """

    name: str
    trains: tuple[str, ...]
    loss: Callable[[Variables, Batch, jax.Array, bool], tuple[jax.Array, Aux]]
