"""What the annealing law reads off a learning-rate schedule."""

from __future__ import annotations

import numpy as np


def areas(rates: np.ndarray, decay: float = 0.999) -> dict[str, np.ndarray]:
    """Columns of the `annealing` law for every step of one run. Source: Tissue et al. 2024, arXiv 2408.11029.

    S1 is the sum of the learning rates so far; S2 the sum so far of a momentum of their falls,
    m_i = decay m_(i-1) + rate_(i-1) - rate_i.

    Args:
      rates: learning rate of each step [S] from the end of the warm-up on, positive; it never rises.
      decay: of the momentum, a step; the paper uses .99 to .999.

    Returns:
      area, S1 [S]; annealed_area, S1 + S2 [S]: positive from the first step on, while S2 itself begins at 0.

    Raises:
      ValueError: if the rates are not positive, or rise.
    """
    rates = np.asarray(rates, np.float64)
    falls = -np.diff(rates, prepend=rates[:1])
    if np.any(rates <= 0) or np.any(falls < 0):
        step = int(np.flatnonzero((rates <= 0) | (falls < 0))[0])
        raise ValueError(f"step {step}: the learning rate {rates[step]:g} is not positive, or above the step before it")
    momentum = np.empty_like(rates)
    carried = 0.0
    for i, fall in enumerate(falls):
        momentum[i] = carried = decay * carried + fall
    area = np.cumsum(rates)
    return {"area": area, "annealed_area": area + np.cumsum(momentum)}
