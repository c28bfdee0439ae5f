"""Codes of a kernel that change its layer's outputs least, by the second moments of its inputs.

A layer's outputs are inner products of inputs x with the columns of a matrix, one a channel. Where
a column w becomes q, the mean squared error of its outputs is (q - w)' H (q - w) with H the mean of
x x'. Matrices are (groups, d, channels) and H (groups, d, d): a group's channels read the same x.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfcompress.techniques.scales import levels

# Rows that are chosen for until all others are told, so that what changes stays in a CPU's cache.
_BLOCK = 32

# Parts of the scale that holds all weights, from which a channel's own is chosen.
_PARTS = np.linspace(1.0, 0.4, 13)


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """What a matrix q loses by channel: (q - target)' hessian (q - target).

    Attributes:
        target: (groups, d, channels), float64: what loses nothing.
        hessian: (groups, d, d), float64, symmetric and positive definite.
        free: bool, shaped as `target`, False where a weight has to be 0; None if none has to.
    """

    target: np.ndarray
    hessian: np.ndarray
    free: np.ndarray | None = None

    @classmethod
    def of(cls, weights, second, wanted=None, free=None, damp: float = 0.01) -> Quadratic:
        """The problem of a kernel.

        Args:
            weights: (groups, d, channels).
            second: the mean of x x', (groups, d, d), of the inputs x that the layer will get.
            wanted: the mean of x z', (groups, d, channels), with the outputs z that there are to
                be; None where these are the products of the same inputs with the weights.
            free: as the attribute.
            damp: what is added to the diagonal of `second`, in parts of its mean: a pull to the
                weights as they are, as moments of few samples do not tell everything.
        """
        weights, second = (np.asarray(x, np.float64) for x in (weights, second))
        mean = np.trace(second, axis1=1, axis2=2) / second.shape[-1]
        ridge = np.where(mean > 0, damp * mean, 1.0)[:, None, None]
        hessian = second + ridge * np.eye(second.shape[-1])
        if wanted is None:
            return cls(weights, hessian, free)
        pulled = np.asarray(wanted, np.float64) + ridge * weights
        return cls(np.linalg.solve(hessian, pulled), hessian, free)

    def loss(self, matrix: np.ndarray) -> np.ndarray:
        """What each channel loses, (groups, channels)."""
        change = matrix - self.target
        return (change * (self.hessian @ change)).sum(1)

    def repeated(self, times: int) -> Quadratic:
        """The problem with all its channels several times."""
        free = None if self.free is None else np.tile(self.free, (1, 1, times))
        return Quadratic(np.tile(self.target, (1, 1, times)), self.hessian, free)


def choose_codes(problem: Quadratic, scale: np.ndarray, bits: int) -> np.ndarray:
    """Codes that lose little, in no channel more than those of rounding to nearest.

    What GPTQ (Frantar et al. 2022, arXiv:2210.17323) or rounding to nearest gives, whichever is
    better, is improved by coordinate descent (Behdin et al. 2023, arXiv:2309.01885).

    Args:
        problem: of the kernel.
        scale: (groups, channels), or what broadcasts to it; 0 where all codes are 0.
        bits: of the symmetric grid.

    Returns int8, shaped as `problem.target`; the kernel is codes times scale.
    """
    scale = np.broadcast_to(scale, problem.target[:, 0].shape).astype(np.float64)
    start, _ = _better(problem, scale, levels(bits))
    return descend(problem, start, scale, levels(bits)).astype(np.int8)


def _better(problem: Quadratic, scale: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The better codes of GPTQ and rounding to nearest by channel, and what channels lose."""
    rounded, made = nearest_codes(problem, scale, top), gptq_codes(problem, scale, top)
    losses = [problem.loss(codes * scale[:, None]) for codes in (rounded, made)]
    return np.where((losses[1] < losses[0])[:, None], made, rounded), np.minimum(*losses)


def choose_grid(
    problem: Quadratic, scale: np.ndarray, bits: int, shared: bool = False, rounds: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and scales with which they lose less than with those given.

    Parts of a scale are tried, with codes as `choose_codes` starts from; then codes and the scale
    that suits them best, which is known in closed form, are found in turns.

    Args:
        problem, bits: as `choose_codes` takes them.
        scale: (groups, channels), that which holds all weights; 0 for channels of zeros.
        shared: whether all channels must have one scale, which then is all that `scale` has.
        rounds: how many turns at most.

    Returns (codes, scale), as `choose_codes` gives and takes them.
    """
    groups, _, channels = problem.target.shape
    scale = np.broadcast_to(scale, (groups, channels)).astype(np.float64)
    # Of 8 bits narrower grids gain little, and codes that use all of one are larger when zipped.
    parts = _PARTS if bits < 8 else _PARTS[:1]
    top, tried = levels(bits), (parts[:, None] * scale[:, None]).reshape(groups, -1)
    many = problem.repeated(len(parts))
    codes, loss = _better(many, tried, top)
    loss = loss.reshape(groups, -1, channels)
    best = np.full_like(loss[:, 0], loss.sum((0, 2)).argmin(), int) if shared else loss.argmin(1)
    codes = codes.reshape(groups, -1, len(parts), channels)
    codes = np.take_along_axis(codes, best[:, None, None], axis=2)[:, :, 0]
    scale = scale * parts[best]
    codes = descend(problem, codes, scale, top).astype(np.int8)
    for _ in range(rounds):
        before, scale = codes, _fitted(problem, codes, scale, shared)
        codes = descend(problem, codes, scale, top).astype(np.int8)
        if np.array_equal(codes, before):
            break
    return codes, scale


def _fitted(problem: Quadratic, codes, scale, shared: bool) -> np.ndarray:
    """The scales with which given codes lose least."""
    codes = codes.astype(np.float64)
    seen = problem.hessian @ codes
    wanted, norm = (seen * problem.target).sum(1), (seen * codes).sum(1)
    if shared:
        wanted, norm = np.full_like(wanted, wanted.sum()), np.full_like(norm, norm.sum())
    found = wanted / np.where(norm > 0, norm, 1.0)
    return np.where((norm > 0) & (found > 0), found, scale)


def nearest_codes(problem: Quadratic, scale: np.ndarray, top: int) -> np.ndarray:
    """The codes nearest to the target."""
    return _codes(problem.target / _safe(scale[:, None]), top, _may(problem, scale))


def gptq_codes(problem: Quadratic, scale: np.ndarray, top: int) -> np.ndarray:
    """Codes that are rounded one row after the other; those that are left make up for each.

    Rows of large inputs come first.
    """
    order = np.argsort(-np.diagonal(problem.hessian, axis1=1, axis2=2), axis=1, kind="stable")
    pick = np.arange(len(order))[:, None, None]
    hessian = problem.hessian[pick, order[:, :, None], order[:, None, :]]
    lower = np.linalg.cholesky(np.linalg.inv(hessian))
    left = np.take_along_axis(problem.target, order[..., None], axis=1)
    may = np.take_along_axis(_may(problem, scale), order[..., None], axis=1)
    codes, safe, d = np.zeros_like(left), _safe(scale), left.shape[1]
    for start in range(0, d, _BLOCK):
        stop = min(start + _BLOCK, d)
        errors = np.zeros_like(left[:, start:stop])
        for j in range(start, stop):
            codes[:, j] = _codes(left[:, j] / safe, top, may[:, j])
            error = (left[:, j] - codes[:, j] * scale) / lower[:, j, j, None]
            left[:, j:stop] -= lower[:, j:stop, j, None] * error[:, None]
            errors[:, j - start] = error
        left[:, stop:] -= lower[:, stop:, start:stop] @ errors
    found = np.empty_like(codes)
    np.put_along_axis(found, np.broadcast_to(order[..., None], found.shape), codes, axis=1)
    return found


def descend(
    problem: Quadratic, codes: np.ndarray, scale: np.ndarray, top: int, sweeps: int = 10
) -> np.ndarray:
    """Codes that no change of a single one improves, or what `sweeps` through all of them give."""
    hessian, codes, may = problem.hessian, codes.astype(np.float64), _may(problem, scale)
    slope = hessian @ (codes * scale[:, None] - problem.target)
    step = np.diagonal(hessian, axis1=1, axis2=2)[..., None] * _safe(scale)[:, None]
    for _ in range(sweeps):
        changed = False
        for start in range(0, codes.shape[1], _BLOCK):
            stop = min(start + _BLOCK, codes.shape[1])
            near, within = slope[:, start:stop].copy(), hessian[:, start:stop, start:stop, None]
            moves = np.zeros_like(near)
            for j in range(start, stop):
                best = codes[:, j] - near[:, j - start] / step[:, j]
                best = _codes(best, top, may[:, j])
                move = (best - codes[:, j]) * scale
                if move.any():
                    near += within[:, :, j - start] * move[:, None]
                    codes[:, j], moves[:, j - start] = best, move
            if moves.any():
                changed = True
                slope += hessian[:, :, start:stop] @ moves
        if not changed:
            break
    return codes


def _codes(values: np.ndarray, top: int, may: np.ndarray) -> np.ndarray:
    """Whole numbers of a grid, 0 where they may be nothing else."""
    return np.where(may, np.minimum(np.maximum(np.rint(values), -top), top), 0.0)


def _may(problem: Quadratic, scale: np.ndarray) -> np.ndarray:
    """Where codes may be others than 0."""
    found = np.broadcast_to(scale[:, None] > 0, problem.target.shape)
    return found if problem.free is None else found & problem.free


def _safe(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, 1.0)
