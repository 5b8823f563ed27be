"""The batched solver: many small robust fits of one form, as one program in float64.

A problem is (weights [n], log losses [n], start theta [T]). Its coefficients start from an exact non-negative linear
solve, and coefficients and exponents are then refined together by a projected Newton method on

    sum_i w_i huber_delta(log L(x_i, y_i) - log loss_i).

With noise well above delta this objective is nearly an absolute value: its Hessian sees only the few runs within
delta, and Newton alone would jump about. So the damping matrix is that of iteratively reweighted least squares,
whose undamped step always descends; far away the step is the reweighted one, and at the end it is Newton's. Delta
itself comes down in stages from a smooth problem to the one asked for, which also serves L1 (delta = 1e-9).
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn.laws.forms import Array, Form

CHUNK = 256  # problems in one call: one shape, so one compilation, whatever is asked
MAX_STEPS = 100  # per stage of delta
GRID = 8  # points for each exponent in `profile_starts`
FIRST_DAMPING = 1.0
FIRST_DELTA = 0.1  # log-loss residuals are far smaller than this: the first stage is least squares


def stages(loss: str, delta: float) -> np.ndarray:
    """The deltas of the continuation for a loss: "huber", "l1" or "squared"."""
    if loss == "squared":
        return np.array([1e6])
    if loss == "l1":
        return np.geomspace(FIRST_DELTA, 1e-9, 5)
    return np.geomspace(max(FIRST_DELTA, delta), delta, 3)


def _positive_solve(a_PxP: Array, b_P: Array) -> Array:
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a_PxP), b_P)


def _nonnegative_solve(phi_KxN: Array, w_n: Array, loss_n: Array) -> Array:
    """argmin_{c >= 0} sum_i w_i (sum_k c_k phi_ki / loss_i - 1)^2, exactly: every support is tried."""
    k = phi_KxN.shape[0]
    rel_KxN = phi_KxN / loss_n[None, :]
    gram_KxK = (rel_KxN * w_n[None, :]) @ rel_KxN.T
    gram_KxK = gram_KxK + 1e-12 * jnp.trace(gram_KxK) * jnp.eye(k)
    rhs_K = rel_KxN @ w_n
    supports_SxK = np.array(list(itertools.product([0.0, 1.0], repeat=k))[1:])

    def on_support(m_K):
        c_K = _positive_solve(gram_KxK * m_K[:, None] * m_K[None, :] + jnp.diag(1.0 - m_K), m_K * rhs_K)
        cost = c_K @ gram_KxK @ c_K - 2.0 * rhs_K @ c_K
        return c_K, jnp.where(jnp.all(c_K >= 0.0), cost, jnp.inf)

    c_SxK, cost_S = jax.vmap(on_support)(supports_SxK)
    return jnp.take(c_SxK, jnp.argmin(cost_S), axis=0)


def _quadratic(form: Form, p_P: Array, w_n: Array, t_n: Array, x_n: Array, y_n: Array, delta: Array):
    """The objective at p with its gradient [P], Hessian [P, P] and reweighted-least-squares metric [P, P].

    The law is linear in its coefficients, so that of all second derivatives only those of the basis are needed.
    """
    k = len(form.coefficients)
    c_K, theta_T = p_P[:k], p_P[k:]
    basis = functools.partial(form.basis, x_n=x_n, y_n=y_n)
    phi_KxN = basis(theta_T)
    d_KxNxT = jax.jacfwd(basis)(theta_T)
    dd_KxNxTxT = jax.jacfwd(jax.jacfwd(basis))(theta_T)

    law_n = jnp.maximum(c_K @ phi_KxN, 1e-12)
    r_n = jnp.log(law_n) - t_n
    psi_n = jnp.clip(r_n, -delta, delta)
    j_PxN = jnp.concatenate([phi_KxN, jnp.einsum("k,knt->tn", c_K, d_KxNxT)]) / law_n[None, :]

    pull_n = w_n * psi_n
    mixed_KxT = jnp.einsum("knt,n->kt", d_KxNxT, pull_n / law_n)
    exponents_TxT = jnp.einsum("k,knst,n->st", c_K, dd_KxNxTxT, pull_n / law_n)
    bend_PxP = jnp.block([[jnp.zeros((k, k)), mixed_KxT], [mixed_KxT.T, exponents_TxT]])
    inside_n = jnp.where(jnp.abs(r_n) <= delta, 1.0, 0.0)
    hessian_PxP = (j_PxN * (w_n * inside_n - pull_n)[None, :]) @ j_PxN.T + bend_PxP
    metric_PxP = (j_PxN * (w_n * delta / jnp.maximum(jnp.abs(r_n), delta))[None, :]) @ j_PxN.T
    return jnp.sum(w_n * psi_n * (r_n - 0.5 * psi_n)), j_PxN @ pull_n, hessian_PxP, metric_PxP


def _newton(form: Form, p_P: Array, w_n: Array, t_n: Array, x_n: Array, y_n: Array, delta: Array):
    """Minimises one problem at one delta from p. Returns (p, objective)."""
    k = len(form.coefficients)
    low_P = jnp.concatenate([jnp.zeros(k), jnp.asarray(form.lower)])
    high_P = jnp.concatenate([jnp.full(k, jnp.inf), jnp.asarray(form.upper)])

    def body(state):
        step, damping, tried_P, p_P, best, _ = state
        tried = _quadratic(form, tried_P, w_n, t_n, x_n, y_n, delta)
        better = tried[0] < best[0]
        damping = jnp.where(better, jnp.maximum(damping / 5.0, 1e-9), damping * 7.0)
        p_P, best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (tried_P, tried), (p_P, best))
        value, gradient_P, hessian_PxP, metric_PxP = best

        # Exponents and coefficients that a bound holds stay there; the floor keeps a column of zeros solvable.
        held_P = ((p_P <= low_P) & (gradient_P > 0)) | ((p_P >= high_P) & (gradient_P < 0))
        free_P = jnp.where(held_P, 0.0, 1.0)
        diagonal_P = jnp.diag(metric_PxP)
        floor_P = 1e-9 * diagonal_P + 1e-14 * jnp.sum(diagonal_P)
        matrix_PxP = hessian_PxP + damping * (metric_PxP + jnp.diag(floor_P))
        matrix_PxP = matrix_PxP * free_P[:, None] * free_P[None, :] + jnp.diag(1.0 - free_P)
        # An indefinite matrix gives nan here, which is never better and so raises the damping.
        move_P = _positive_solve(matrix_PxP, free_P * gradient_P)
        tried_P = jnp.clip(p_P - move_P, low_P, high_P)
        expected = jnp.abs(gradient_P @ (tried_P - p_P))
        done = (expected <= 1e-13 * value) | (damping > 1e9) | (value <= 1e-26)
        return step + 1, damping, tried_P, p_P, best, done

    def unfinished(state):
        return (state[0] < MAX_STEPS) & ~state[-1]

    size = len(p_P)
    nothing = (jnp.asarray(jnp.inf), jnp.zeros(size), jnp.eye(size), jnp.eye(size))
    state = jax.lax.while_loop(unfinished, body, (0, jnp.asarray(FIRST_DAMPING), p_P, p_P, nothing, jnp.asarray(False)))
    return state[3], state[4][0]


@functools.partial(jax.jit, static_argnames="form")
def _solve_chunk(form: Form, theta_CxT: Array, w_CxN: Array, t_CxN: Array, x_n: Array, y_n: Array, deltas: Array):
    def one(theta_T, w_n, t_n):
        c_K = _nonnegative_solve(form.basis(theta_T, x_n, y_n), w_n, jnp.exp(t_n))

        def stage(p_P, delta):
            return _newton(form, p_P, w_n, t_n, x_n, y_n, delta)

        p_P, values = jax.lax.scan(stage, jnp.concatenate([c_K, theta_T]), deltas)
        return p_P, values[-1]

    return jax.vmap(one)(theta_CxT, w_CxN, t_CxN)


def profile_starts(form: Form, w_RxN: np.ndarray, t_n: np.ndarray, x_n: np.ndarray, y_n: np.ndarray) -> np.ndarray:
    """For each row of weights, the exponents [R, T] on a grid over all their range that fit best by least squares.

    The coefficients are solved for at each point of the grid, so this is a global search of what is left. The products
    of the basis are shared by all the rows: the search is one matrix product.
    """
    k = len(form.coefficients)
    levels = ((np.arange(GRID) + 0.5) / GRID) ** 2  # exponents are small more often than large
    axes = (low + (high - low) * levels for low, high in form.exponents.values())
    theta_GxT = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=1)
    rel_GxKxN = np.stack([form.basis(theta, x_n, y_n) for theta in theta_GxT]) / np.exp(t_n)
    rhs_RxGxK = np.tensordot(w_RxN, rel_GxKxN, axes=(1, 2))
    gram_RxGxKxK = np.tensordot(w_RxN, rel_GxKxN[:, :, None] * rel_GxKxN[:, None, :], axes=(1, 3))
    ridge_RxG = 1e-10 * np.trace(gram_RxGxKxK, axis1=-2, axis2=-1)
    c_RxGxK = np.linalg.solve(gram_RxGxKxK + ridge_RxG[..., None, None] * np.eye(k), rhs_RxGxK[..., None])[..., 0]
    explained_RxG = np.sum(rhs_RxGxK * c_RxGxK, axis=-1)
    # A negative coefficient is no law; where all points have one, the optimum is at a bound and any start will do.
    explained_RxG = np.where(np.all(c_RxGxK >= 0, axis=-1), explained_RxG, explained_RxG - 1e6)
    return theta_GxT[explained_RxG.argmax(axis=1)]


def solve(
    form: Form, theta: np.ndarray, w: np.ndarray, t: np.ndarray, x: np.ndarray, y: np.ndarray, deltas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solves many problems.

    Args:
      form: the law.
      theta: start of the exponents of each problem [R, T].
      w: weight of each run in each problem [R, n]; 0 leaves a run out.
      t: centred log losses [n], shared by all the problems.
      x, y: centred log params and log tokens [n].
      deltas: stages of the continuation (`stages`).

    Returns:
      parameters [R, P], coefficients first, for centred variables; objectives [R].
    """
    count = len(theta)
    padded = -(-count // CHUNK) * CHUNK
    rows = np.minimum(np.arange(padded), count - 1)
    t_CxN = np.tile(t, (CHUNK, 1))
    results = []
    with jax.enable_x64(True):
        shared = jax.device_put((t_CxN, x, y, deltas))
        for chunk in rows.reshape(-1, CHUNK):
            theta_C, w_C = jax.device_put((theta[chunk], w[chunk]))
            results.append(_solve_chunk(form, theta_C, w_C, *shared))
        results = jax.device_get(results)
    p, value = (np.concatenate(parts)[:count] for parts in zip(*results, strict=True))
    return p, value
