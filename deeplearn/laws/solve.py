"""The batched solver: many small robust fits of one form, as one program in float64.

A problem is (weights [n], start [P]) of the runs that all problems share. Coefficients start from an exact linear
solve, and coefficients and exponents are then refined together by a projected Newton method on

    sum_i w_i a(r_i) huber_delta(r_i),    r_i = log L(x_i) - log loss_i,    a(r) = 2 tau if r < 0 else 2 (1 - tau).

With noise well above delta this objective is nearly an absolute value: its Hessian sees only the few runs within
delta, and Newton alone would jump about. So the damping matrix is that of iteratively reweighted least squares,
whose undamped step always descends; far away the step is the reweighted one, and at the end it is Newton's. Delta
itself comes down in stages from a smooth problem to the one asked for, which also serves L1 (delta = 1e-9).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn.laws.forms import TINY, Array, Form

ELEMENTS = 8192  # runs times problems in one call: what fits a core's cache
STEPS = 8  # Newton steps of a call; problems that need more are packed anew, so that none waits for the slowest
ROUNDS = 60
PRODUCTS = 2**24  # numbers that `profile` holds at once
HUGE = 1e100
STAGES = 5  # the most that `stages` gives
FIRST_DAMPING = 1.0
FIRST_DELTA = 0.1  # log-loss residuals are far smaller than this: the first stage is least squares


@dataclasses.dataclass(frozen=True)
class Problem:
    """Runs and objective that a batch of fits shares.

    Attributes:
      form: the law.
      x: centred logarithms of the form's columns, each [n].
      t: centred log losses [n].
      at: centre of each column and of log loss.
      deltas: stages of the continuation (`stages`).
      tau: quantile that is fitted: .5 treats both sides alike.
      linear: compare losses rather than their logarithms.
    """

    form: Form
    x: tuple[np.ndarray, ...]
    t: np.ndarray
    at: tuple[float, ...]
    deltas: np.ndarray
    tau: float = 0.5
    linear: bool = False

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [P], coefficients first."""
        k = len(self.form.free)
        low, high = self.form.bounds(dict(zip(self.form.columns, self.x, strict=True)), self.at)
        return np.concatenate([np.zeros(k), low]), np.concatenate([np.full(k, np.inf), high])


class _Runs(NamedTuple):
    x: tuple[Array, ...]
    at: tuple[Array, ...]
    deltas_S: Array  # STAGES of them, of which `stages` count
    stages: Array
    tolerance: Array
    tau: Array
    low_P: Array
    high_P: Array
    hold_P: Array


class _Quadratic(NamedTuple):
    """value, gradient [P], Hessian [P, P] and reweighted-least-squares metric [P, P] of the objective at a point."""

    value: Array
    gradient_P: Array
    hessian_PxP: Array
    metric_PxP: Array


class _State(NamedTuple):
    """p: best so far. tried: to be evaluated next. stage: counts up to the number of deltas, where it is finished."""

    p_P: Array
    tried_P: Array
    at_p: _Quadratic
    damping: Array
    stage: Array


def _runs(problem: Problem, hold: np.ndarray | None = None, tolerance: float = 0.0) -> _Runs:
    low_P, high_P = problem.bounds
    hold_P = np.zeros(len(low_P), bool) if hold is None else hold
    count = len(problem.deltas)
    # All that is asked for enters as numbers of one shape: compiling takes longer than solving.
    deltas_S = np.pad(problem.deltas, (0, STAGES - count), "edge")
    return _Runs(problem.x, problem.at, deltas_S, count, tolerance, problem.tau, low_P, high_P, hold_P)


def _room(size: int) -> int:
    """The next of a few sizes, four to an octave."""
    step = max(8, 2 ** (size.bit_length() - 3))
    return -(-size // step) * step


def _padded(problem: Problem, w: np.ndarray, shift: np.ndarray | None) -> tuple[Problem, np.ndarray, np.ndarray | None]:
    """The same with runs of weight 0 added up to one of a few sizes, so that tables of like sizes share programs."""
    extra = _room(len(problem.t)) - len(problem.t)
    if not extra:
        return problem, w, shift
    x, t = tuple(np.pad(column, (0, extra), "edge") for column in problem.x), np.pad(problem.t, (0, extra), "edge")
    w, shift = (None if a is None else np.pad(a, ((0, 0), (0, extra))) for a in (w, shift))
    return dataclasses.replace(problem, x=x, t=t), w, shift


def stages(loss: str, delta: float) -> np.ndarray:
    """The deltas of the continuation for a loss: "huber", "l1", "quantile" or "squared"."""
    if loss == "squared":
        return np.array([1e6])
    if loss == "huber":
        return np.geomspace(max(FIRST_DELTA, delta), delta, 3)
    return np.geomspace(FIRST_DELTA, 1e-9, 5)


def solve_positive(a: Array, b_P: Array) -> Array:
    """x [P] of A x = b for a positive definite A [P, P]; nan if it is not. Unrolled: P is small, and lanes are many."""
    size = b_P.shape[0]
    low: list[list[Array]] = []
    for i in range(size):
        row: list[Array] = []
        for j in range(i + 1):
            rest = a[i, j] - sum(row[m] * (low[j] if j < i else row)[m] for m in range(j))
            row.append(jnp.sqrt(rest) if i == j else rest / low[j][j])
        low.append(row)
    y: list[Array] = []
    for i in range(size):
        y.append((b_P[i] - sum(low[i][m] * y[m] for m in range(i))) / low[i][i])
    x: list[Array] = [None] * size
    for i in reversed(range(size)):
        x[i] = (y[i] - sum(low[m][i] * x[m] for m in range(i + 1, size))) / low[i][i]
    return jnp.stack(x)


def _quadratic(form: Form, linear: bool, p_P: Array, w_n: Array, t_n: Array, runs: _Runs, delta: Array) -> _Quadratic:
    """The law is linear in its coefficients, so that of all second derivatives only those of the basis are needed."""
    k, exponents = len(form.free), len(form.exponents)
    c_K, theta_T = p_P[:k], p_P[k:]

    def basis(theta_T):
        phi_KxN, offset_n, q = form.basis(theta_T, runs.x, runs.at)
        return phi_KxN, offset_n + c_K @ phi_KxN, q

    # Forward derivatives, an exponent at a time: the runs stay the last axis, which is the one that is contiguous.
    axes = list(jnp.eye(exponents))
    first = [lambda theta_T, e=e: jax.jvp(basis, (theta_T,), (e,))[1] for e in axes]
    phi_KxN, f_n, q = basis(theta_T)
    # From empty arrays on, for a law without exponents.
    none = (jnp.zeros((0, *phi_KxN.shape)), jnp.zeros((0, *f_n.shape)), jnp.zeros(0))
    slopes = [jax.tree.map(lambda d: d[None], d(theta_T)) for d in first]
    phi_TxKxN, f_TxN, q_T = jax.tree.map(lambda *d: jnp.concatenate(d), none, *slopes)
    bends = {(i, j): jax.jvp(first[i], (theta_T,), (axes[j],))[1] for i in range(exponents) for j in range(i + 1)}
    bend = [[bends[max(i, j), min(i, j)] for j in range(exponents)] for i in range(exponents)]

    f_n = jnp.maximum(f_n, TINY)
    log_n = jnp.log(f_n)
    slope_PxN = jnp.concatenate([phi_KxN, f_TxN]) / f_n[None]  # of log f
    q_P = jnp.concatenate([jnp.zeros(k), q_T])
    j_PxN = q * slope_PxN + (0.0 if form.power is None else q_P[:, None] * log_n[None])
    r_n = q * log_n - t_n
    scale_n = jnp.ones_like(r_n)  # of the residual beside its logarithm
    if linear:
        scale_n = jnp.exp(q * log_n)
        r_n = scale_n - jnp.exp(t_n)

    w_n = w_n * jnp.where(r_n < 0, 2.0 * runs.tau, 2.0 - 2.0 * runs.tau)
    psi_n = jnp.clip(r_n, -delta, delta)
    inside_n = jnp.where(jnp.abs(r_n) <= delta, 1.0, 0.0)
    pull_n = w_n * psi_n * scale_n
    # Second derivatives of q log f: of the basis, of the logarithm and of the power.
    share_n = pull_n / f_n
    mixed_TxK = phi_TxKxN @ share_n
    bend_TxT = jnp.array([[f_n @ share_n for _, f_n, _ in row] for row in bend]).reshape(exponents, exponents)
    bend_PxP = q * jnp.block([[jnp.zeros((k, k)), mixed_TxK.T], [mixed_TxK, bend_TxT]])
    inner_n = w_n * inside_n * scale_n**2 + (pull_n if linear else 0.0)
    outer_n = w_n * scale_n**2 * delta / jnp.maximum(jnp.abs(r_n), delta)
    # Else each product below would compute all of this again.
    j_PxN, inner_n, outer_n, pull_n = jax.lax.optimization_barrier((j_PxN, inner_n, outer_n, pull_n))
    if form.power is None:
        both_QxN = jnp.concatenate([j_PxN * (inner_n - pull_n)[None], j_PxN * outer_n[None]])
        hessian_PxP, metric_PxP = jnp.split(j_PxN @ both_QxN.T, 2, axis=1)
        hessian_PxP = hessian_PxP + bend_PxP
    else:
        q_TxT = jnp.array([[q for _, _, q in row] for row in bend])
        drift_P = slope_PxN @ pull_n
        turn_PxP = jnp.zeros_like(bend_PxP).at[k:, k:].set(q_TxT * (pull_n @ log_n))
        curve_PxP = bend_PxP + q_P[:, None] * drift_P[None] + drift_P[:, None] * q_P[None] + turn_PxP
        hessian_PxP = (j_PxN * inner_n[None]) @ j_PxN.T - q * (slope_PxN * pull_n[None]) @ slope_PxN.T + curve_PxP
        metric_PxP = (j_PxN * outer_n[None]) @ j_PxN.T
    return _Quadratic(jnp.sum(w_n * psi_n * (r_n - 0.5 * psi_n)), j_PxN @ pull_n, hessian_PxP, metric_PxP)


def _advance(form: Form, linear: bool, w_n: Array, t_n: Array, runs: _Runs, state: _State) -> _State:
    """One Newton step of one problem; nothing happens to a finished one."""
    last = runs.stages
    delta = runs.deltas_S[jnp.minimum(state.stage, last - 1)]
    tried = _quadratic(form, linear, state.tried_P, w_n, t_n, runs, delta)
    better = tried.value < state.at_p.value
    damping = jnp.where(better, jnp.maximum(state.damping / 5.0, 1e-9), state.damping * 7.0)
    new, old = (state.tried_P, tried), (state.p_P, state.at_p)
    p_P, at_p = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)

    # Exponents and coefficients that a bound holds stay there; the floor keeps a column of zeros solvable.
    gradient_P = at_p.gradient_P
    held_P = ((p_P <= runs.low_P) & (gradient_P >= 0)) | ((p_P >= runs.high_P) & (gradient_P <= 0)) | runs.hold_P
    free_P = jnp.where(held_P, 0.0, 1.0)
    diagonal_P = jnp.diag(at_p.metric_PxP)
    floor_P = 1e-9 * diagonal_P + 1e-14 * jnp.sum(diagonal_P)
    matrix_PxP = at_p.hessian_PxP + damping * (at_p.metric_PxP + jnp.diag(floor_P))
    matrix_PxP = matrix_PxP * free_P[:, None] * free_P[None] + jnp.diag(1.0 - free_P)
    # An indefinite matrix gives nan here, which is never better and so raises the damping.
    tried_P = jnp.clip(p_P - solve_positive(matrix_PxP, free_P * gradient_P), runs.low_P, runs.high_P)
    expected = jnp.abs(gradient_P @ (tried_P - p_P))
    done = (expected <= runs.tolerance * at_p.value) | (damping > 1e9) | (at_p.value <= 1e-26)
    # The next stage begins by evaluating where this one ended, which anything accepts.
    fresh = at_p._replace(value=jnp.asarray(jnp.inf))
    after = _State(p_P, p_P, fresh, jnp.asarray(FIRST_DAMPING), state.stage + 1)
    final = after._replace(at_p=at_p)
    going = _State(p_P, tried_P, at_p, damping, state.stage)
    after = jax.tree.map(lambda a, b: jnp.where(state.stage + 1 >= last, a, b), final, after)
    result = jax.tree.map(lambda a, b: jnp.where(done, a, b), after, going)
    return jax.tree.map(lambda a, b: jnp.where(state.stage >= last, a, b), state, result)


@functools.partial(jax.jit, static_argnames=("form", "linear"))
def _steps(form: Form, linear: bool, w_CxN: Array, t_CxN: Array, runs: _Runs, states: _State) -> _State:
    def step(_, states):
        return jax.vmap(lambda w_n, t_n, state: _advance(form, linear, w_n, t_n, runs, state))(w_CxN, t_CxN, states)

    return jax.lax.fori_loop(0, STEPS, step, states)


@functools.partial(jax.jit, static_argnames=("form", "linear"))
def _values(form: Form, linear: bool, w_CxN: Array, t_CxN: Array, runs: _Runs, states) -> tuple[Array, Array]:
    def value(p_P, w_n, t_n):
        return _quadratic(form, linear, p_P, w_n, t_n, runs, runs.deltas_S[-1]).value

    return states[0], jax.vmap(value)(states[0], w_CxN, t_CxN)


def _x64(function, *args):
    # Both settings belong to a thread, and this runs in several.
    with jax.enable_x64(True), jax.transfer_guard("allow"):
        return jax.device_get(function(*args))


def solve(
    problem: Problem,
    p: np.ndarray,
    w: np.ndarray,
    shift: np.ndarray | None = None,
    tolerance: float = 1e-13,
    hold: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Solves many problems.

    Args:
      problem: the runs and the objective.
      p: start of each [R, P], coefficients first, over centred variables.
      w: weight of each run in each problem [R, n]; 0 leaves a run out.
      shift: what each problem adds to the log losses [R, n]; nothing if left out.
      tolerance: a stage ends when the next step would gain less than this share of the objective.
      hold: parameters [P] that stay where they start; none if left out.

    Returns:
      parameters [R, P]; objectives [R].
    """
    count, size = p.shape
    problem, w, shift = _padded(problem, w, shift)
    runs = _runs(problem, hold, tolerance)
    p = np.clip(p, runs.low_P, runs.high_P)
    nothing = _Quadratic(np.full(count, np.inf), np.zeros((count, size)), *np.zeros((2, count, size, size)))
    states = _State(p, p.copy(), nothing, np.full(count, FIRST_DAMPING), np.zeros(count, np.int64))
    for _ in range(ROUNDS):
        todo = np.flatnonzero(states.stage < len(problem.deltas))
        if not len(todo):
            break
        advance = functools.partial(_steps, problem.form, problem.linear)
        _in_chunks(advance, problem, w, shift, runs, states, todo)
    return states.p_P, states.at_p.value


def objective(problem: Problem, p: np.ndarray, w: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
    """The objective [R] at parameters [R, P], for weights and shifts as in `solve`."""
    problem, w, shift = _padded(problem, w, shift)
    runs = _runs(problem)
    found = (p, np.empty(len(p)))
    _in_chunks(
        functools.partial(_values, problem.form, problem.linear), problem, w, shift, runs, found, np.arange(len(p))
    )
    return found[1]


def _in_chunks(function, problem: Problem, w, shift, runs: _Runs, states, todo: np.ndarray) -> None:
    """states[todo] = function(w[todo], t[todo], runs, states[todo]), in chunks that a cache holds, a thread a core."""
    chunk = int(2 ** np.clip(np.round(np.log2(ELEMENTS / w.shape[1])), 0, 9))
    pieces = [todo[i : i + chunk] for i in range(0, len(todo), chunk)]

    def run(piece):
        # Rows that fill up the last chunk repeat its first one.
        row = np.concatenate([piece, np.full(chunk - len(piece), piece[0])])
        t = np.broadcast_to(problem.t, (chunk, len(problem.t))) if shift is None else problem.t + shift[row]
        return _x64(function, w[row], t, runs, jax.tree.map(lambda x: x[row], states))

    def store(piece, result):
        jax.tree.map(lambda x, y: x.__setitem__(piece, y[: len(piece)]), states, result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for piece, result in zip(pieces, pool.map(run, pieces), strict=True):
            store(piece, result)


@functools.partial(jax.jit, static_argnames=("form", "linear"))
def _linear_sums(form: Form, linear: bool, theta_GxT: Array, t_n: Array, runs: _Runs) -> Array:
    """For each theta the products [G, Q, n], run by run, that a least-squares fit of the coefficients needs.

    Q: products of pairs of terms, of terms with the target, of the target with itself, and terms alone.
    """

    def one(theta_T):
        phi_KxN, offset_n, q = form.basis(theta_T, runs.x, runs.at)
        target_n = jnp.exp(t_n / q)
        scale_n = q / target_n * (jnp.exp(t_n) if linear else 1.0)  # a residual over an error of the sum
        # Far from the runs a term may overflow: its square must not, nor its product with a weight of 0.
        rel_KxN = jnp.clip(phi_KxN * scale_n[None], -HUGE, HUGE)
        rest_n = jnp.clip((target_n - offset_n) * scale_n, -HUGE, HUGE)
        i, j = np.tril_indices(len(phi_KxN))
        return jnp.concatenate(
            [rel_KxN[i] * rel_KxN[j], rel_KxN * rest_n[None], rest_n[None] ** 2, rel_KxN, rest_n[None]]
        )

    return jax.lax.map(one, theta_GxT)


@jax.jit
def _best_coefficients(gram_KxKxM: Array, rhs_KxM: Array, rest_M: Array) -> tuple[Array, Array]:
    """c [K, M] and the value [M] of min_{c >= 0} c' gram c - 2 rhs' c + rest, exactly: every support is tried."""
    k = rhs_KxM.shape[0]
    best_c, best = jnp.zeros_like(rhs_KxM), rest_M
    ridge_M = 1e-12 * sum(gram_KxKxM[i, i] for i in range(k)) + 1e-300
    for support in range(1, 2**k):
        chosen = np.array([i for i in range(k) if support >> i & 1])
        a = gram_KxKxM[np.ix_(chosen, chosen)] + jnp.eye(len(chosen))[:, :, None] * ridge_M[None, None]
        c = solve_positive(a, rhs_KxM[chosen])
        cost = rest_M - sum(rhs_KxM[i] * c[m] for m, i in enumerate(chosen))
        better = jnp.all(c >= 0.0, axis=0) & (cost < best)
        best_c = jnp.where(better[None], jnp.zeros_like(rhs_KxM).at[chosen].set(c), best_c)
        best = jnp.where(better, cost, best)
    return best_c, best


def profile(
    problem: Problem, theta: np.ndarray, w: np.ndarray, shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with the coefficients solved for exactly, at each exponents [G, T] for each row of weights.

    The products of the basis are shared by all the rows, so that a search from many starts in many bootstrap tables is
    one matrix product.

    Args:
      problem: the runs.
      theta: exponents [G, T].
      w: weights [R, n].
      shift: what each problem adds to the log losses [R, n]; taken as small here.

    Returns:
      parameters [R, G, P]; objectives [R, G].
    """
    k, count, rows = len(problem.form.free), len(theta), len(w)
    problem, w, shift = _padded(problem, w, shift)
    runs = _runs(problem)
    pieces = max(1, min(count, PRODUCTS // (problem.t.size * (k + 2) ** 2)))
    sums = []
    for start in range(0, count, pieces):
        some = np.resize(theta[start : start + pieces], (pieces, theta.shape[1]))
        products_GxQxN = _x64(_linear_sums, problem.form, problem.linear, some, problem.t, runs)
        products_GxQxN = products_GxQxN[: count - start]
        first = products_GxQxN[:, : -k - 1] @ w.T
        if shift is not None:
            ahead = products_GxQxN[:, -k - 1 :] @ (w * shift).T
            first[:, -k - 1 : -1] += ahead[:, :k]
            first[:, -1] += 2 * ahead[:, k] + np.sum(w * shift**2, axis=1)
        sums.append(first)
    sums_QxGxR = np.concatenate(sums).swapaxes(0, 1)
    i, j = np.tril_indices(k)
    gram_KxKxM = np.empty((k, k, count * rows))
    gram_KxKxM[i, j] = gram_KxKxM[j, i] = sums_QxGxR[: len(i)].reshape(len(i), count * rows)
    rhs_KxM, rest_M = sums_QxGxR[len(i) : -1].reshape(k, count * rows), sums_QxGxR[-1].reshape(-1)
    size = count * rows
    more = _room(size) - size
    padded = (np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)], "edge") for a in (gram_KxKxM, rhs_KxM, rest_M))
    c_KxM, cost_M = _x64(_best_coefficients, *padded)
    c_KxM, cost_M = c_KxM[:, :size], cost_M[:size]
    theta_RxGxT = np.broadcast_to(theta, (rows, *theta.shape))
    return np.concatenate([c_KxM.reshape(k, count, rows).T, theta_RxGxT], axis=2), cost_M.reshape(count, rows).T
