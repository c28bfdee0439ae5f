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
    """The squared singular values of a matrix, largest first, as many as its smaller side.

    Example:
        >>> energies(np.diag([1.0, 3.0]))
        array([9., 1.])
    """
    found = scipy.linalg.eigvalsh(_gram(np.asarray(matrix, "float64")))
    return np.maximum(found[::-1], 0.0)


def svd(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of rank `rank` whose product is nearest to a matrix (Eckart & Young 1936).

    Args:
        matrix: (rows, columns).
        rank: at most the smaller of both.

    Returns:
        (left (rows, rank), right (rank, columns)), float64.
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
    matrix: np.ndarray, *, inputs: np.ndarray | None = None, outputs: np.ndarray | None = None
) -> np.ndarray:
    """The squared singular values of X @ matrix, largest first; see `weighted_svd`."""
    basis, _ = _row_space(np.asarray(matrix, "float64"))
    found = np.zeros(min(matrix.shape))
    moment = scipy.linalg.eigvalsh(_products(matrix, basis, inputs, outputs))
    found[: len(moment)] = np.maximum(moment[::-1], 0.0)
    return found


def weighted_svd(
    matrix: np.ndarray,
    rank: int,
    *,
    inputs: np.ndarray | None = None,
    outputs: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The two factors whose product is nearest to a matrix where data X goes through it.

    They make ||X @ matrix - X @ left @ right|| the least possible. That is the singular value
    decomposition of S @ matrix with S.T @ S = X.T @ X, whitened by S (SVD-LLM, Wang et al. 2024,
    arXiv:2403.07378), where left = matrix @ right.T: the directions in `right` are the principal
    ones of the products, so that S need not be inverted and X may be of any rank.

    Args:
        matrix: (rows, columns).
        rank: at most the smaller of both.
        inputs: X.T @ X, (rows, rows); or
        outputs: Y.T @ Y of the products Y = X @ matrix, (columns, columns).

    Returns:
        (left (rows, rank), right (rank, columns)), float64.
    """
    matrix = np.asarray(matrix, "float64")
    basis, squares = _row_space(matrix)
    moment = _products(matrix, basis, inputs, outputs)
    # Where the data does not tell directions apart, the matrix does.
    ridge = _RIDGE * max(np.trace(moment), np.finfo("float64").tiny) / max(squares.sum(), 1e-300)
    _, vectors = _largest(moment + ridge * np.diag(squares), min(rank, len(squares)))
    directions = np.zeros((matrix.shape[1], rank))
    directions[:, : vectors.shape[1]] = basis @ vectors
    left, right = balanced([matrix @ directions, directions])
    return left, right.T


def tucker2(
    kernel: np.ndarray, ranks: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution's kernel as a smaller core between two matrices (Kim et al. 2016,
    arXiv:1511.06530), found by higher-order orthogonal iteration.

    Each step is the best choice for one side given the other one (De Lathauwer et al. 2000).

    Args:
        kernel: (..., in, out).
        ranks: (of out, of in).

    Returns:
        (into (in, r_in), core (..., r_in, r_out), out_of (r_out, out)): the kernel is
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
        rank: channels between the two, at most min(height * in, width * out).

    Returns:
        (kernel (height, 1, in, rank), kernel (1, width, rank, out)), float64.
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
        matrix: (m1 * m2, n1 * n2).
        shape: (m1, n1).

    Returns:
        (m1 * n1, m2 * n2).
    """
    (m1, n1), (rows, columns) = shape, matrix.shape
    m2, n2 = rows // m1, columns // n1
    return matrix.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)


def kronecker(
    matrix: np.ndarray, shape: tuple[int, int], rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of `rank` Kronecker products that is nearest to a matrix.

    Args:
        matrix: (m1 * m2, n1 * n2).
        shape: (m1, n1), that of the first factors.
        rank: how many products.

    Returns:
        (first (rank, m1, n1), second (rank, m2, n2)), float64: the matrix is
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


def _products(matrix, basis, inputs, outputs) -> np.ndarray:
    """The second moment of the products of data and matrix, in coordinates of a basis."""
    if inputs is not None:
        rotated = matrix @ basis
        return rotated.T @ inputs @ rotated
    return basis.T @ outputs @ basis
