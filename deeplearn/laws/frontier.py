"""Many laws at once along their compute-optimal frontiers, C = 6 N D."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from deeplearn.laws.allocation import optimal_params
from deeplearn.laws.forms import TINY, Form


def check(form: Form) -> None:
    """Raises ValueError for a law without a frontier."""
    split = form.allocation is not None and set(form.columns) == {"params", "tokens"}
    if not split and form.columns != ("flops",):
        raise ValueError(
            f"the {form.name} law has no compute-optimal frontier: it reads {', '.join(form.columns)}, where it must "
            "say how params and tokens alone trade off, or read flops alone"
        )


def log_params(form: Form, at: tuple[float, ...], p_RxP: np.ndarray, log_flops_RxF: np.ndarray) -> np.ndarray:
    """log N [R, F] that is optimal for each law at budgets [R, F] (or [1, F]), at least one parameter and one token.

    Args:
      form: the law.
      at: centre of each of its columns and of log loss (`Problem.at`).
      p_RxP: parameters of R laws over centred variables.
      log_flops_RxF: logarithm of training FLOPs.
    """
    values = {**dict(form.pinned), **{name: v[:, None] for name, v in form.original(p_RxP, at).items()}}
    a, b = form.allocation(SimpleNamespace(**values))
    log_tokens_if_one = log_flops_RxF - np.log(6.0)
    n_RxF = optimal_params(values["A"], values["B"], a, b, np.exp(log_flops_RxF))
    # A law with neither term does not care.
    n_RxF = np.where(np.isnan(n_RxF), np.exp(log_tokens_if_one / 2), n_RxF)
    with np.errstate(divide="ignore"):
        return np.clip(np.log(n_RxF), 0.0, log_tokens_if_one)


def log_loss(form: Form, at: tuple[float, ...], p_RxP: np.ndarray, logs: dict[str, np.ndarray]) -> np.ndarray:
    """log loss [R, F] of R laws, each at values of its own: logarithm of each column, [R, F] or [1, F]."""
    k = len(form.free)
    x = tuple(logs[name] - mean + np.zeros((len(p_RxP), 1)) for name, mean in zip(form.columns, at, strict=False))
    phi_KxRxF, offset_RxF, q = form.basis(p_RxP.T[k:, :, None], x, at)
    total_RxF = offset_RxF + np.sum(p_RxP.T[:k, :, None] * phi_KxRxF, axis=0)
    return q * np.log(np.maximum(total_RxF, TINY)) + at[-1]


def log_frontier(form: Form, at: tuple[float, ...], p_RxP: np.ndarray, log_flops_RxF: np.ndarray) -> np.ndarray:
    """log loss [R, F] of each law at its own best use of budgets [R, F] or [1, F]. Raises as `check`."""
    check(form)
    if form.columns == ("flops",):
        return log_loss(form, at, p_RxP, {"flops": log_flops_RxF})
    log_n_RxF = log_params(form, at, p_RxP, log_flops_RxF)
    return log_loss(form, at, p_RxP, {"params": log_n_RxF, "tokens": log_flops_RxF - np.log(6.0) - log_n_RxF})
