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

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn.laws.forms import TINY, Array, Form

ELEMENTS = 8192  # runs times problems in one call: what fits a core's cache
STEPS = 6  # Newton steps of a call; problems that need more are packed anew, so that none waits for the slowest
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
      noise: standard deviation of the log loss of each run [n], by which runs are weighted; None where it is equal.
    """

    form: Form
    x: tuple[np.ndarray, ...]
    t: np.ndarray
    at: tuple[float, ...]
    deltas: np.ndarray
    tau: float = 0.5
    linear: bool = False
    noise: np.ndarray | None = None

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds [P], coefficients first."""
        k = len(self.form.free)
        low, high = self.form.bounds(dict(zip(self.form.columns, self.x, strict=True)), self.at)
        return np.concatenate([np.zeros(k), low]), np.concatenate([np.full(k, np.inf), high])

    def take(self, rows: np.ndarray | slice) -> Problem:
        """The problem of the runs that an index, a slice or a boolean array selects, with the same centres."""
        noise = None if self.noise is None else self.noise[rows]
        return dataclasses.replace(self, x=tuple(column[rows] for column in self.x), t=self.t[rows], noise=noise)

    @functools.cached_property
    def weights(self) -> np.ndarray | float:
        """Weight of each run [n] in the objective, of mean 1."""
        if self.noise is None:
            return 1.0
        psi2_n, slope_n = huber_moments(self.noise, self.deltas[-1])
        return slope_n / psi2_n / np.mean(slope_n / psi2_n)

    def weighted(self, w: np.ndarray) -> np.ndarray:
        """Weights [..., n] times those of the runs; many runs are not copied for nothing."""
        return w if self.noise is None else w * self.weights

    @functools.cached_property
    def relative(self) -> np.ndarray | float:
        """Noise of each run [n] over what would give the same weight of least squares to all."""
        return 1.0 if self.noise is None else self.noise * math.sqrt(np.mean(self.noise**-2.0))


def huber_moments(noise: np.ndarray | float, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """E psi^2 and E psi' of the Huber loss under Gaussian noise of a standard deviation (Huber 1964).

    An estimate from runs of unequal noise varies least with weights E psi' / E psi^2: 1 / noise^2 for least squares,
    1 / noise for absolute values.
    """
    k = delta / np.asarray(noise, np.float64)
    inside, beyond = (np.vectorize(f, otypes=[float])(k / math.sqrt(2)) for f in (math.erf, math.erfc))
    bell = math.sqrt(2 / math.pi) * np.exp(-(k**2) / 2)
    return noise**2 * (inside - k * bell + k**2 * beyond), inside


class _Task(NamedTuple):
    """What all problems share: all that is asked for enters as numbers of one shape, as compiling is dear."""

    at: tuple[Array, ...]
    deltas_S: Array  # STAGES of them, of which `stages` count
    stages: Array
    tolerance: Array
    tau: Array
    low_P: Array
    high_P: Array
    hold_P: Array


class _Runs(NamedTuple):
    """The runs of one problem: weights, log losses, and centred logarithms of the columns; each [n]."""

    w: Array
    t: Array
    x: tuple[Array, ...]


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


def _task(problem: Problem, hold: np.ndarray | None = None, tolerance: float = 0.0) -> _Task:
    low_P, high_P = problem.bounds
    hold_P = np.zeros(len(low_P), bool) if hold is None else hold
    count = len(problem.deltas)
    deltas_S = np.pad(problem.deltas, (0, STAGES - count), "edge")
    return _Task(problem.at, deltas_S, count, tolerance, problem.tau, low_P, high_P, hold_P)


def _room(size: int) -> int:
    """The next of a few sizes, eight to an octave, so that tables of like sizes share programs."""
    step = max(8, 2 ** (size.bit_length() - 4))
    return -(-size // step) * step


def _packed(problem: Problem, w: np.ndarray, shift: np.ndarray | None) -> np.ndarray:
    """The runs that count in each problem, as `_Runs` [R, 2 + columns, M], filled up with runs of weight 0.

    A bootstrap table holds about 63 % of the runs, some of them several times.
    """
    counts = np.count_nonzero(w, axis=1)
    rows, columns = np.nonzero(w)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    index_RxM = np.zeros((len(w), _room(int(counts.max(initial=1)))), np.int64)
    index_RxM[rows, place] = columns
    w_RxM = np.where(np.arange(index_RxM.shape[1]) < counts[:, None], np.take_along_axis(w, index_RxM, axis=1), 0.0)
    t_RxM = problem.t[index_RxM] if shift is None else np.take_along_axis(problem.t + shift, index_RxM, axis=1)
    return np.stack([w_RxM, t_RxM, *(column[index_RxM] for column in problem.x)], axis=1)


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


def _quadratic(form: Form, linear: bool, p_P: Array, runs: _Runs, task: _Task, delta: Array) -> _Quadratic:
    """The law is linear in its coefficients, so that of all second derivatives only those of the basis are needed."""
    k, exponents = len(form.free), len(form.exponents)
    c_K, theta_T = p_P[:k], p_P[k:]

    def basis(theta_T):
        phi_KxN, offset_n, q = form.basis(theta_T, runs.x, task.at)
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
    r_n = q * log_n - runs.t
    scale_n = jnp.ones_like(r_n)  # of the residual beside its logarithm
    if linear:
        scale_n = jnp.exp(q * log_n)
        r_n = scale_n - jnp.exp(runs.t)

    w_n = runs.w * jnp.where(r_n < 0, 2.0 * task.tau, 2.0 - 2.0 * task.tau)
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


def _advance(form: Form, linear: bool, task: _Task, runs: _Runs, state: _State) -> _State:
    """One Newton step of one problem; nothing happens to a finished one."""
    last = task.stages
    delta = task.deltas_S[jnp.minimum(state.stage, last - 1).astype(int)]
    tried = _quadratic(form, linear, state.tried_P, runs, task, delta)
    better = tried.value < state.at_p.value
    damping = jnp.where(better, jnp.maximum(state.damping / 5.0, 1e-9), state.damping * 7.0)
    new, old = (state.tried_P, tried), (state.p_P, state.at_p)
    p_P, at_p = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)

    # Exponents and coefficients that a bound holds stay there; the floor keeps a column of zeros solvable.
    gradient_P = at_p.gradient_P
    held_P = ((p_P <= task.low_P) & (gradient_P >= 0)) | ((p_P >= task.high_P) & (gradient_P <= 0)) | task.hold_P
    free_P = jnp.where(held_P, 0.0, 1.0)
    diagonal_P = jnp.diag(at_p.metric_PxP)
    floor_P = 1e-9 * diagonal_P + 1e-14 * jnp.sum(diagonal_P)
    matrix_PxP = at_p.hessian_PxP + damping * (at_p.metric_PxP + jnp.diag(floor_P))
    matrix_PxP = matrix_PxP * free_P[:, None] * free_P[None] + jnp.diag(1.0 - free_P)
    # An indefinite matrix gives nan here, which is never better and so raises the damping.
    tried_P = jnp.clip(p_P - solve_positive(matrix_PxP, free_P * gradient_P), task.low_P, task.high_P)
    expected = jnp.abs(gradient_P @ (tried_P - p_P))
    done = (expected <= task.tolerance * at_p.value) | (damping > 1e9) | (at_p.value <= 1e-26)
    # The next stage begins by evaluating where this one ended, which anything accepts.
    fresh = at_p._replace(value=jnp.asarray(jnp.inf))
    after = _State(p_P, p_P, fresh, jnp.asarray(FIRST_DAMPING), state.stage + 1)
    final = after._replace(at_p=at_p)
    going = _State(p_P, tried_P, at_p, damping, state.stage)
    after = jax.tree.map(lambda a, b: jnp.where(state.stage + 1 >= last, a, b), final, after)
    result = jax.tree.map(lambda a, b: jnp.where(done, a, b), after, going)
    return jax.tree.map(lambda a, b: jnp.where(state.stage >= last, a, b), state, result)


def _runs(runs_QxN: Array) -> _Runs:
    return _Runs(runs_QxN[0], runs_QxN[1], tuple(runs_QxN[2:]))


def _unpacked(state_F: Array, size: int) -> _State:
    """A state of P = size parameters from its numbers, as they travel: one array costs far less to pass than ten."""
    shapes = _State((size,), (size,), _Quadratic((), (size,), (size, size), (size, size)), (), ())
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: type(x) is tuple)
    parts = jnp.split(state_F, np.cumsum([math.prod(shape) for shape in leaves])[:-1])
    return tree.unflatten(part.reshape(shape) for part, shape in zip(parts, leaves, strict=True))


@functools.partial(jax.jit, static_argnames=("form", "linear"))
def _steps(form: Form, linear: bool, task: _Task, runs_CxQxN: Array, states_CxF: Array) -> Array:
    def steps(runs_QxN, state_F):
        advance = lambda _, state: _advance(form, linear, task, _runs(runs_QxN), state)  # noqa: E731
        state = jax.lax.fori_loop(0, STEPS, advance, _unpacked(state_F, len(task.low_P)))
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(state)])

    return jax.vmap(steps)(runs_CxQxN, states_CxF)


@functools.partial(jax.jit, static_argnames=("form", "linear"))
def _values(form: Form, linear: bool, task: _Task, runs_CxQxN: Array, p_CxGxP: Array) -> Array:
    def value(runs_QxN, p_P):
        return _quadratic(form, linear, p_P, _runs(runs_QxN), task, task.deltas_S[-1]).value

    return jax.vmap(jax.vmap(value, (None, 0)))(runs_CxQxN, p_CxGxP)


@contextlib.contextmanager
def _x64() -> Iterator[None]:
    # Both settings belong to a thread, and this runs in several.
    with jax.enable_x64(True), jax.transfer_guard("allow"):
        yield


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
    task, runs = _task(problem, hold, tolerance), _packed(problem, problem.weighted(w), shift)
    p = np.clip(p, task.low_P, task.high_P)
    nothing = [np.full((count, 1), np.inf), np.zeros((count, size + 2 * size**2))]
    states_RxF = np.concatenate([p, p, *nothing, np.full((count, 1), FIRST_DAMPING), np.zeros((count, 1))], axis=1)
    for _ in range(ROUNDS):
        todo = np.flatnonzero(states_RxF[:, -1] < task.stages)
        if not len(todo):
            break
        states_RxF[todo] = _in_chunks(_steps, problem, task, runs, states_RxF, todo)
    return states_RxF[:, :size].copy(), states_RxF[:, 2 * size].copy()


def objective(problem: Problem, p: np.ndarray, w: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
    """The objective [R, G] at parameters [R, G, P], for weights and shifts as in `solve`."""
    return _in_chunks(
        _values, problem, _task(problem), _packed(problem, problem.weighted(w), shift), p, np.arange(len(p))
    )


def _in_chunks(function, problem: Problem, task: _Task, runs: np.ndarray, rows: np.ndarray, todo: np.ndarray):
    """function(form, linear, task, runs[todo], rows[todo]), in chunks that a cache holds, a thread a core."""
    chunk = int(2 ** np.clip(np.round(np.log2(ELEMENTS / runs.shape[2])), 0, 9))
    with _x64():
        task = jax.device_put(task)

    def run(piece):
        # Rows that fill up the last chunk repeat its first one.
        row = np.concatenate([piece, np.full(chunk - len(piece), piece[0])])
        with _x64():
            return np.asarray(function(problem.form, problem.linear, task, runs[row], rows[row]))[: len(piece)]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(run, (todo[i : i + chunk] for i in range(0, len(todo), chunk)))))


@functools.partial(jax.jit, static_argnames=("form", "linear"))
def _linear_sums(form: Form, linear: bool, at: tuple, theta_GxT: Array, t_n: Array, x: tuple[Array, ...]) -> Array:
    """For each theta the products [G, Q, n], run by run, that a least-squares fit of the coefficients needs.

    Q: products of pairs of terms, of terms with the target, of the target with itself, and terms alone.
    """

    def one(theta_T):
        phi_KxN, offset_n, q = form.basis(theta_T, x, at)
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
    w = problem.weighted(w)
    n = len(problem.t)
    # Runs of weight 0 fill the table up, so that tables of like sizes share a program.
    x, t = (jax.tree.map(lambda a: np.pad(a, (0, _room(n) - n), "edge"), a) for a in (problem.x, problem.t))
    pieces = max(1, min(count, PRODUCTS // (t.size * (k + 2) ** 2)))
    sums = []
    for start in range(0, count, pieces):
        some = np.resize(theta[start : start + pieces], (pieces, theta.shape[1]))
        with _x64():
            products_GxQxN = np.asarray(_linear_sums(problem.form, problem.linear, problem.at, some, t, x))
        products_GxQxN = products_GxQxN[: count - start, :, :n]
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
    with _x64():
        c_KxM, cost_M = (np.asarray(a)[..., :size] for a in _best_coefficients(*padded))
    theta_RxGxT = np.broadcast_to(theta, (rows, *theta.shape))
    return np.concatenate([c_KxM.reshape(k, count, rows).T, theta_RxGxT], axis=2), cost_M.reshape(count, rows).T
