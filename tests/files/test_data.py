"""Data in every form comes out as the same validated samples."""

import types

import numpy as np
import pytest

from tfcompress.files.samples import batches


def wanted(name="image", shape=(None, 2, 3), dtype="float32"):
    return types.SimpleNamespace(name=name, shape=shape, dtype=dtype)


ONE = [wanted()]
TWO = [wanted("image", (None, 2)), wanted("age", (None,), "int32")]
X = np.arange(24).reshape(4, 2, 3)
A, B = np.arange(8.0).reshape(4, 2), np.arange(4)


def collect(data, inputs, limit=None):
    found = list(batches(data, inputs, limit))
    for sample in found:
        assert list(sample) == [w.name for w in inputs]
        assert all(len(array) == 1 for array in sample.values())
        assert all(type(array) is np.ndarray for array in sample.values())
    return {w.name: np.concatenate([s[w.name] for s in found]) for w in inputs}


FORMS_OF_ONE = {
    "array": X,
    "integers": X.astype(np.uint8),
    "doubles": X.astype(np.float64),
    "half": X.astype(np.float16),
    "nested lists": X.tolist(),
    "list": [X],
    "tuple": (X,),
    "dict": {"image": X},
    "samples": list(X),
    "batches": [X[:3], X[3:]],
    "tuples": [(X[:3], [0, 1, 1]), (X[3:], [0])],
    "dicts": [{"image": x} for x in X],
    "generator": lambda: (x for x in X),
    "generator of batches": lambda: (X[i : i + 2] for i in (0, 2)),
    "generator with labels": lambda: ((x, 1) for x in X),
    "generator with weights": lambda: ((x, 1, 0.5) for x in X),
    "generator of lists": lambda: ([x, np.ones(1)] for x in X),
    "generator of nested lists": lambda: (x.tolist() for x in X),
    "generator of dicts": lambda: (({"image": x}, 1) for x in X),
    "1-tuples": lambda: ((x,) for x in X),
    "iterator": lambda: iter(X),
}


@pytest.mark.parametrize("form", FORMS_OF_ONE)
def test_one_input(form):
    data = FORMS_OF_ONE[form]
    found = collect(data() if callable(data) else data, ONE)["image"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X)


FORMS_OF_TWO = {
    "list": [A, B],
    "tuple": (A, B),
    "dict": {"age": B, "image": A},
    "tuples": list(zip(A, B, strict=True)),
    "tuples of batches": [(A[:1], B[:1]), (A[1:], B[1:])],
    "nested tuples": [((a, b), 0) for a, b in zip(A, B, strict=True)],
    "nested lists": [([a, b], 0) for a, b in zip(A, B, strict=True)],
    "dicts with labels": [({"image": a, "age": b}, 0) for a, b in zip(A, B, strict=True)],
}


@pytest.mark.parametrize("form", FORMS_OF_TWO)
def test_two_inputs(form):
    for data in (FORMS_OF_TWO[form], (element for element in FORMS_OF_TWO[form])):
        if form in ("list", "tuple", "dict") and not isinstance(data, (list, tuple, dict)):
            continue
        found = collect(data, TWO)
        np.testing.assert_array_equal(found["image"], A)
        np.testing.assert_array_equal(found["age"], B)
        assert [found[name].dtype for name in found] == [np.float32, np.int32]


def test_tensorflow_data():
    tf = pytest.importorskip("tensorflow")
    make = tf.data.Dataset.from_tensor_slices
    x = X.astype(np.float32)
    for data in (
        make(x),
        make(x).batch(3),
        make((x,)),
        make((x, [0, 1, 2, 3])).batch(2),
        make({"image": x}).batch(4),
        make(({"image": x}, [0, 1, 2, 3])),
        tf.constant(x),
        tf.cast(x, tf.bfloat16),
    ):
        np.testing.assert_array_equal(collect(data, ONE)["image"], X)
    pair = make(((A, B), B)).batch(2)
    np.testing.assert_array_equal(collect(pair, TWO)["age"], B)
    with pytest.raises(ValueError, match=r"has no end.*take\(100\)"):
        batches(make(x).repeat(), ONE)
    assert len(list(batches(make(x).repeat(), ONE, 10))) == 10


def test_keras_datasets():
    keras = pytest.importorskip("keras")

    class Halves(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return X[2 * index : 2 * index + 2], np.zeros(2)

    np.testing.assert_array_equal(collect(Halves(), ONE)["image"], X)


def test_names_and_shapes_of_a_real_model():
    keras = pytest.importorskip("keras")
    image, age = keras.Input((2,), name="image"), keras.Input((), name="age", dtype="int32")
    same = keras.layers.Identity
    model = keras.Model([image, age], [same()(image), same()(age)])
    np.testing.assert_array_equal(collect({"image": A, "age": B}, model.inputs)["age"], B)


def test_a_single_sample_needs_no_batch_axis():
    assert collect(X[0], ONE)["image"].shape == (1, 2, 3)
    assert collect({"image": A[0], "age": B[0]}, TWO)["age"].shape == (1,)


def test_only_as_many_as_wanted_are_read():
    read = []

    def endless():
        while True:
            read.append(1)
            yield X[0]

    assert len(list(batches(endless(), ONE, 3))) == 3
    assert len(read) <= 4
    assert len(list(batches(X, ONE, 100))) == 4


def test_integers_and_bools_stay_exact():
    for given, dtype in (
        (np.array([2**31 - 1]), "int32"),
        (np.array([True]), "int8"),
        (np.array([255], np.int64), "uint8"),
        (np.array([0, 1]), "bool"),
    ):
        found = collect(given, [wanted(shape=(None,), dtype=dtype)])["image"]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, given)
    assert collect(np.array([True, False]), [wanted(shape=(None,))])["image"].tolist() == [1, 0]


def test_dynamic_sizes_fit_anything():
    assert collect(X, [wanted(shape=(None, None, 3))])["image"].shape == (4, 2, 3)


NAN = X.astype(float)
NAN[2, 0, 0] = np.nan
IMAGE = [wanted(shape=(None, 28, 28, 1))]
COLOUR = [wanted(shape=(None, 28, 32, 3))]
INTEGER = [wanted(shape=(None,), dtype="int8")]


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
    [
        (np.zeros((5, 28, 28)), IMAGE, r"\(5, 28, 28\); expected \(samples, 28, 28, 1\): add a ch"),
        (np.zeros((28, 28)), IMAGE, r"add a channel axis with x\[..., None\]"),
        (np.zeros((5, 784)), IMAGE, r"reshape with x.reshape\(-1, 28, 28, 1\)"),
        (np.zeros((5, 32, 32, 1)), IMAGE, "resize the images to 28x28"),
        (np.zeros((5, 28, 28, 3)), IMAGE, r"the images need 1 channel"),
        (np.zeros((5, 3, 28, 32)), COLOUR, r"move the channels last with np.moveaxis\(x, -3, -1\)"),
        (np.zeros((5, 2, 3, 1)), ONE, r"drop the last axis with x\[..., 0\]"),
        (np.zeros(()), ONE, r"received shape \(\); expected \(samples, 2, 3\): prepare"),
        (NAN, ONE, r"input 'image', sample 2: received 1 value\(s\) that are NaN.*nan_to_num"),
        (X * 1e300, ONE, "NaN or infinite"),
        (np.zeros((0, 2, 3)), ONE, "the data is empty: received no samples; expected at least one"),
        ([], ONE, "the data is empty"),
        ({"image": np.zeros((0, 2)), "age": np.zeros(0, int)}, TWO, "the data is empty"),
        (iter(()), ONE, "a generator may have been used up"),
        (None, ONE, "expected data for the model; received None. Pass an array"),
        ("x.npy", ONE, "received 'x.npy'. Load files with numpy.load"),
        (3 + 0j, ONE, "expected data; received complex. Pass"),
        ({"img": X}, ONE, "must have the names image; received img. Add image. Leave out img"),
        ({"image": A}, TWO, "must have the names image, age; received image. Add age"),
        ({"image": X, "label": X}, ONE, "Leave out label"),
        ((X, X), ONE, r"has 1 input\(s\), 'image'; received 2 array\(s\). Pass .* without labels"),
        (A, TWO, r"has 2 input\(s\), 'image', 'age'; received 1 array\(s\). Pass a dict"),
        ([A, B, B], TWO, r"received 3 array\(s\)"),
        ([(A[0],)], TWO, r"received 1 array\(s\)"),
        ([()], ONE, r"received 0 array\(s\)"),
        ([(X[0], 1, 2, 3)], ONE, r"received 4 array\(s\)"),
        ([A, B[:3]], TWO, "same number of samples; received 'image' 4, 'age' 3. Cut"),
        (X.astype(str), ONE, r"received dtype <U21; expected float32: make it an array of numbers"),
        (
            X.astype(object),
            ONE,
            "received dtype object; expected float32: it may hold samples of d",
        ),
        (X.astype(complex), ONE, "received dtype complex128"),
        ([[1, 2], [3]], ONE, "cannot be made an array: .*all samples of the same shape"),
        (np.zeros(3), INTEGER, r"float64; expected int8: convert it with x.astype\('int8'\)"),
        (
            np.array([1, 200]),
            INTEGER,
            "sample 1: received values from 200 to 200; expected int8, -1",
        ),
        (B, [wanted(shape=(None,), dtype="bool")], "sample 2: .*expected bool, 0 to 1"),
        (B, [wanted(shape=(None,), dtype="complex64")], "takes complex64, which cannot be conv"),
        (B, [wanted(shape=(None,), dtype="string")], "expected string: make it an array of texts"),
    ],
)
def test_what_does_not_fit_is_refused(data, inputs, message):
    with pytest.raises(ValueError, match=f"(?i){message}") as caught:
        list(batches(data, inputs))
    assert "\n" not in str(caught.value)


def test_the_first_sample_is_checked_at_once():
    with pytest.raises(ValueError, match="received shape"):
        batches((x for x in np.zeros((5, 4))), ONE)


@pytest.mark.parametrize("limit", [0, -1, 1.5])
def test_a_limit_is_a_positive_whole_number(limit):
    with pytest.raises(ValueError, match=f"at least 1; received {limit}"):
        batches(X, ONE, limit)
