"""Decompositions against NumPy, tensorly, and what they must equal."""

import numpy as np
import pytest

from tfcompress.surgery.factors import maths as d
from tfcompress.surgery.factors.maths import (
    cp,
    cp_error,
    cp_full_rank,
    diagonal_blocks,
    slice_energies,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def error(a, b) -> float:
    """Relative to `a`, in squares."""
    return float(np.sum((a - b) ** 2) / np.sum(a**2))


def truncated(matrix, rank):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (9, 9), (1, 5), (5, 1)])
def test_svd_is_that_of_numpy(shape):
    matrix = normal(*shape)
    assert np.allclose(d.energies(matrix), np.linalg.svd(matrix)[1] ** 2)
    for rank in range(1, min(shape) + 1):
        left, right = d.svd(matrix, rank)
        assert left.shape == (shape[0], rank)
        assert right.shape == (rank, shape[1])
        assert np.allclose(left @ right, truncated(matrix, rank))
        assert np.allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))


def test_svd_of_a_matrix_of_low_rank_is_exact_beyond_it():
    matrix = normal(20, 3) @ normal(3, 15)
    left, right = d.svd(matrix, 7)
    assert np.allclose(left @ right, matrix)
    left, right = d.svd(np.zeros((4, 3)), 2)
    assert not (left @ right).any()


def whitened(matrix, x, rank):
    """SVD-LLM as it is written: whiten with S, cut, and undo S."""
    s = np.linalg.cholesky(x.T @ x).T
    return np.linalg.solve(s, truncated(s @ matrix, rank))


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (10, 10)])
def test_weighted_svd_is_the_whitened_one(shape):
    matrix, x = normal(*shape), normal(200, shape[0]) @ normal(shape[0], shape[0], seed=1)
    y = x @ matrix
    for moment in ({"inputs": x.T @ x}, {"outputs": y.T @ y}):
        found = d.weighted_energies(matrix, **moment)
        assert np.allclose(found, np.linalg.svd(y, compute_uv=False)[: min(shape)] ** 2)
        for rank in (1, 4, min(shape)):
            left, right = d.weighted_svd(matrix, rank, **moment)
            assert np.allclose(left @ right, whitened(matrix, x, rank), atol=1e-5)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("samples", [3, 8, 100])
def test_no_matrix_of_that_rank_changes_the_products_less(side, samples):
    matrix, x = normal(16, 10), normal(samples, 16, seed=2) * np.arange(1, 17)
    y = x @ matrix
    moment = {side: x.T @ x if side == "inputs" else y.T @ y}
    for rank in (1, 2, 5, 10):
        # Reduced-rank regression: the products on their own principal directions.
        best = np.sum(np.linalg.svd(y, compute_uv=False)[rank:] ** 2)
        left, right = d.weighted_svd(matrix, rank, **moment)
        found = np.sum((y - x @ left @ right) ** 2)
        plain = np.sum((y - x @ truncated(matrix, rank)) ** 2)
        assert found == pytest.approx(best, rel=1e-4, abs=1e-7 * np.sum(y**2))
        assert found <= plain * (1 + 1e-4) + 1e-9


def test_where_data_says_nothing_the_matrix_decides():
    matrix = np.diag([5.0, 4.0, 3.0, 2.0])
    x = np.array([[1.0, 0, 0, 0]])  # which never reads what the last three rows do
    left, right = d.weighted_svd(matrix, 2, inputs=x.T @ x)
    assert np.allclose(left @ right, np.diag([5.0, 4.0, 0, 0]), atol=1e-6)
    left, right = d.weighted_svd(matrix, 4, inputs=x.T @ x)
    assert np.allclose(left @ right, matrix)
    left, right = d.weighted_svd(matrix, 2, inputs=np.zeros((4, 4)))
    assert np.allclose(left @ right, np.diag([5.0, 4.0, 0, 0]))


def rebuilt_tucker(into, core, out_of):
    return np.einsum("ia,...ab,bo->...io", into, core, out_of)


def test_tucker_is_as_near_as_that_of_tensorly():
    import tensorly
    from tensorly.decomposition import partial_tucker

    kernel = normal(3, 3, 12, 16)
    for out, into in [(4, 3), (10, 8), (16, 5), (3, 12)]:
        with tensorly.backend_context("numpy", local_threadsafe=True):
            (core, (a, b)), _ = partial_tucker(kernel, [into, out], modes=[2, 3], tol=1e-9)
        theirs = error(kernel, np.einsum("hwab,ia,ob->hwio", core, a, b))
        first, middle, last = d.tucker2(kernel, (out, into))
        assert first.shape == (12, into)
        assert middle.shape == (3, 3, into, out)
        assert last.shape == (out, 16)
        assert error(kernel, rebuilt_tucker(first, middle, last)) <= theirs * 1.01


@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 3, 4, 9), (2, 2, 2, 3, 4)])
def test_tucker_is_exact_at_full_rank_and_at_the_true_one(shape):
    kernel = normal(*shape)
    assert error(kernel, rebuilt_tucker(*d.tucker2(kernel, (shape[-1], shape[-2])))) < 1e-20
    low = rebuilt_tucker(normal(8, 2), normal(3, 3, 2, 3), normal(3, 10))
    assert error(low, rebuilt_tucker(*d.tucker2(low, (3, 2)))) < 1e-20
    out, into = d.tucker_energies(low)
    assert np.allclose(out, np.linalg.svd(low.reshape(-1, 10), compute_uv=False)[:10] ** 2)
    assert np.sum(into > 1e-9) == 2


def rebuilt_cp(factors):
    return np.einsum("ar,br,cr->abc", *factors)


@pytest.mark.parametrize("shape", [(9, 4, 5), (9, 20, 3), (2, 9, 30), (3, 1, 8)])
def test_cp_is_exact_at_full_rank(shape):
    tensor, full = normal(*shape), cp_full_rank(shape)
    assert full == np.prod(sorted(shape)[:2])
    factors = cp(tensor, full)
    assert [factor.shape for factor in factors] == [(size, full) for size in shape]
    assert error(tensor, rebuilt_cp(factors)) < 1e-20
    assert cp_error(tensor, factors) < 1e-20


def test_cp_finds_a_sum_of_few_products():
    true = rebuilt_cp([normal(size, 3, seed=size) for size in (9, 12, 16)])
    assert error(true, rebuilt_cp(cp(true, 3))) < 1e-4
    assert not rebuilt_cp(cp(np.zeros((4, 3, 2)), 2)).any()


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
def test_cp_is_as_near_as_that_of_tensorly():
    import tensorly
    from tensorly.decomposition import parafac

    tensor = normal(9, 12, 16)
    for rank in (2, 8, 30):
        with tensorly.backend_context("numpy", local_threadsafe=True):
            _, factors = parafac(tensor, rank, init="svd", random_state=0)
        theirs = error(tensor, rebuilt_cp(factors))
        assert cp_error(tensor, cp(tensor, rank)) <= theirs * 1.03


@pytest.mark.slow
def test_cp_of_a_large_tensor_is_better_than_its_slices():
    tensor = normal(9, 128, 128)
    found = cp(tensor, 200)
    left = np.sum(slice_energies(tensor)[200:]) / np.sum(tensor**2)
    assert cp_error(tensor, found) < 0.8 * left
    assert cp_error(tensor, found) < cp_error(tensor, cp(tensor, 200, work=1e8)) < left


@pytest.mark.parametrize("shape", [(9, 12, 16), (12, 3, 8), (12, 9, 5)])
def test_cp_leaves_less_than_its_slices(shape):
    tensor = normal(*shape)
    left = slice_energies(tensor)
    assert len(left) == cp_full_rank(shape)
    assert left.sum() == pytest.approx(np.sum(tensor**2))
    for rank in (1, 7):
        assert cp_error(tensor, cp(tensor, rank)) < left[rank:].sum() / left.sum()


def test_spatial_svd_multiplies_out_to_the_nearest_kernel():
    kernel = normal(3, 5, 4, 6)
    for rank in (1, 5, 12):
        column, row = d.spatial_svd(kernel, rank)
        made = np.einsum("hxir,ywro->hwio", column, row)
        left = np.linalg.svd(d.spatial_matrix(kernel), compute_uv=False)[rank:]
        assert np.sum((kernel - made) ** 2) == pytest.approx(np.sum(left**2), abs=1e-9)


def test_kronecker_products_add_up():
    first, second = normal(2, 4, 3), normal(2, 5, 6)
    true = sum(np.kron(a, b) for a, b in zip(first, second, strict=True))
    a, b = d.kronecker(true, (4, 3), 2)
    assert np.allclose(sum(map(np.kron, a, b)), true)
    any_matrix = normal(20, 18)
    a, b = d.kronecker(any_matrix, (4, 3), 12)
    assert np.allclose(sum(map(np.kron, a, b)), any_matrix)
    a, b = d.kronecker(any_matrix, (4, 3), 5)
    left = d.energies(d.kronecker_matrix(any_matrix, (4, 3)))[5:]
    assert np.sum((sum(map(np.kron, a, b)) - any_matrix) ** 2) == pytest.approx(left.sum())


def test_balanced_keeps_the_sum_and_zeros():
    factors = [normal(4, 3) * 100, normal(5, 3), normal(6, 3) / 100]
    factors[1][:, 2] = 0
    made = d.balanced(factors)
    assert np.allclose(rebuilt_cp(made), rebuilt_cp(factors))
    norms = [np.linalg.norm(factor, axis=0)[:2] for factor in made]
    assert np.allclose(norms[0], norms[1])
    assert np.allclose(norms[0], norms[2])


@pytest.mark.parametrize(("blocks", "rows", "columns"), [(2, 3, 4), (4, 5, 2), (8, 4, 4)])
def test_blocks_in_any_order_are_found(blocks, rows, columns):
    random = np.random.default_rng(blocks)
    matrix = np.zeros((blocks * rows, blocks * columns))
    for i in range(blocks):
        part = matrix[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns]
        part[:] = random.normal(size=part.shape) ** 2
    matrix = matrix[random.permutation(len(matrix))][:, random.permutation(matrix.shape[1])]
    order, places, share = diagonal_blocks(matrix, blocks)
    assert share == pytest.approx(1.0)
    mask = np.kron(np.eye(blocks), np.ones((rows, columns)))
    assert np.allclose(matrix[order][:, places] * mask, matrix[order][:, places])


def test_blocks_of_noise_hold_more_than_by_chance_and_one_holds_all():
    matrix = normal(32, 24) ** 2
    assert diagonal_blocks(matrix, 4)[2] > 0.3
    rows, columns, share = diagonal_blocks(matrix, 1)
    assert share == 1.0
    assert np.array_equal(rows, np.arange(32))
    assert np.array_equal(columns, np.arange(24))
    plain = np.kron(np.eye(2), np.ones((3, 3)))  # whose order cannot get better
    assert np.array_equal(diagonal_blocks(plain, 2)[0], np.arange(6))
