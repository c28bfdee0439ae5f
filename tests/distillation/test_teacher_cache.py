"""Outputs of a teacher are found again by the content of samples, in memory and in a file."""

import warnings

import numpy as np
import pytest
from teacher_samples import SPECS, arrays_in, fill, filled, require_found, samples, take

from tfcompress.distillation.cache import TeacherCache
from tfcompress.distillation.kept_outputs import KEY, Kept


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return tmp_path / "teacher.h5" if request.param == "file" else None


@pytest.fixture
def target(tmp_path):
    return tmp_path / "teacher.h5"


def test_rows_are_found_in_any_order_and_batch_size(path):
    inputs, outputs = samples(50)
    cache = filled(path, inputs, outputs)
    assert cache.samples == 50
    shuffled = np.random.default_rng(1).permutation(50)
    for batch in (1, 16, 50):
        for start in range(0, 50, batch):
            rows = shuffled[start : start + batch]
            require_found(cache, take(inputs, rows), take(outputs, rows))
    twice = np.array([3, 3, 9])
    require_found(cache, take(inputs, twice), take(outputs, twice))
    if path:  # A later training, with a cache of its own.
        cache.close()
        cache = TeacherCache(str(path))
        cache.begin("teacher", SPECS, whole_epochs=True)
        require_found(cache, inputs, outputs)


def test_new_samples_give_zeros_until_the_epoch_ends(path):
    inputs, outputs = samples(6)
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=True)
    for _ in range(2):
        hit, rows = cache.lookup(inputs)
        assert not hit
        for row, (shape, dtype) in zip(rows, SPECS, strict=True):
            assert row.dtype == dtype
            np.testing.assert_array_equal(row, np.zeros((6, *shape)))
        cache.store(inputs, outputs)
    cache.end_epoch()
    require_found(cache, inputs, outputs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "int32", "bool"])
def test_outputs_of_any_type_are_kept_bit_by_bit(path, dtype):
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    outputs = np.array([[0.1, -3], [0, 1e6]]).astype(kind)
    inputs = np.arange(2).astype(kind if dtype == "bfloat16" else int)
    for _ in range(2):
        cache = TeacherCache(path)
        cache.begin("teacher", [((2,), dtype)], whole_epochs=True)
        if not cache.samples:
            cache.store([inputs], [outputs])
            cache.end_epoch()
        hit, (rows,) = cache.lookup([inputs[::-1]])
        assert hit
        assert rows.dtype == kind
        assert rows.tobytes() == outputs[::-1].tobytes()


def test_duplicates_keep_the_first_and_take_no_room(path):
    inputs, outputs = samples(8)
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=True)
    cache.store(inputs, outputs)
    cache.store(take(inputs, [2, 2, 5]), take(outputs, [0, 1, 2]))
    cache.store(*(take(arrays, slice(0, 1)) for arrays in samples(1, seed=9)))
    cache.end_epoch()
    assert cache.samples == 9
    require_found(cache, inputs, outputs)
    require_found(cache, *samples(1, seed=9))
    if path:
        _, *arrays = arrays_in(path)
        assert [len(array) for array in arrays] == [9, 9, 9, 9]
        np.testing.assert_array_equal(arrays[2][:8], outputs[0])


@pytest.mark.filterwarnings("ignore:none of the")
def test_keys_tell_apart_types_shapes_and_inputs():
    x = np.arange(16, dtype="float32").reshape(2, 8)
    variants = [
        [x],
        [x.reshape(2, 2, 4)],
        [x.view("int32")],
        [x.astype("float64")],
        [x[:, :4], x[:, 4:]],
        [x[:, 4:], x[:, :4]],
        [x[:, :3], x[:, 3:]],
        [np.zeros_like(x)],
        [-np.zeros_like(x)],
    ]
    cache = TeacherCache()
    cache.begin("teacher", [((1,), "int32")], whole_epochs=False)
    for number, inputs in enumerate(variants):
        assert not cache.lookup(inputs)[0]
        cache.store(inputs, [np.array([[2 * number], [2 * number + 1]], "int32")])
        cache.end_epoch()
    for number, inputs in enumerate(variants):
        found = cache.lookup([np.asfortranarray(array) for array in inputs])[1][0].tolist()
        zeros = number >= 7  # Their two samples are equal.
        assert found == [[2 * number], [2 * number + (not zeros)]]


def test_a_new_sample_that_ends_in_zero_bytes_is_no_other_one():
    """Keys are compared in all of their bytes."""
    keys = np.array([b"a" * 15, b"a" * 15 + b"\1", b"b" * 16], KEY)
    kept = Kept("teacher", [], keys, np.arange(3), [])
    known, places = kept.find(np.array([b"a" * 15, b"b" * 16, b"a" * 14, b"c" * 16], KEY))
    assert known.tolist() == [True, True, False, False]
    assert places[:2].tolist() == [0, 2]


@pytest.mark.filterwarnings("ignore:none of the")
def test_later_samples_are_merged_with_those_before(path, monkeypatch):
    monkeypatch.setattr("tfcompress.distillation.kept_outputs._BLOCK", 100)  # Files are copied so.
    inputs, outputs = samples(90)
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=False)
    for start in (60, 0, 30):
        part = slice(start, start + 30)
        fill(cache, take(inputs, part), take(outputs, part))
        cache.end_epoch()
    mixed = np.random.default_rng(2).permutation(90)
    require_found(cache, take(inputs, mixed), take(outputs, mixed))
    assert cache.samples == 90
    assert cache.error is None


def test_a_partly_known_batch_stores_what_is_new(path):
    inputs, outputs = samples(10)
    cache = filled(path, take(inputs, slice(6)), take(outputs, slice(6)), whole_epochs=False)
    hit, rows = cache.lookup(inputs)
    assert not hit
    assert not rows[0].any()
    others = [output + 1 for output in outputs]
    cache.store(inputs, others)
    cache.end_epoch()
    assert cache.samples == 10
    require_found(cache, take(inputs, slice(6)), take(outputs, slice(6)))
    require_found(cache, take(inputs, slice(6, 10)), take(others, slice(6, 10)))


def test_an_incomplete_file_takes_the_rest_later(target):
    inputs, outputs = samples(20)
    filled(target, take(inputs, slice(8)), take(outputs, slice(8)), whole_epochs=False).close()
    assert arrays_in(target)[0]["complete"] is False
    rest = slice(8, 20)
    filled(target, take(inputs, rest), take(outputs, rest), whole_epochs=True).close()
    assert arrays_in(target)[0]["complete"] is True
    cache = TeacherCache(target)
    cache.begin("teacher", SPECS, whole_epochs=True)
    require_found(cache, inputs, outputs)


def test_an_epoch_that_was_cut_short_is_not_complete(target):
    inputs, outputs = samples(20)
    cache = TeacherCache(target)
    cache.begin("teacher", SPECS, whole_epochs=True)
    fill(cache, take(inputs, slice(8)), take(outputs, slice(8)))
    cache.end_epoch(cut_short=True)
    cache.close()
    assert arrays_in(target)[0]["complete"] is False
    cache.begin("teacher", SPECS, whole_epochs=True)
    fill(cache, take(inputs, slice(8, 20)), take(outputs, slice(8, 20)))
    cache.end_epoch()
    require_found(cache, inputs, outputs)


def test_samples_that_change_after_the_first_epoch_are_refused(path):
    inputs, outputs = samples(20)
    cache = filled(path, inputs, outputs)
    require_found(cache, take(inputs, slice(7)), take(outputs, slice(7)))
    others, _ = samples(7, seed=1)
    match = r"all 20 of an earlier epoch.*received others \(7 so far\).*augmented at random"
    with pytest.raises(ValueError, match=match) as raised:
        cache.lookup(others)
    assert cache.error is raised.value
    cache.begin("teacher", SPECS, whole_epochs=False)
    assert cache.error is None


def test_a_batch_left_out_of_each_shuffled_epoch_is_no_change(path):
    """`batch(8, drop_remainder=True)` leaves out others of 30 samples each time."""
    inputs, outputs = samples(30)
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=True)
    random = np.random.default_rng(4)
    for _ in range(6):
        for rows in random.permutation(30)[:24].reshape(3, 8):
            if not cache.lookup(take(inputs, rows))[0]:
                cache.store(take(inputs, rows), take(outputs, rows))
        cache.end_epoch()
    assert cache.samples == 30
    with pytest.raises(ValueError, match="received others"):  # That was all that can be left out.
        cache.lookup(samples(2, seed=1)[0])


def test_what_replicas_leave_out_is_that_of_the_whole_batch(path):
    inputs, outputs = samples(30)
    cache = filled(path, take(inputs, slice(16)), take(outputs, slice(16)), replicas=2)
    fill(cache, take(inputs, slice(16, 29)), take(outputs, slice(16, 29)))
    with pytest.raises(ValueError, match=r"14 so far"):
        cache.lookup(take(inputs, slice(29, 30)))


def test_a_second_training_in_memory_may_add_samples():
    inputs, outputs = samples(20)
    cache = filled(None, take(inputs, slice(8)), take(outputs, slice(8)))
    cache.close()
    cache.begin("teacher", SPECS, whole_epochs=True)
    require_found(cache, take(inputs, slice(8)), take(outputs, slice(8)))
    fill(cache, take(inputs, slice(8, 20)), take(outputs, slice(8, 20)))
    cache.end_epoch()
    require_found(cache, inputs, outputs)
    cache.begin("another teacher", SPECS, whole_epochs=True)
    assert cache.samples == 0
    fill(cache, inputs, outputs)
    cache.end_epoch()
    cache.begin("another teacher", SPECS[:1], whole_epochs=True)
    assert cache.samples == 0
    assert len(cache.lookup(inputs)[1]) == 1


def test_arrays_may_be_used_again_after_they_were_stored(path):
    inputs, outputs = samples(5)
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=True)
    given = [array.copy() for array in outputs]
    cache.store(inputs, given)
    for array in given:
        array[:] = 0
    cache.end_epoch()
    require_found(cache, inputs, outputs)


def test_closing_drops_an_unfinished_epoch(path):
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=True)
    fill(cache, *samples(8))
    cache.close()
    cache.begin("teacher", SPECS, whole_epochs=True)
    cache.end_epoch()
    assert cache.samples == 0
    fill(cache, *samples(8, seed=1))  # Nothing was complete yet.


def test_without_whole_epochs_a_change_is_a_warning_once(path):
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=False)
    for seed in range(4):
        fill(cache, *samples(8, seed))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            cache.end_epoch()
        messages = [str(each.message) for each in caught]
        assert len(messages) == (seed == 1)
        assert all("none of the 8 samples of this epoch was among the 8" in m for m in messages)
        assert all(each.filename == __file__ for each in caught)
    cache.begin("teacher", SPECS, whole_epochs=False)
    cache.lookup(samples(8, 2)[0])  # Known; new ones besides are usual.
    fill(cache, *samples(8, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cache.end_epoch()


def test_arrays_that_cannot_be_cached_are_refused():
    cache = TeacherCache()
    with pytest.raises(ValueError, match=r"shape \(None, 3\) per sample.*Fix the input shape"):
        cache.begin("teacher", [((None, 3), "float32")], whole_epochs=True)
    with pytest.raises(RuntimeError, match="`begin` first"):
        cache.lookup([np.zeros((1, 2))])
    cache.begin("teacher", SPECS, whole_epochs=True)
    with pytest.raises(ValueError, match=r"inputs that are numbers; received object\. Turn texts"):
        cache.lookup([np.array(["a text"], object)])
    with pytest.raises(ValueError, match=r"the shapes \[\(3, 2\), \(2,\)\]"):
        cache.lookup([np.zeros((3, 2)), np.zeros(2)])
    inputs, outputs = samples(4)
    for wrong in (outputs[:1], take(outputs, slice(3)), [outputs[0].astype("float64"), outputs[1]]):
        with pytest.raises(ValueError, match=r"takes 4 rows of float32 \(3,\), float16 \(2, 2\)"):
            cache.store(inputs, wrong)
