"""init_from_teacher: which channels a student takes, what is left, and what is told."""

import keras
import numpy as np
import pytest
from init_models import (
    CASES,
    KEPT,
    attention,
    bn,
    check_equal,
    cnn,
    dense,
    image,
    kill_channels,
    residual,
    separable,
    shaken,
    unrolled,
)
from keras import layers, ops
from pruning_models import in_layers

import tfcompress as tfc
from tfcompress.channels.following import Channels
from tfcompress.channels.terms import Concat, Leaf, Product, indices, leaves_of, links, shares
from tfcompress.distillation.initialization import init_from_teacher

pytestmark = pytest.mark.filterwarnings("ignore:these operations stay float")


@pytest.mark.parametrize("case", CASES)
def test_dead_channels_leave_no_trace(case):
    build, kept = CASES[case]
    teacher = kill_channels(shaken(build(8)), **kept)
    student = shaken(build(4), seed=1)
    done = init_from_teacher(student, teacher)
    assert done.fraction == 1.0, str(done)
    check_equal(student, teacher)


def test_dead_heads_and_axes_of_einsum_leave_no_trace():
    teacher, student = shaken(attention(8)), shaken(attention(4), seed=1)
    heads = teacher.get_layer("heads")
    for part in (heads.query_dense, heads.key_dense, heads.value_dense):
        part.kernel.assign(part.kernel * np.array([0.0, 1.0])[:, None])
        part.bias.assign(part.bias * np.array([0.0, 1.0])[:, None])
    up, live = teacher.get_layer("up"), np.isin(np.arange(8), KEPT[8])[:, None]
    up.kernel.assign(up.kernel * live)
    up.bias.assign(up.bias * live)
    assert init_from_teacher(student, teacher).fraction == 1.0
    check_equal(student, teacher)


@pytest.mark.parametrize("case", [*CASES, "attention"])
def test_equal_models_become_equal(case):
    build = CASES[case][0] if case in CASES else attention
    student, teacher = shaken(build(4), seed=1), shaken(build(4))
    done = init_from_teacher(student, teacher)
    assert {layer.how for layer in done.layers} == {"copied"}
    assert done.fraction == 1.0
    assert done.skipped == ()
    for ours, theirs in zip(student.weights, teacher.weights, strict=True):
        assert np.array_equal(ours, theirs)


def test_channels_with_the_largest_norms_are_kept_in_their_order():
    teacher, student = shaken(dense(4, 2)), shaken(dense(2, 2), seed=1)
    first, second = teacher.layers
    kernel = np.array([[1, -9, 2, 1], [0, 0, 3, 1], [0, 0, 3, 1]], "float32")  # norms 1, 9, 8, 3
    first.kernel.assign(kernel)
    done = init_from_teacher(student, teacher)
    assert np.array_equal(student.layers[0].kernel, kernel[:, [1, 2]])
    assert np.array_equal(student.layers[0].bias, first.bias.numpy()[[1, 2]])
    assert np.array_equal(student.layers[1].kernel, second.kernel.numpy()[[1, 2]])
    assert np.array_equal(student.layers[1].bias, second.bias)
    assert [x.detail for x in done.layers] == ["2 of 4 channels", "2 of 4 inputs"]


def test_norms_of_layers_that_are_added_are_summed():
    def build(width):
        x = keras.Input((1,))
        y = layers.Add()([layers.Dense(width, name="a")(x), layers.Dense(width, name="b")(x)])
        return keras.Model(x, layers.Dense(1, name="out")(y))

    teacher, student = build(3), build(1)
    teacher.get_layer("a").kernel.assign([[5.0, 0.0, 4.0]])
    teacher.get_layer("b").kernel.assign([[0.0, 6.0, -4.0]])  # sums: 5, 6, 8
    init_from_teacher(student, teacher)
    assert student.get_layer("a").kernel.numpy().tolist() == [[4.0]]
    assert student.get_layer("b").kernel.numpy().tolist() == [[-4.0]]


def test_what_does_not_fit_is_left_with_the_reason():
    teacher, student = shaken(dense(8, 4, 5)), shaken(dense(4, 6, 3), seed=1)
    before = student.layers[2].get_weights()
    done = init_from_teacher(student, teacher)
    how = {x.student: (x.how, x.detail) for x in done.layers}
    assert how["a"] == ("cut", "4 of 8 channels")
    assert how["b"] == ("left", "the teacher's is narrower: (8, 4) for (4, 6) ('b')")
    assert how["c"][0] == "left"
    assert "4 channels cannot become 3: they are an output of the model ('b')" in how["c"][1]
    assert all(map(np.array_equal, before, student.layers[2].get_weights()))
    assert done.fraction == pytest.approx(16 / (16 + 30 + 21))
    assert done.skipped == ("b", "c")


def test_outputs_and_inputs_keep_their_channels():
    teacher, student = dense(4, 4, 10, inputs=5), dense(4, 4, 3, inputs=2)
    done = init_from_teacher(student, teacher)
    assert [x.how for x in done.layers] == ["left", "copied", "left"]
    assert "2 of 5 channels of the model's input" in done.layers[0].detail
    assert "10 channels cannot become 3: they are an output" in done.layers[2].detail


def test_where_channels_cannot_be_followed_layers_are_left():
    def build(width):
        x = inputs = keras.Input((3,))
        x = ops.sort(layers.Dense(width, name="a")(x))
        return keras.Model(inputs, layers.Dense(2, name="out")(x))

    teacher, student = shaken(build(8)), shaken(build(4), seed=1)
    before = student.get_layer("out").get_weights()
    first, last = init_from_teacher(student, teacher).layers
    assert (first.how, last.how) == ("cut", "left")
    assert "nothing tells which 4 of 8 channels of Sort" in last.detail
    assert all(map(np.array_equal, before, student.get_layer("out").get_weights()))


def test_a_normalization_does_not_come_without_its_layer():
    def build(size):
        x = inputs = image()
        x = bn(layers.Conv2D(4, size, name="a")(x), "a_bn")
        x = bn(layers.Conv2D(4, 1, name="b")(x), "b_bn")
        return keras.Model(inputs, x)

    done = init_from_teacher(build(3), build(5))
    assert [x.how for x in done.layers] == ["left", "left", "copied", "copied"]
    assert (
        done.layers[0].detail
        == "the teacher's weight (5, 5, 3, 4) cannot be cut to (3, 3, 3, 4) ('a')"
    )
    assert done.layers[1].detail == "'a', whose channels it takes, is left"


@pytest.mark.slow
@pytest.mark.parametrize("build", [cnn, separable, residual, attention, unrolled])
def test_a_quantization_aware_student(build):
    teacher = shaken(build(8))
    plain, student = build(4), tfc.quantize_aware(build(4))
    wanted = init_from_teacher(plain, teacher)
    done = init_from_teacher(student, teacher)
    assert (wanted.fraction, done.fraction) == (1.0, 1.0), str(done)
    ranges = [v for v in student.weights if v.name == "range"]
    assert ranges
    assert not any(np.any(v) for v in ranges)
    # Layers are opened there, but their kernels are the same numbers.
    ours = sorted(np.sum(np.abs(v)) for v in student.weights if "kernel" in v.name)
    theirs = sorted(np.sum(np.abs(v)) for v in plain.weights if "kernel" in v.name)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def pruned(model, sparsity=0.5):
    return tfc.compress(model, tfc.Recipe([tfc.Rule("*", [in_layers(sparsity)])]))


def test_masks_of_a_student_stay():
    teacher, student = shaken(dense(8, 2)), pruned(dense(4, 2))
    init_from_teacher(student, teacher)
    layer = student.layers[1]
    assert layer.layer.kernel.shape == (3, 4)
    assert np.isin(layer.layer.kernel, teacher.layers[0].kernel).all()
    assert all(np.all(v.numpy() == 1) for v in layer.weights if "mask" in v.name)


def test_a_pruned_teacher_gives_the_weights_that_it_computes_with():
    teacher = pruned(shaken(dense(4, 2)))
    for layer in teacher.layers[1:]:
        layer.advance(0)
    student = dense(4, 2)
    init_from_teacher(student, teacher)
    assert np.count_nonzero(student.layers[0].kernel) == 6
    check_equal(student, teacher)


def test_a_student_whose_compression_has_begun_is_refused():
    teacher, student = dense(4, 2), pruned(dense(4, 2))
    student.layers[1].advance(0)
    with pytest.raises(ValueError, match="layer 'a' follows a schedule that has begun"):
        init_from_teacher(student, teacher)


class Cell(layers.Layer):
    """Of which the algebra of channels knows nothing."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, x, states):
        y = states[0] + x @ self.kernel
        return y, [y]


def test_layers_that_cannot_be_cut_are_copied_if_they_are_equal():
    def build(width, units=2):
        x = inputs = keras.Input((6, 3))
        x = layers.Conv1D(width, 1, name="a")(x)
        x = layers.RNN(Cell(units), name="b")(x)
        return keras.Model(inputs, layers.Dense(2, name="out")(x))

    teacher, student = shaken(build(3)), shaken(build(3), seed=1)
    assert {x.how for x in init_from_teacher(student, teacher).layers} == {"copied"}
    check_equal(student, teacher, tolerance=0)
    cut = {x.student: (x.how, x.detail) for x in init_from_teacher(build(2), teacher).layers}
    assert cut["a"] == ("cut", "2 of 3 channels")
    assert cut["b"] == ("left", "the teacher's weight (3, 2) cannot be cut to (2, 2) ('b')")
    assert cut["out"][0] == "copied"


def test_an_unknown_layer_does_not_read_other_channels():
    def build(left, right):
        x = inputs = keras.Input((6, 3))
        x = [layers.Conv1D(n, 1, name=f"a{i}")(x) for i, n in enumerate((left, right))]
        x = layers.RNN(Cell(2), name="b")(layers.Concatenate()(x))
        return keras.Model(inputs, x)

    first, second, last = init_from_teacher(build(2, 4), build(4, 2)).layers
    assert (first.how, second.how, last.how) == ("cut", "left", "left")
    assert last.detail == "no choice is carried into a RNN"


def test_terms_of_channels():
    channels = Channels()
    a, b, c, d = (channels.new(size, "") for size in (4, 2, 6, 3))
    assert channels.unify(c, Concat((a, b)))
    assert channels.unify(Concat((d, channels.new(3, ""))), Concat((channels.new(6, ""),)))
    assert channels.resolve(c) == Concat((a, b))
    assert channels.unify(c, Concat((b, a)))  # 4 + 2 against 2 + 4: the same two, three times
    assert channels.resolve(c) == Concat((channels.resolve(b),) * 3)
    pair, other = Product((d, channels.new(2, ""))), channels.new(4, "")
    assert channels.unify(Concat((other, pair)), Concat((channels.new(8, ""), b))) is False
    assert {other.group, *(leaf.group for leaf in leaves_of(pair))} <= set(channels.kept())
    halves = channels.split(channels.new(8, ""), [6, 2], "")
    assert [type(half) for half in halves] == [Leaf, Leaf]


def test_indices_and_shares_of_composed_axes():
    ours = Product((Leaf(0, 2), Concat((Leaf(1, 1), Leaf(2, 2)))))
    theirs = Product((Leaf(7, 2), Concat((Leaf(8, 2), Leaf(9, 3)))))
    assert links(ours, theirs) == [(Leaf(0, 2), 2), (Leaf(1, 1), 2), (Leaf(2, 2), 3)]
    choice = {0: np.array([0, 1]), 1: np.array([1]), 2: np.array([0, 2])}
    assert indices(ours, theirs, choice).tolist() == [1, 2, 4, 6, 7, 9]
    told = {group: share.tolist() for group, share in shares(ours, theirs, np.arange(10.0))}
    assert told == {0: [10, 35], 1: [5, 7], 2: [9, 11, 13]}


def test_the_teacher_stays_as_it_was():
    teacher = shaken(residual(8))
    before = teacher.get_weights()
    nodes = [len(layer._inbound_nodes) for layer in teacher.layers]
    init_from_teacher(residual(4), teacher)
    assert all(map(np.array_equal, before, teacher.get_weights()))
    assert nodes == [len(layer._inbound_nodes) for layer in teacher.layers]


def test_the_table_has_columns():
    teacher, student = dense(8, 8, 2), dense(4, 2, names=["a", "out"])
    assert str(init_from_teacher(student, teacher)).splitlines() == [
        "student  teacher  how      detail",
        "a        a        cut      4 of 8 channels",
        "out      c        cut      4 of 8 inputs",
        "-        b        skipped",
        "100.0% of the student's weights come from the teacher.",
    ]


def test_errors_come_before_any_work():
    model = dense(4, 2)
    with pytest.raises(TypeError, match=r"must be a keras\.Model of"):
        init_from_teacher(model, "teacher.keras")
    with pytest.raises(ValueError, match="is not built"):
        init_from_teacher(keras.Sequential([layers.Dense(3)]), model)
    before = model.get_weights()
    x = image()
    other = keras.Model(x, layers.Conv2D(2, 3, name="conv")(x))
    with pytest.raises(ValueError, match=r"has a \(Dense \(3, 4\)\), b .* teacher '.*' has conv"):
        init_from_teacher(model, other)
    assert all(map(np.array_equal, before, model.get_weights()))
