"""The float model that the report shows a file beside: without techniques, and as float32."""

import keras
import numpy as np
import pytest
from report_pages import cells_of, data_of

import tfcompress as tfc
from tfcompress.report.layers import float_files, histogram, layer_figures
from tfcompress.report.model import write_model_report
from tfcompress.tflite.inspect import inspect


@pytest.fixture(scope="module")
def pruned(float_cnn, images):
    """A model of which half of the weights are masked while it trains for int8."""
    half = tfc.Prune(tfc.schedules.constant(0.5), score="magnitude", scope="layer")
    recipe = tfc.Recipe([tfc.Rule("*", [half, tfc.Quantize()])])
    model = tfc.compress(float_cnn, recipe)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*images, epochs=1, verbose=0, callbacks=[tfc.UpdateCompression()])
    return model


@pytest.mark.slow
def test_before_are_the_weights_that_techniques_are_not_applied_to(pruned, images, tmp_path):
    file, path = tmp_path / "a.tflite", tmp_path / "r.html"
    tfc.convert(pruned, file)
    write_model_report(pruned, file, path, images[0][:16])
    (task,) = data_of(path.read_text())["layers"]
    (found,) = task["files"]
    index = next(i for i, each in enumerate(found["layers"]) if each["name"] == "kind")
    after, before = found["layers"][index], task["before"][found["before"][index]]
    held = pruned.get_layer("kind").layer.kernel.numpy()
    assert held.all()  # Masks hide weights, and leave them as they are.
    assert (before["sparsity"], before["unique"]) == (0, held.size)
    assert before["histogram"] == histogram([held])
    assert after["sparsity"] >= 0.5
    # Activations are compared with those of the model as it is.
    assert min(each["sqnr_db"] or 99 for each in found["layers"]) > 10
    assert "before: the float weights that the model holds, its techniques not" in path.read_text()
    assert cells_of(path.read_text(), "One thread")[2][0] == "float32 file without the techniques"


@pytest.mark.slow
def test_what_finalize_baked_in_is_in_the_weights_before(pruned, tmp_path):
    final = tfc.finalize(pruned)
    tfc.convert(final, tmp_path / "a.tflite")
    layers = layer_figures(float_files(final, tmp_path / "a.tflite").before, final)
    kind = next(each for each in layers if each["name"] == "kind")
    held = final.get_layer("kind").layer.kernel.numpy()
    assert kind["sparsity"] == 0.5
    assert kind["unique"] == len(np.unique(held))


def test_float32_is_the_file_that_convert_writes(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(0.5, 1), keras.layers.Conv2D(2, 3), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers, keras.layers.Dense(3)])
    data = np.random.default_rng(0).uniform(size=(20, 6, 6, 2)).astype("float32")
    tfc.convert(model, tmp_path / "int8.tflite", calibration=data, batch_size=2)
    tfc.convert(model, tmp_path / "float32.tflite", precision="float32", batch_size=2)
    found = float_files(model, tmp_path / "int8.tflite")
    wanted, written = tfc.inspect(tmp_path / "float32.tflite"), inspect(found.float32)
    assert written.op_counts == wanted.op_counts != inspect(found.twin).op_counts
    assert written.inputs[0].shape == wanted.inputs[0].shape == (2, 6, 6, 2)
    assert written.file_bytes == wanted.file_bytes
    assert found.before == found.twin


@pytest.mark.slow
def test_techniques_inside_of_other_layers_are_told_to_be_applied(qat_cnn, images, tmp_path):
    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = qat_cnn

        def call(self, x):
            return self.inner(x, training=False)

    model = Outer()
    model(images[0][:1])
    tfc.convert(qat_cnn, tmp_path / "a.tflite")
    found = float_files(model, tmp_path / "a.tflite")
    assert found.before == found.float32 == found.twin
    assert found.weights == "the float model with its techniques applied"
    assert found.title == "float32 file with the techniques applied"
