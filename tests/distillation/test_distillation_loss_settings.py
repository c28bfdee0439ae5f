"""Settings of distillation losses: saved and loaded, and bad ones refused."""

import keras
import pytest
from distillation_tensors import MAPS, OTHER_MAPS

from tfcompress import distillation as kd

CONFIGURED = [
    kd.SoftLabels(3.0, from_logits=(True, None), activation="sigmoid", weight=0.5, output="a"),
    kd.Regression("mae", output=1, name="numbers", teacher=1),
    kd.Regression(keras.losses.CategoricalCrossentropy(from_logits=True)),
    kd.Features("a", "b", loss="cosine_similarity", projection=False, weight=2),
    kd.Features("a", "b", loss=keras.losses.LogCosh()),
    kd.AttentionTransfer("a", "b", power=3.0),
    kd.Relational("a", "b", distance=0.5, angle=0.0),
    kd.Contrastive("a", "b", size=16, temperature=0.5),
]


@pytest.mark.parametrize("loss", CONFIGURED, ids=lambda loss: type(loss).__name__)
def test_configuration_comes_back(loss):
    import json

    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    back = keras.saving.deserialize_keras_object(config)
    assert type(back) is type(loss)
    assert back.get_config() == loss.get_config()
    given = MAPS[:, :2, 0], OTHER_MAPS[:, :2, 0]
    assert float(back(*given)) == float(loss(*given))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.SoftLabels(0.0), "temperature must be a number greater than 0; received 0.0"),
        (lambda: kd.SoftLabels(-1), "received -1"),
        (lambda: kd.SoftLabels(float("inf")), "received inf"),
        (lambda: kd.SoftLabels(float("nan")), "received nan"),
        (lambda: kd.SoftLabels("warm"), "received 'warm'"),
        (lambda: kd.SoftLabels(activation="relu"), "softmax or sigmoid; received 'relu'"),
        (lambda: kd.SoftLabels(from_logits="yes"), "from_logits must be True.*received 'yes'"),
        (lambda: kd.SoftLabels(weight=-1), "weight must be a number of 0 or more; received -1"),
        (lambda: kd.Features("a"), "teacher_layer='a', student_layer=None.*Name both"),
        (lambda: kd.Features("a", "b", output="c"), "output='c' and teacher_layer='a'"),
        (lambda: kd.Features("a", "b", projection="yes"), "projection must be.*received 'yes'"),
        (lambda: kd.Features("a", "b", loss="msee"), "unknown loss 'msee'.*mse"),
        (lambda: kd.Regression("mean_squared_eror"), "mean_squared_error"),
        (lambda: kd.AttentionTransfer("a", "b", power=0.5), "power must be 1 or more.*0.5"),
        (lambda: kd.Relational("a", "b", distance=0, angle=0), "one of them greater"),
        (lambda: kd.Relational("a", "b", angle=-1), "0 or more.*-1"),
        (lambda: kd.Contrastive("a", "b", size=0), "greater than 0; received 0"),
        (lambda: kd.Contrastive("a", "b", temperature=0), "greater than 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
