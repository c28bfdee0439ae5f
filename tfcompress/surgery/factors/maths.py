"""Kernels taken apart into smaller arrays: pure functions of NumPy arrays.

All compute in float64, and split what they find evenly over the factors, so that none of these is
much larger than the others. "Energy" is a sum of squares, as of singular values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

# Energy of what is told apart from rounding, relative to the whole.
_ROUNDING = 1e-14

# How much the matrix itself counts beside the data, where the data says nothing.
_RIDGE = 1e-9
_TUCKER_STEPS, _TUCKER_TOLERANCE = 10, 1e-3


def energies(matrix: np.ndarray) -> np.ndarray:
    """The squared singular values of a matrix, largest first, as many as its smaller side."""
    found = scipy.linalg.eigvalsh(_gram(np.asarray(matrix, "float64")))
    return np.maximum(found[::-1], 0.0)


def svd(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of rank `rank` whose product is nearest to a matrix (Eckart & Young 1936).

    Args:
        matrix: (rows, columns).

    Returns (left (rows, rank), right (rank, columns)), float64.
    """
    matrix = np.asarray(matrix, "float64")
    _, vectors = _largest(_gram(matrix), rank)
    if matrix.shape[0] < matrix.shape[1]:
        left, right = vectors, vectors.T @ matrix
    else:
        left, right = matrix @ vectors, vectors.T
    left, right = balanced([left, right.T])
    return left, right.T


def weighted_energies(
    matrix: np.ndarray,
    *,
    inputs: np.ndarray | None = None,
    outputs: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """The squared singular values of X @ matrix @ S, largest first; see `weighted_svd`."""
    found = np.zeros(min(matrix.shape))
    if weights is not None:
        root, _ = _roots(weights)
        matrix, outputs = matrix @ root, None if outputs is None else root @ outputs @ root
    basis, _ = _row_space(np.asarray(matrix, "float64"))
    moment = scipy.linalg.eigvalsh(_products(matrix, basis, inputs, outputs))
    found[: len(moment)] = np.maximum(moment[::-1], 0.0)
    return found


def weighted_svd(
    matrix: np.ndarray,
    rank: int,
    *,
    inputs: np.ndarray | None = None,
    outputs: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The two factors whose product is nearest to a matrix where data X goes through it.

    They make ||X @ (matrix - left @ right) @ S|| the least possible. That is the singular value
    decomposition of R @ matrix @ S with R.T @ R = X.T @ X, whitened by R (SVD-LLM, Wang et al.
    2024, arXiv:2403.07378), where left = matrix @ S @ directions: these are the principal ones of
    the products, so that R need not be inverted and X may be of any rank.

    Args:
        matrix: (rows, columns).
        inputs: X.T @ X, (rows, rows); or
        outputs: Y.T @ Y of the products Y = X @ matrix, (columns, columns).
        weights: S.T @ S, (columns, columns), of full rank: what errors of the columns count, alone
            and together; by default all count the same.

    Returns (left (rows, rank), right (rank, columns)), float64.
    """
    matrix = np.asarray(matrix, "float64")
    if weights is not None:
        root, inverse = _roots(weights)
        outputs = None if outputs is None else root @ outputs @ root
        left, right = weighted_svd(matrix @ root, rank, inputs=inputs, outputs=outputs)
        left, right = balanced([left, (right @ inverse).T])
        return left, right.T
    basis, squares = _row_space(matrix)
    moment = _products(matrix, basis, inputs, outputs)
    # Where the data does not tell directions apart, the matrix does.
    ridge = _RIDGE * max(np.trace(moment), np.finfo("float64").tiny) / max(squares.sum(), 1e-300)
    _, vectors = _largest(moment + ridge * np.diag(squares), min(rank, len(squares)))
    directions = np.zeros((matrix.shape[1], rank))
    directions[:, : vectors.shape[1]] = basis @ vectors
    left, right = balanced([matrix @ directions, directions])
    return left, right.T


def missed(matrix: np.ndarray, left: np.ndarray, right: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What factors of `weighted_svd` leave out of the mean (columns,) of what a matrix gives."""
    directions = np.linalg.lstsq(matrix, left, rcond=None)[0]
    return mean - mean @ directions @ right


def tucker2(
    kernel: np.ndarray, ranks: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution's kernel as a smaller core between two matrices (Kim et al. 2016,
    arXiv:1511.06530), found by higher-order orthogonal iteration.

    Each step is the best choice for one side given the other one (De Lathauwer et al. 2000).

    Returns (into (in, r_in), core (..., r_in, r_out), out_of (r_out, out)): the kernel is
    sum(into[i, a] * core[..., a, b] * out_of[b, o]), float64.
    """
    kernel = np.asarray(kernel, "float64")
    axes = [kernel.ndim - 2, kernel.ndim - 1]
    sizes = [min(ranks[1], kernel.shape[-2]), min(ranks[0], kernel.shape[-1])]
    factors = [
        _largest(_gram_of(kernel, axis), size)[1] for axis, size in zip(axes, sizes, strict=True)
    ]
    total, before = float(np.sum(kernel**2)), 0.0
    for _ in range(_TUCKER_STEPS if sizes != list(kernel.shape[-2:]) else 0):
        for place in (0, 1):
            other = np.tensordot(kernel, factors[1 - place], (axes[1 - place], 0))
            # The axis left over has moved by one if the other one came before it.
            axis = axes[place] - (1 - place == 0)
            values, factors[place] = _largest(_gram_of(other, axis), sizes[place])
        if values.sum() - before <= _TUCKER_TOLERANCE * total:
            break
        before = float(values.sum())
    into, out_of = factors
    core = np.einsum("...io,ia,ob->...ab", kernel, into, out_of, optimize=True)
    return into, core, out_of.T


def tucker_energies(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squared singular values of the unfoldings of a kernel (..., in, out) along out and in."""
    kernel = np.asarray(kernel, "float64")
    out, into = (
        np.maximum(scipy.linalg.eigvalsh(_gram_of(kernel, axis))[::-1], 0.0) for axis in (-1, -2)
    )
    return out, into


def spatial_matrix(kernel: np.ndarray) -> np.ndarray:
    """A kernel (height, width, in, out) as the matrix (height * in, width * out) of spatial SVD."""
    height, width, inputs, outputs = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)


def spatial_svd(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A kernel as a column and a row, one convolution after the other (Jaderberg et al. 2014,
    arXiv:1405.3866).

    Args:
        kernel: (height, width, in, out).

    Returns (kernel (height, 1, in, rank), kernel (1, width, rank, out)), float64.
    """
    height, width, inputs, outputs = kernel.shape
    left, right = svd(spatial_matrix(kernel), rank)
    column = left.reshape(height, inputs, rank)[:, None]
    row = right.reshape(rank, width, outputs).transpose(1, 0, 2)[None]
    return column, row


def kronecker_matrix(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A matrix rearranged so that Kronecker products become outer products (Van Loan & Pitsianis
    1993).

    Args:
        shape: (m1, n1).

    Returns (m1 * n1, m2 * n2).
    """
    (m1, n1), (rows, columns) = shape, matrix.shape
    m2, n2 = rows // m1, columns // n1
    return matrix.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)


def kronecker(
    matrix: np.ndarray, shape: tuple[int, int], rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of `rank` Kronecker products that is nearest to a matrix.

    Args:
        shape: (m1, n1), that of the first factors.

    Returns (first (rank, m1, n1), second (rank, m2, n2)), float64: the matrix is
    sum(np.kron(first[r], second[r])).
    """
    left, right = svd(kronecker_matrix(matrix, shape), rank)
    second = matrix.shape[0] // shape[0], matrix.shape[1] // shape[1]
    return left.T.reshape(rank, *shape), right.reshape(rank, *second)


def balanced(factors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The factors of a sum of products, whose columns then are of the same norm in all."""
    norms = np.array([np.linalg.norm(factor, axis=0) for factor in factors])
    mean = np.exp(np.mean(np.log(np.maximum(norms, 1e-300)), axis=0))
    used = (norms > 0).all(axis=0)
    scales = np.where(used, mean / np.where(used, norms, 1.0), 1.0)
    return [factor * scale for factor, scale in zip(factors, scales, strict=True)]


def _gram(matrix: np.ndarray) -> np.ndarray:
    """The Gram matrix of the smaller side: its eigenvalues are the squared singular values."""
    return matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix


def _gram_of(kernel: np.ndarray, axis: int) -> np.ndarray:
    unfolded = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    return unfolded @ unfolded.T


def _largest(symmetric: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, in falling order, and their eigenvectors as columns."""
    values, vectors = _eigh(symmetric)
    return values[: -count - 1 : -1], vectors[:, : -count - 1 : -1]


def _eigh(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The divide and conquer of LAPACK is the fastest of its methods where all are wanted.
    return scipy.linalg.eigh(symmetric, driver="evd", overwrite_a=True, check_finite=False)


def _row_space(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis (columns, r) of the rows of a matrix, and its squared values."""
    values, vectors = _eigh(_gram(np.asarray(matrix, "float64")))
    used = values > _ROUNDING * max(values[-1], 0.0)
    values, vectors = values[used], vectors[:, used]
    if matrix.shape[0] < matrix.shape[1]:
        vectors = matrix.T @ vectors / np.sqrt(values)
    return vectors, values


def _roots(moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The root of a symmetric matrix of full rank, and the inverse of that."""
    values, vectors = scipy.linalg.eigh(moment)
    roots = np.sqrt(np.maximum(values, _ROUNDING * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _products(matrix, basis, inputs, outputs) -> np.ndarray:
    """The second moment of the products of data and matrix, in coordinates of a basis."""
    if inputs is not None:
        rotated = matrix @ basis
        return rotated.T @ inputs @ rotated
    return basis.T @ outputs @ basis


_ITERATIONS = 100
_ROUNDS = 20


def diagonal_blocks(energy: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Orders rows and columns so that equal blocks along the diagonal hold much of a matrix.

    Rows and columns start in the order of the second singular vectors of the normalized matrix
    (Dhillon 2001, spectral co-clustering), and change blocks as long as that gains something. The
    order they have is kept if it is as good.

    Args:
        energy: (rows, columns), not negative.

    Returns (order of the rows, order of the columns, share of the energy in the blocks).
    """
    plain = [np.arange(size) * blocks // size for size in energy.shape]
    if blocks == 1:
        return np.arange(energy.shape[0]), np.arange(energy.shape[1]), 1.0
    found = _refined(energy, _spectral(energy, blocks), blocks)
    if _inside(energy, *found) <= _inside(energy, *plain) * (1 + 1e-9):
        found = plain
    rows, columns = (np.argsort(place, kind="stable") for place in found)
    return rows, columns, _inside(energy, *found) / max(float(energy.sum()), 1e-300)


def _inside(energy, rows, columns) -> float:
    """What lies in the blocks, given the block of each row and column."""
    return float(energy[rows[:, None] == columns].sum())


def _spectral(energy: np.ndarray, blocks: int) -> list[np.ndarray]:
    """Blocks of equal size along the second singular vectors, found by power iteration."""
    degrees = [np.maximum(energy.sum(axis), 1e-300) ** 0.5 for axis in (1, 0)]
    normalized = energy / degrees[0][:, None] / degrees[1]
    first = degrees[1] / np.linalg.norm(degrees[1])
    vector = np.random.default_rng(0).normal(size=energy.shape[1])
    for _ in range(_ITERATIONS):
        vector = vector - first * (first @ vector)
        vector = normalized.T @ (normalized @ vector)
        vector /= max(float(np.linalg.norm(vector)), 1e-300)
    scores = normalized @ vector / degrees[0], vector / degrees[1]
    ranks = [np.argsort(np.argsort(score, kind="stable")) for score in scores]
    return [rank * blocks // len(rank) for rank in ranks]


def _refined(energy: np.ndarray, places: list[np.ndarray], blocks: int) -> list[np.ndarray]:
    """Assigns rows, then columns, to blocks anew as long as more lies in the blocks."""
    best = _inside(energy, *places)
    for _ in range(_ROUNDS):
        rows = _assigned(energy @ np.eye(blocks)[places[1]])
        columns = _assigned(energy.T @ np.eye(blocks)[rows])
        gained = _inside(energy, rows, columns)
        if gained <= best * (1 + 1e-9):
            break
        best, places = gained, [rows, columns]
    return places


def _assigned(gains: np.ndarray) -> np.ndarray:
    """Gives each row one of equally large blocks; those that have most to lose choose first."""
    count, blocks = gains.shape
    left = np.full(blocks, count // blocks)
    ranked = np.sort(gains, axis=1)
    places = np.empty(count, int)
    for row in np.argsort(ranked[:, -2] - ranked[:, -1], kind="stable"):
        place = int(np.argmax(np.where(left > 0, gains[row], -1.0)))
        places[row], left[place] = place, left[place] - 1
    return places


# Alternating least squares end once a step takes less than this share of the error away.
_TOLERANCE = 1e-3
_LEAST_STEPS, _MOST_STEPS = 4, 50

# Multiplications that take some seconds.
_WORK = 1e11

# Numbers of a tensor from which on products are computed in float32, in half of the time.
_LARGE = 2**16


def cp(tensor: np.ndarray, rank: int, work: float = _WORK) -> list[np.ndarray]:
    """A tensor of three axes as a sum of `rank` outer products of vectors (CP, Lebedev et al.
    2015, arXiv:1412.6553), found by accelerated alternating least squares.

    These start from the singular vectors of the slices of the tensor along its smallest axis, of
    which those with the largest values are taken. All of them, `cp_full_rank`, are exact. They go
    on from where the last two steps point to (Mitchell et al. 2020, arXiv:1810.05846).

    Args:
        tensor: (a, b, c).
    """
    tensor = np.asarray(tensor, "float64")
    axis = int(np.argmin(tensor.shape))
    slices = np.moveaxis(tensor, axis, 0)
    found = _of_slices(slices, rank)
    if rank < cp_full_rank(tensor.shape) and tensor.any():
        found = _alternated(slices, found, work)
    first, *others = balanced(found)
    others.insert(axis, first)
    return others


def cp_full_rank(shape: Sequence[int]) -> int:
    """A CP rank that every tensor of three axes can be written with exactly."""
    return int(np.prod(sorted(shape)[:2]))


def cp_error(tensor: np.ndarray, factors: Sequence[np.ndarray]) -> float:
    """The share of a tensor's energy that its CP factors leave."""
    first, b, c = factors
    slices = zip(tensor, first, strict=True)  # one by one, to hold no products of all columns
    left = sum(np.sum(np.square(part - (weights * b) @ c.T)) for part, weights in slices)
    return float(left / max(np.sum(np.square(tensor)), 1e-300))


def slice_energies(tensor: np.ndarray) -> np.ndarray:
    """The squared singular values of the slices along the smallest axis, largest first.

    `cp` leaves at most the sum of all but the first of them, as many as its rank.
    """
    slices = np.moveaxis(tensor, int(np.argmin(tensor.shape)), 0)
    found = np.concatenate([energies(each) for each in slices])
    return np.sort(found)[::-1]


def _of_slices(slices: np.ndarray, rank: int) -> list[np.ndarray]:
    """The CP factors made of the largest singular values of the slices along the first axis.

    The columns of all but the last are of norm 1, as those of `_step`.
    """
    left, values, right = np.linalg.svd(slices, full_matrices=False)
    # Of many equal components, such as zeros, the first ones come first.
    order = np.argsort(-values.ravel(), kind="stable")[:rank]
    place, number = np.unravel_index(order, values.shape)
    ones, rows = np.eye(len(slices))[:, place], left[place, :, number].T
    columns = right[place, number].T * values[place, number]
    extra = rank - len(order)
    return [np.pad(factor, ((0, 0), (0, extra))) for factor in (ones, rows, columns)]


def _alternated(tensor: np.ndarray, start: list[np.ndarray], work: float) -> list[np.ndarray]:
    """The best of what alternating least squares find, and of what they start from."""
    total = float(np.sum(np.square(tensor)))
    best, left = start, cp_error(tensor, start) * total
    tensor = tensor.astype("float32" if tensor.size > _LARGE else "float64")
    rounding = 10 * float(np.finfo(tensor.dtype).eps) * total
    before: list[np.ndarray] | None = None
    for _ in range(_steps(tensor.shape, start[0].shape[1], work)):
        ahead = best if before is None else [2 * b - a for a, b in zip(before, best, strict=True)]
        try:
            found, now = _step(tensor, ahead, total)
        except np.linalg.LinAlgError:  # its equations have no solution
            found, now = best, left
        if now < left - rounding:
            before, best, gained, left = best, found, 1 - now / left, now
            if gained < _TOLERANCE:
                break
        elif before is None:
            break
        else:  # too far ahead
            before = None
    return best


def _steps(shape: Sequence[int], rank: int, work: float) -> int:
    """How many steps are not too much work."""
    one = rank * (2 * np.prod(shape) + rank * (rank + 2 * sum(shape)))
    return int(np.clip(work / one, _LEAST_STEPS, _MOST_STEPS))


def _step(
    tensor: np.ndarray, factors: list[np.ndarray], total: float
) -> tuple[list[np.ndarray], float]:
    """Each factor once as the best one for both others, and the squared error that they leave.

    Args:
        tensor: (places, rows, columns).
    """
    _, b, c = (factor.astype(tensor.dtype) for factor in factors)
    seen, of_c = tensor @ c, _factor_gram(c)  # (places, rows, rank)
    a = _unit(_solved(_factor_gram(b) * of_c, np.einsum("pir,ir->pr", seen, b)))
    of_a = _factor_gram(a)
    b = _unit(_solved(of_a * of_c, np.einsum("pir,pr->ir", seen, a)))
    del seen
    inner, narrow = np.zeros((tensor.shape[2], b.shape[1])), b.astype(tensor.dtype)
    for place, weights in zip(tensor, a, strict=True):
        inner += (place.T @ narrow) * weights
    products = of_a * _factor_gram(b)
    c = _solved(products, inner)
    left = total + float(np.sum(products * _factor_gram(c)) - 2 * np.sum(inner * c))
    return [a, b, c], max(left, 0.0)


def _solved(products: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The factor x that solves x @ products = inner, products of vectors with each other."""
    ridge = _RIDGE * np.trace(products) / len(products)
    factor = scipy.linalg.cho_factor(products + ridge * np.eye(len(products)), lower=True)
    return scipy.linalg.cho_solve(factor, inner.T.astype("float64"), overwrite_b=True).T


def _factor_gram(factor: np.ndarray) -> np.ndarray:
    factor = factor.astype("float64")
    return factor.T @ factor


def _unit(factor: np.ndarray) -> np.ndarray:
    return factor / np.maximum(np.linalg.norm(factor, axis=0), 1e-300)
