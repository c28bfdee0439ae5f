"""Files of tf_keras that name more than layers and arithmetic: nothing of it is run."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hostile_models import layers_of, refusals_by_chance, rewritten

from tfcompress.legacy import import_tf_keras, import_tfmot
from tfcompress.legacy.functions import FUNCTIONS
from tfcompress.legacy.migration import migrate

k, tfmot = import_tf_keras(), import_tfmot()
L = k.layers
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of a Functional, a Sequential, a wrapped and a pruned model, in both formats."""
    folder = tmp_path_factory.mktemp("hostile")
    x = k.Input((4, 3))
    inner = k.Sequential([L.Input((4, 3)), L.Dense(2, "relu", name="deep")], name="inner")
    y = L.TimeDistributed(L.Dense(3, name="timed"), name="outer")(inner(x))
    models = {
        "functional": k.Model(x, y * 2.0),
        "sequential": k.Sequential([L.Input((4,)), L.Dense(2, kernel_regularizer="l2")]),
        "pruned": tfmot.sparsity.keras.prune_low_magnitude(
            k.Sequential([L.Input((4,)), L.Dense(2)])
        ),
    }
    for name, model in models.items():
        model.compile("sgd", "mse")
        for ending in (".h5", ".keras"):
            model.save(folder / f"{name}{ending}")
    return folder


ACTING = [
    "load_op_library",
    "io.write_file",
    "io.gfile.rmtree",
    "io.gfile.copy",
    "keras.utils.get_file",
    "py_function",
    "saved_model.load",
    "raw_ops.WriteFile",
]


def calling(function, **arguments):
    config = {"name": "bad", "trainable": True, "dtype": "float32", "function": function}
    return {
        "module": "tf_keras.src.layers.core.tf_op_layer",
        "class_name": "TFOpLambda",
        "config": {**config, "arguments": arguments},
        "registered_name": "TFOpLambda",
    }


def layer(name, **config):
    return {"class_name": name, "config": {"name": "bad", **config}}


def function(name, module, registered="function"):
    return {
        "module": module,
        "class_name": "function",
        "config": name,
        "registered_name": registered,
    }


def put(config, place, entry):
    """Puts an entry somewhere into a configuration."""
    layers = layers_of(config)
    if place == "last":
        layers[-1].update(
            {key: entry[key] for key in entry if key != "config"},
            config={**layers[-1]["config"], **entry["config"]},
        )
        return config
    if place == "compiled":
        return {**config, "compile_config": {"loss": entry}}
    inner = {"nested": lambda: layers_of(layers[0])[0], "wrapped": lambda: layers[1]["config"]}
    if place == "nested":
        inner["nested"]().update(entry)
    elif place == "wrapped":
        layers[1]["config"]["layer"] = entry
    elif place == "pruned":
        layers[0]["config"]["layer"] = entry
    else:
        layers[0]["config"][place] = entry
    return config


def refused_name(saved, tmp_path, kind, ending, place, entry):
    source = rewritten(
        saved / f"{kind}{ending}",
        tmp_path / f"bad{ending}",
        lambda config: put(config, place, entry),
    )
    with pytest.raises(ValueError, match=source.name) as caught:
        migrate(source, tmp_path / "new.keras")
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "new.keras").exists()
    return str(caught.value)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_functions_that_do_more_than_compute_are_named_and_not_called(saved, tmp_path, ending):
    marker = tmp_path / "marker"
    for name in ACTING:
        entry = calling(name, filename=str(marker), contents="ran")
        places = [("functional", "last"), ("functional", "nested"), ("functional", "wrapped")]
        for kind, place in [*places, ("pruned", "pruned")]:
            said = refused_name(saved, tmp_path, kind, ending, place, entry)
            assert f"calls TensorFlow's tf.{name}, which is not run" in said
    said = refused_name(saved, tmp_path, "functional", ".keras", "compiled", entry)
    assert "WriteFile" in said
    assert not marker.exists()


def test_a_file_that_would_write_one_does_not(saved, tmp_path):
    """As an attacker would do it: all that tf_keras needs to call the function is there."""
    marker = tmp_path / "marker"

    def change(config):
        last = layers_of(config)[-1]
        last["config"]["function"] = "io.write_file"
        last["inbound_nodes"] = [
            ["_CONSTANT_VALUE", -1, str(marker), {"contents": "ran"}],
        ]
        return config

    bad = rewritten(saved / "functional.h5", tmp_path / "bad.h5", change)
    with pytest.raises(ValueError, match=r"tf\.io\.write_file, which is not run"):
        migrate(bad, tmp_path / "new.keras")
    assert not marker.exists()


OTHERS = {
    "a method of a class": (layer("ClassMethod", cls_symbol="io.TFRecordWriter"), "TFRecordWriter"),
    "a raw operator": (layer("TensorFlowOpLayer", node_def='{"op": "WriteFile"}'), "WriteFile"),
    "a property": (layer("InstanceProperty", attr_name="__globals__"), "__globals__"),
    "code": (layer("Lambda", function=["4wEA", None, None]), "Python code"),
    "code by another name": (
        {"class_name": "__lambda__", "config": {"value": "4wEA"}},
        "Python code",
    ),
    "a function of the system": (function("os.system", "tf_keras.src.utils.data_utils"), "os.sys"),
    "a function of Python": (function("exec", "builtins"), "exec"),
    "a function by its registered name": (
        {**function("relu", "tf_keras.src.utils.data_utils"), "registered_name": "get_file"},
        "relu",
    ),
    "a class by its registered name": (
        {
            "class_name": "Dense",
            "module": "tf_keras.src.utils.data_utils",
            "config": {},
            "registered_name": "get_file",
        },
        "'Dense'",
    ),
    "a function of Keras": (function("load_model", "keras.models"), "load_model"),
    "a file of words": (layer("StringLookup", vocabulary="/etc/passwd"), "/etc/passwd"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_ways_to_reach_something_are_refused(saved, tmp_path, name):
    entry, said = OTHERS[name]
    place = "activation" if entry["class_name"] == "function" else "kernel_regularizer"
    for ending in (".h5", ".keras"):
        for where in (place, "bias_initializer"):
            assert said in refused_name(saved, tmp_path, "sequential", ending, where, entry)


@pytest.mark.parametrize("key", ["activation", "kernel_regularizer", "bias_constraint"])
def test_functions_named_by_a_string_are_looked_at_too(saved, tmp_path, key):
    for name in ("deserialize", "Lambda", "keras_export", "x" * 1_000_000):
        said = refused_name(saved, tmp_path, "sequential", ".h5", key, name)
        assert f"the function '{name[:80]}" in said


def test_nothing_of_the_metadata_in_a_saved_model_is_run(saved, tmp_path):
    from tf_keras.protobuf import saved_metadata_pb2

    model = k.models.load_model(saved / "functional.h5")
    model.save(tmp_path / "saved", save_format="tf")
    path = tmp_path / "saved" / "keras_metadata.pb"
    found = saved_metadata_pb2.SavedMetadata()
    found.ParseFromString(path.read_bytes())
    for node in found.nodes:
        node.metadata = node.metadata.replace('"math.multiply"', '"io.gfile.rmtree"')
    path.write_bytes(found.SerializeToString())
    with pytest.raises(ValueError, match=r"tf\.io\.gfile\.rmtree, which is not run"):
        migrate(tmp_path / "saved", tmp_path / "new.keras")


def test_deep_and_long_configurations_are_refused_at_once(saved, tmp_path):
    deep = json.dumps({"class_name": "Dense", "config": {}})
    for _ in range(2000):
        deep = '{"class_name": "Sequential", "config": {"layers": [' + deep + "]}}"
    bad = rewritten(saved / "sequential.keras", tmp_path / "deep.keras", lambda config: deep)
    with pytest.raises(ValueError, match="nests its configuration deeper than"):
        migrate(bad, tmp_path / "new.keras")

    def many(config):
        layers = config["config"]["layers"]
        layers += [layers[-1]] * 20_000
        return config

    bad = rewritten(saved / "sequential.h5", tmp_path / "many.h5", many)
    with pytest.raises(ValueError, match="more than 10,000 layers"):
        migrate(bad, tmp_path / "new.keras")


def test_layers_that_fill_the_memory_are_refused(saved, tmp_path):
    def wide(config):
        layers_of(config)[0]["config"]["units"] = 10**9
        return config

    for ending in (".h5", ".keras"):
        bad = rewritten(saved / f"sequential{ending}", tmp_path / f"wide{ending}", wide)
        with pytest.raises(ValueError, match=r"its configuration declares [0-9,]+ bytes"):
            migrate(bad, tmp_path / "new.keras")


def functions():
    """A model that calls all functions of the table that take floats, and its outputs' names."""
    x = k.Input((3, 4))
    m = tf.math
    y = [m.abs(x), m.exp(x), m.log1p(m.square(x)), m.rsqrt(m.square(x) + 1.0), m.erf(x)]
    y += [m.pow(m.abs(x), 2.0), m.squared_difference(x, 1.0), m.maximum(x, 0.1), m.sign(x)]
    y += [tf.nn.gelu(x), tf.nn.silu(x), tf.nn.leaky_relu(x, alpha=0.3), tf.nn.elu(x)]
    y += [tf.nn.log_softmax(x), tf.where(m.greater(x, 0.0), x, m.negative(x)), m.softplus(x)]
    y += [tf.linalg.matmul(x, x, transpose_b=True), m.reduce_prod(x, axis=-1), m.reduce_std(x, 1)]
    y += [tf.concat([x, x], axis=1), tf.stack([x, x], axis=1), tf.tile(x, [1, 2, 1]), m.sin(x)]
    y += [tf.cast(m.floor(x), "int32"), m.reduce_min(x, axis=1, keepdims=True), m.cos(x)]
    return k.Model(x, y)


def test_arithmetic_and_arrays_are_brought_over(tmp_path):
    old = functions()
    old.save(tmp_path / "old.h5")
    used = {layer.symbol for layer in old.layers if hasattr(layer, "symbol")}
    assert used <= FUNCTIONS.keys()
    assert len(used) > 25
    migrate(tmp_path / "old.h5", tmp_path / "new.keras")
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    new = keras.saving.load_model(tmp_path / "new.keras")
    for received, expected in zip(new(x), old(x), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "count", [10, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_only_a_value_error_comes_out_of_odd_files(saved, tmp_path, ending, count):
    def load(path):
        migrate(path, tmp_path / "new.keras")

    source = saved / f"functional{ending}"
    assert len(refusals_by_chance(load, source, tmp_path, count)) > count // 4
