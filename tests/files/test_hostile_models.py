"""Hostile files of Keras 3 models, SavedModels and data: none of it is run."""

import json
import os
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from hostile_models import layers_of, refusals_by_chance, rewritten

from tfcompress.conversion.convert import convert
from tfcompress.files import sizes
from tfcompress.files.arrays import load_arrays
from tfcompress.files.models import SavedModel, load_model
from tfcompress.recipe.recipe import Recipe

layers = keras.layers


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="deep")], name="inner")
    inner.compile("sgd", "mse")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu"), inner])
    for ending in (".h5", ".keras"):
        model.save(folder / f"model{ending}")
    return folder


def function(name, module, registered="function"):
    own = {"module": module, "registered_name": registered}
    return {"class_name": "function", "config": name, **own}


def of(name, module="keras.layers", **config):
    own = {"module": module, "registered_name": None}
    return {"class_name": name, "config": {"name": "bad", **config}, **own}


HOSTILE = {
    "a download": (function("get_file", "keras.utils"), "'get_file' of the module 'keras.utils'"),
    "another file": (function("load_model", "keras.saving"), "'load_model'"),
    "the switch of safe mode": (
        function("enable_unsafe_deserialization", "keras.config"),
        "'enable_unsafe_deserialization'",
    ),
    "a module": (of("Popen", "subprocess"), "'Popen' of the module 'subprocess'"),
    "a pickle": (of("TorchModuleWrapper", module_="gASV"), "'TorchModuleWrapper'"),
    "a SavedModel": (of("TFSMLayer", filepath="/tmp"), "'TFSMLayer'"),
    "an editor of files": (of("KerasFileEditor", "keras.saving", filepath="/tmp"), "'KerasFile"),
    "code": (of("Lambda", function={"class_name": "__lambda__", "config": {}}), "Python code"),
    "a function in a Lambda": (
        of("Lambda", function=function("save_img", "keras.utils"), arguments={"path": "x"}),
        "'save_img'",
    ),
    "a type": (
        {"class_name": "__typespec__", "spec_name": "TensorSpec", "config": [], "module": "x"},
        "'TensorSpec'",
    ),
    "a file of words": (of("StringLookup", vocabulary="/etc/passwd"), "/etc/passwd"),
    "a very long name": (of("x" * 1_000_000), "x" * 80),
}


@pytest.mark.parametrize("ending", [".h5", ".keras"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_more_than_compute_is_named_and_not_made(saved, tmp_path, name, ending):
    entry, said = HOSTILE[name]

    def layer(config):
        config["config"]["layers"].append(entry)
        return config

    def activation(config):
        layers_of(config)[0]["config"]["activation"] = entry
        return config

    def compiled(config):
        layers_of(config)[-1]["compile_config"] = {"loss": entry}
        return config

    def inside(config):
        layers_of(config)[-1]["config"]["layers"][-1].update(entry)
        return config

    for change in (layer, activation, compiled, inside):
        bad = rewritten(saved / f"model{ending}", tmp_path / f"bad{ending}", change)
        with pytest.raises(ValueError, match=bad.name) as caught:
            load_model(bad)
        assert said in str(caught.value)
        assert len(str(caught.value)) < 600


def test_what_computes_is_loaded(tmp_path):
    x = keras.Input((4,))
    y = layers.Dense(4, keras.ops.silu, kernel_initializer=keras.initializers.HeNormal(1))(x)
    policy, rate = keras.DTypePolicy("float32"), keras.optimizers.schedules.CosineDecay(0.1, 9)
    y = layers.Dense(2, kernel_regularizer="l2", dtype=policy)(layers.Activation("relu")(y))
    z = layers.Lambda(keras.activations.gelu)(keras.ops.exp(y) + 1)  # which no .h5 file can hold
    for ending, output in ((".h5", y), (".keras", z)):
        model = keras.Model(x, output)
        model.compile(keras.optimizers.Adam(rate), "mse")
        model.save(tmp_path / f"model{ending}")
        found = load_model(tmp_path / f"model{ending}")
        np.testing.assert_array_equal(found(np.ones((1, 4))), model(np.ones((1, 4))))


class Acting(tf.Module):
    """One function that a signature calls, and one that is run when the model is loaded."""

    def __init__(self, act, table=None):
        super().__init__()
        self.weight = tf.Variable(2.0)
        self.act = act
        self.table = table

    @tf.function(input_signature=[tf.TensorSpec([1, 2], name="x")])
    def __call__(self, x):
        @tf.function
        def deeper(x):
            return tf.cond(tf.reduce_sum(x) > 0, lambda: self.act(x), lambda: x) * self.weight

        return {"y": deeper(x)}


def export(folder, act, table=None):
    module = Acting(act, table)
    tf.saved_model.save(module, folder, signatures={"serve": module.__call__})
    return folder


def test_saved_models_that_only_compute_are_taken(tmp_path):
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer([1], [2.0], tf.int32), 0.0
    )

    def act(x):
        tf.debugging.assert_all_finite(x, "finite")
        tf.print("x")
        return x + table.lookup(tf.cast(x, "int32")) + tf.random.uniform([1, 2])

    folder = export(str(tmp_path / "plain"), lambda x: tf.nn.relu(x) + 1.0)
    assert load_model(folder) == SavedModel(tmp_path / "plain")
    assert load_model(export(str(tmp_path / "odd"), act, table)) == SavedModel(tmp_path / "odd")
    convert(folder, tmp_path / "plain.tflite", precision="float32")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2), layers.Dropout(0.5)])
    model.export(tmp_path / "keras", verbose=False)
    assert load_model(tmp_path / "keras") == SavedModel(tmp_path / "keras")


def test_saved_models_that_act_are_refused_until_they_are_trusted(tmp_path):
    marker = tmp_path / "marker"

    def write(x):
        tf.io.write_file(str(marker), "ran")
        return x + tf.py_function(lambda: 1.0, [], tf.float32)

    folder = export(str(tmp_path / "acting"), write)
    named = "EagerPyFunc, WriteFile; expected only such as compute.*trusted=True"
    for take in (load_model, lambda path: convert(path, tmp_path / "x.tflite")):
        with pytest.raises(ValueError, match=named):
            take(folder)
    assert load_model(folder, trusted=True) == SavedModel(tmp_path / "acting")
    assert not marker.exists()


def test_what_a_saved_model_runs_when_it_is_loaded_is_looked_at(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")
    lines, texts = tf.lookup.TextFileIndex.LINE_NUMBER, tf.lookup.TextFileIndex.WHOLE_LINE
    asset = tf.lookup.TextFileInitializer(str(words), "int64", lines, "string", texts)
    table = tf.lookup.StaticHashTable(asset, "")

    def act(x):
        return x + tf.cast(tf.strings.length(table.lookup(tf.cast(x, "int64"))), "float32")

    folder = export(str(tmp_path / "table"), act, table)
    with pytest.raises(ValueError, match="InitializeTableFromTextFileV2"):
        load_model(folder)


def test_saving_is_refused_where_it_is_not_the_model_s_own(tmp_path):
    def save(x):
        tf.raw_ops.SaveV2(prefix="/tmp/x", tensor_names=["x"], shape_and_slices=[""], tensors=[x])
        return x

    with pytest.raises(ValueError, match="SaveV2"):
        load_model(export(str(tmp_path / "saving"), save))


def test_what_ends_hdf5_ends_no_other_process(saved, tmp_path):
    """A list of texts that is told to be one of something else."""
    content = (saved / "model.h5").read_bytes()
    text = b"weight_names\0\0\0\0\x19"
    assert text + b"\1" in content
    (tmp_path / "bad.h5").write_bytes(content.replace(text + b"\1", text + b"\x88"))
    with pytest.raises(ValueError, match=r"bad\.h5' is damaged .*ended by SIGSEGV"):
        load_model(tmp_path / "bad.h5")
    assert load_model(saved / "model.h5").count_params() == 30


@pytest.fixture
def small(monkeypatch, in_this_process):
    """Limits that small files reach."""
    monkeypatch.setattr(sizes, "MORE", 2**22)
    monkeypatch.setattr(sizes, "_TEXT", 2**18)


def refused(make, said):
    start = time.process_time()
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert time.process_time() - start < 2
    assert len(str(caught.value)) < 600


def test_archives_that_declare_more_than_they_hold_are_refused(small, saved, tmp_path):
    with zipfile.ZipFile(saved / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    bomb = bytes(2**20)
    for name in parts:
        content = b"[" * 2**19 if name.endswith("json") else bomb
        with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            for other, data in parts.items():
                archive.writestr(other, content if other == name else data)
            if not name.endswith("json"):
                for i in range(9):
                    archive.writestr(f"assets/{i}", bomb)
        refused(lambda: load_model(tmp_path / "bomb.keras"), "declares [0-9,]+ bytes")
    with zipfile.ZipFile(tmp_path / "odd.keras", "w", zipfile.ZIP_BZIP2) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    refused(lambda: load_model(tmp_path / "odd.keras"), "packed in an unusual way")
    with zipfile.ZipFile(tmp_path / "twice.keras", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        first = archive.infolist()[0]
        for i in range(100):  # all of them the same bytes
            copy = zipfile.ZipInfo(f"assets/{i}")
            for key in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(copy, key, getattr(first, key))
            archive.filelist.append(copy)
        archive._didModify = True
    refused(lambda: load_model(tmp_path / "twice.keras"), "lies over another one")


def test_weights_that_lie_elsewhere_or_fill_the_memory_are_refused(small, saved, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64))

    def bomb(file):
        file.create_dataset("w", (2**12, 2**10), "f4", chunks=(2**10, 2**10), compression=9)

    def external(file):
        file.create_dataset("w", (4,), "f4", external=[(str(tmp_path / "secret"), 0, 16)])

    def linked(file):
        file["w"] = h5py.ExternalLink(str(saved / "model.h5"), "model_weights")

    for change, said in (
        (bomb, "declares [0-9,]+ bytes"),
        (external, "lies in another file"),
        (linked, r"leads elsewhere \(ExternalLink\)"),
    ):
        path = tmp_path / "bad.h5"
        path.write_bytes((saved / "model.h5").read_bytes())
        with h5py.File(path, "a") as file:
            change(file)
        refused(lambda: load_model(tmp_path / "bad.h5"), said)
        with h5py.File(tmp_path / "w.h5", "w") as file:
            change(file)
        with zipfile.ZipFile(saved / "model.keras") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        parts["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()
        with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        refused(lambda: load_model(tmp_path / "bad.keras"), said)


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_layers_that_fill_the_memory_are_refused(small, saved, tmp_path, ending):
    def wide(config):
        for layer in layers_of(config)[:1] * 2:
            layer["config"]["units"] = 10**6
        return config

    bad = rewritten(saved / f"model{ending}", tmp_path / f"bad{ending}", wide)
    refused(lambda: load_model(bad), "its configuration declares [0-9,]+ bytes")
    assert load_model(saved / f"model{ending}").count_params() == 30


def test_samples_that_declare_more_than_they_hold_are_refused(small, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(9):
            archive.writestr(f"{i}.npy", bytes(2**20))
    refused(lambda: load_arrays(tmp_path / "bomb.npz"), "declares [0-9,]+ bytes")
    np.save(tmp_path / "a.npy", np.zeros(4, "f4"))
    data = (tmp_path / "a.npy").read_bytes().replace(b"(4,), }" + b" " * 9, b"(9999999999,), }")
    (tmp_path / "a.npy").write_bytes(data)
    refused(lambda: load_arrays(tmp_path / "a.npy"), "damaged or cut off")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    refused(lambda: load_arrays(tmp_path / "a.npz"), "its array 'a.npy' declares")


def test_models_that_are_deep_or_long_are_refused_at_once(saved, tmp_path):
    deep = "[" * 5000 + "]" * 5000
    bad = rewritten(saved / "model.keras", tmp_path / "deep.keras", lambda config: deep)
    refused(lambda: load_model(bad), "deeper than 100 levels")

    def many(config):
        config["config"]["layers"] *= 5000
        return config

    bad = rewritten(saved / "model.keras", tmp_path / "many.keras", many)
    assert json.loads(zipfile.ZipFile(bad).read("config.json"))
    assert os.path.getsize(bad) < 2**24
    refused(lambda: load_model(bad), "more than 10,000 layers")


COUNTS = pytest.mark.parametrize(
    "count", [20, pytest.param(1500, marks=pytest.mark.slow)], ids=["few", "many"]
)


@COUNTS
@pytest.mark.parametrize("kind", ["model.keras", "model.h5", "samples.npz", "recipe.yaml"])
def test_only_a_value_error_comes_out_of_odd_files(saved, tmp_path, kind, count):
    if kind == "samples.npz":
        np.savez(tmp_path / kind, x=np.zeros((4, 2), "f4"), y=np.arange(4))
    elif kind == "recipe.yaml":
        Recipe.load("int8").save(tmp_path / kind)
    source = tmp_path / kind if (tmp_path / kind).exists() else saved / kind
    load = {".npz": load_arrays, ".yaml": Recipe.load}.get(source.suffix, load_model)
    assert len(refusals_by_chance(load, source, tmp_path, count)) > count // 4
