"""What all tests share: quiet TensorFlow, and one small trained model in its forms."""

import gc
import importlib
import os
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# By default the processor decides whether it is on; off, channels_first convolutions do not run.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import pytest

# Whole collections are left to `_collected`.
gc.set_threshold(50_000, 20, 1000)


@pytest.fixture(scope="module", autouse=True)
def _collected():
    """Frees what a module leaves, and lets the collector never walk over the rest again.

    TensorFlow, Keras and the models of all modules are millions of objects: walking over them at
    times that nobody chose took up to a minute.
    """
    yield
    gc.collect()
    gc.freeze()


# What tests share asserts, too.
pytest.register_assert_rewrite(
    "callback_models",
    "channel_pruning_models",
    "float_files",
    "graph_models",
    "opened_layers",
    "pruning_models",
    "refusals",
    "report_browser",
)


def make_cnn():
    """Conv/BN/ReLU6, depthwise, Add, Concatenate, pooling, Dense and Softmax."""
    import keras
    from keras import layers

    x = inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    skip = x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 1, activation="relu", name="pointwise")(x)
    x = layers.Concatenate()([layers.Add()([x, skip]), skip])
    x = layers.Dropout(0.1)(layers.MaxPooling2D(2)(x))
    x = layers.GlobalAveragePooling2D()(layers.AveragePooling2D(2)(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="kind")(x), name="cnn")


def make_images(count: int, seed: int = 0):
    """Images whose brightest quarter tells the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    images = random.uniform(0, 0.6, (count, 12, 12, 3)).astype("float32")
    for image, label in zip(images, labels, strict=True):
        row, column = 6 * (label // 2), 6 * (label % 2)
        image[row : row + 6, column : column + 6] += 0.4
    return images, labels


@pytest.fixture(scope="session")
def images():
    return make_images(256)


@pytest.fixture(scope="session")
def float_cnn(images):
    """A small trained float model."""
    import keras

    keras.utils.set_random_seed(0)
    model = make_cnn()
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*images, epochs=3, verbose=0)
    return model


@pytest.fixture(scope="session")
def qat_cnn(float_cnn, images):
    """The same model after quantization-aware training."""
    import keras

    import tfcompress as tfc

    keras.utils.set_random_seed(0)
    model = tfc.quantize_aware(float_cnn)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*images, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="session")
def converted(float_cnn, qat_cnn, images, tmp_path_factory):
    """The small model's files, each made once: `converted("qat", io_dtype="int8")`.

    Returns (path, report); the float model is calibrated for the precisions that ask for it.
    """
    import tfcompress as tfc

    folder, made = tmp_path_factory.mktemp("converted"), {}

    def file_of(kind, **options):
        key = (kind, *sorted(options.items()))
        if key not in made:
            path = folder / f"{len(made)}.tflite"
            asks = kind == "float" and options.get("precision", "int8") in ("int8", "int16x8")
            calibration = images[0][:100] if asks else None
            model = {"float": float_cnn, "qat": qat_cnn}[kind]
            made[key] = path, tfc.convert(model, path, calibration=calibration, **options)
        return made[key]

    return file_of


@pytest.fixture
def in_this_process(monkeypatch):
    """LiteRT and HDF5 run in this process, where they can be replaced."""
    from tfcompress.files import apart

    def ask(name, arguments, tell):
        module, function = name.split(":")
        called = getattr(importlib.import_module(module), function)
        try:
            return called(*arguments, **({"tell": tell} if hasattr(called, "tells") else {}))
        except SystemError as error:  # As it comes from the other process.
            raise RuntimeError(str(error)) from error

    process = SimpleNamespace(lives=True, dropped=[], used=False, ask=ask)
    monkeypatch.setattr(apart, "_process", process)


def run_tflite(path, x, reference: bool = True):
    """Runs a .tflite of one input and one output sample by sample; outputs in real units."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    runner = Interpreter(str(path), experimental_op_resolver_type=kind)
    runner.allocate_tensors()
    entry, out = runner.get_input_details()[0], runner.get_output_details()[0]
    results = []
    for sample in x:
        value = sample[None]
        if np.issubdtype(entry["dtype"], np.integer) and np.issubdtype(x.dtype, np.floating):
            scale, zero = entry["quantization"]
            limits = np.iinfo(entry["dtype"])
            value = np.clip(np.rint(value / scale) + zero, limits.min, limits.max)
        runner.set_tensor(entry["index"], value.astype(entry["dtype"]))
        runner.invoke()
        results.append(runner.get_tensor(out["index"])[0])
    y = np.array(results)
    if np.issubdtype(out["dtype"], np.integer) and out["quantization"][0]:
        scale, zero = out["quantization"]
        y = (y.astype("float32") - zero) * scale
    return y
