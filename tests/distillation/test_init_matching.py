"""Which layers of a deeper teacher a student starts from."""

import keras
import numpy as np
import pytest
from init_models import dense, image, shaken
from keras import layers

from tfcompress.distillation.initialization import init_from_teacher
from tfcompress.distillation.matching import spread


def test_spread_is_that_of_distilbert():
    assert spread(6, 12) == [0, 2, 4, 7, 9, 11]
    assert spread(1, 5) == [0]


def stack(block, count, width=4, first=0):
    x = inputs = keras.Input((3,))
    x = layers.Dense(width, name="stem")(x)
    for number in range(first, first + count):
        x = block(x, width, number)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def plain_block(x, width, number):
    return layers.Dense(width, "relu", name=f"{number}_a")(x)


def residual_block(x, width, number):
    # All four have one shape, so that only the Add tells where a block begins.
    y = layers.BatchNormalization(name=f"{number}_bn")(layers.Dense(width, name=f"{number}_a")(x))
    return layers.Add()([x, layers.Dense(width, name=f"{number}_b")(y)])


def transformer_block(x, width, number):
    y = layers.Reshape((1, width))(x)
    y = layers.Add()([y, layers.MultiHeadAttention(2, 2, name=f"{number}_heads")(y, y)])
    y = layers.LayerNormalization(name=f"{number}_norm")(y)
    z = layers.Dense(2 * width, "gelu", name=f"{number}_up")(y)
    y = layers.Add()([y, layers.Dense(width, name=f"{number}_down")(z)])
    return layers.Flatten()(layers.LayerNormalization(name=f"{number}_norm2")(y))


@pytest.mark.parametrize(
    ("block", "taken"),
    # The stem is like a block of a plain stack, and so the first of seven.
    [(plain_block, [2, 5]), (residual_block, [0, 2, 5]), (transformer_block, [0, 2, 5])],
    ids=["plain", "residual", "transformer"],
)
def test_of_a_deeper_stack_evenly_spread_blocks_are_taken(block, taken):
    teacher, student = shaken(stack(block, 6)), shaken(stack(block, len(taken)), seed=1)
    done = init_from_teacher(student, teacher)
    assert done.fraction == 1.0
    pairs = {x.student: x.teacher for x in done.layers}
    for number, source in enumerate(taken):
        ours = [x for x in student.layers if x.name.startswith(f"{number}_")]
        assert ours
        for layer in ours:
            name = f"{source}_{layer.name.split('_')[1]}"
            assert pairs[layer.name] == name
            for a, b in zip(layer.weights, teacher.get_layer(name).weights, strict=True):
                assert np.array_equal(a, b)
    left_out = {x.name for x in teacher.layers if x.weights} - set(pairs.values())
    assert set(done.skipped) == left_out


def test_a_shallower_and_narrower_stack():
    teacher, student = stack(residual_block, 6, width=8), stack(residual_block, 3)
    done = init_from_teacher(student, shaken(teacher))
    assert done.fraction == 1.0
    assert [x.teacher for x in done.layers if x.student.endswith("_b")] == ["0_b", "2_b", "5_b"]


def dense_net(width, numbers):
    x = inputs = image()
    x = layers.Conv2D(width, 3, name="stem")(x)
    for number in numbers:
        y = layers.Conv2D(width // 2, 1, activation="relu", name=f"{number}_a")(x)
        x = layers.Concatenate()([x, layers.Conv2D(3, 3, padding="same", name=f"{number}_b")(y)])
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.GlobalMaxPooling2D()(x)))


def test_concatenations_lose_the_parts_that_are_skipped():
    teacher, student = shaken(dense_net(8, range(5))), shaken(dense_net(8, range(3)), seed=1)
    done = init_from_teacher(student, teacher)
    assert done.fraction == 1.0
    assert [x.teacher for x in done.layers if x.student.endswith("_a")] == ["0_a", "2_a", "4_a"]
    stem_and_blocks = [*range(8), 8, 9, 10, 14, 15, 16, 20, 21, 22]
    kernel = teacher.get_layer("out").kernel.numpy()
    assert np.array_equal(student.get_layer("out").kernel, kernel[stem_and_blocks])
    kernel = teacher.get_layer("4_a").kernel.numpy()
    assert np.array_equal(student.get_layer("2_a").kernel, kernel[:, :, stem_and_blocks[:14]])


def test_names_that_do_not_just_count_tell_the_blocks():
    teacher = shaken(stack(residual_block, 6))
    student = stack(lambda x, width, n: residual_block(x, width, [1, 2, 5][n]), 3)
    done = init_from_teacher(student, teacher)
    assert all(x.student == x.teacher for x in done.layers)


def test_match_goes_before():
    teacher, student = shaken(dense(4, 4, 4, 2)), dense(4, 4, 2)
    done = init_from_teacher(student, teacher, match={"b": "c"})
    assert {x.student: x.teacher for x in done.layers} == {"a": "a", "b": "c", "c": "d"}
    assert np.array_equal(student.layers[1].kernel, teacher.layers[2].kernel)


@pytest.mark.parametrize(
    ("match", "told"),
    [
        ({"hiden": "a"}, "'hiden', which is no layer of the student. Did you mean 'hidden'"),
        ({"hidden": "x"}, "'x', which is no layer of the teacher. It has: a, b, c"),
        ({"hidden": "c"}, r"narrower: \(4, 2\) for \(3, 4\)"),
    ],
)
def test_a_wrong_match_is_told_and_nothing_is_set(match, told):
    teacher, student = dense(4, 4, 2), dense(4, 2, names=["hidden", "out"])
    before = student.get_weights()
    with pytest.raises(ValueError, match=told):
        init_from_teacher(student, teacher, match=match)
    assert all(map(np.array_equal, before, student.get_weights()))
