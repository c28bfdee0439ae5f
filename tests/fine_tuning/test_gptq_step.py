"""The step gptq of surgery: grids on which a training with learned steps goes on."""

import fine_tuning_files
import keras
import numpy as np
import pytest
from fine_tuning_files import make_data

from tfcompress.layers.compressed import Compressed
from tfcompress.post_training import gptq, prune_after_training
from tfcompress.surgery.shrink import Shrink

# Fixtures of all modules about fine_tune; the model has a convolution and a Dense layer.
made, run = fine_tuning_files.made, fine_tuning_files.run
START = """
shrink:
  prune: {sparsity: 0.5, allocation: uniform}
  gptq: {bits: {%s: 3, %s: %d}, dense: per_tensor}
"""
RULES = """
distill: {alpha: 0, temperature: 4.0}
rules:
  - layers: "*"
    techniques:
      - prune: {preserve: true, depthwise: true}
      - quantize: {bits: 3, step: learned, dense: per_tensor, momentum: 0.95}
"""


def named(made):
    """The layers with kernels, whose names Keras numbers by what was built before."""
    model = keras.saving.load_model(made / "model.keras")
    return [layer.name for layer in model.layers if hasattr(layer, "kernel")]


def kernels(model):
    """The kernels that a model computes with."""
    found = []
    for layer in model.layers:
        if isinstance(layer, Compressed):
            found.append(np.array(layer.effective(layer.layer.kernel)))
        elif hasattr(layer, "kernel"):
            found.append(np.array(layer.kernel))
    return found


def on_grids(kernel, bits, axes):
    """Whether each part along some axes is whole multiples, of so many bits, of some step."""
    count = int(np.prod([kernel.shape[axis] for axis in axes]))
    rows = np.moveaxis(kernel, axes, range(len(axes))).reshape(count, -1)
    codes = np.arange(1, 2 ** (bits - 1))  # of the largest weight
    steps = np.abs(rows).max(1)[:, None] / codes
    found = rows[:, None] / steps[..., None]
    return bool(np.isclose(found, np.rint(found), atol=1e-3).all(-1).any(-1).all())


def test_a_step_is_what_the_function_does(made):
    model, x = keras.saving.load_model(made / "model.keras"), make_data()[0]
    stepped = Shrink({"gptq": {"bits": 4}}).apply(model, x)
    by_hand = gptq(model, x, bits=4).model
    for a, b in zip(stepped.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    report = stepped.surgery_report
    assert report.operation == "gptq"
    assert [change.layer for change in report.changes] == named(made)
    assert report.changes[0].detail.startswith("int4, SQNR ")
    assert report.macs == (2688, 2688)
    # BatchNormalization is folded into a bias that is there already.
    assert report.params == (144 + 8 + 4 * 8 + 387, 144 + 8 + 387)


def test_steps_are_carried_out_in_the_order_in_which_they_are_written(made):
    model, x = keras.saving.load_model(made / "model.keras"), make_data()[0]
    steps = {"prune": {"sparsity": 0.5}, "gptq": {"bits": 4}}
    small = Shrink(steps).apply(model, (x, make_data()[1]))
    by_hand = gptq(prune_after_training(model, x, 0.5), x, bits=4).model
    for a, b in zip(kernels(small), kernels(by_hand), strict=True):
        np.testing.assert_array_equal(a, b)
    assert small.surgery_report.operation == "prune_after_training + gptq"
    with pytest.raises(ValueError, match="gptq looks at what layers are given; received no data"):
        Shrink({"gptq": {}}).apply(model)
    with pytest.raises(ValueError, match="bits must name layers with kernels; received 'nowhere'"):
        Shrink({"gptq": {"bits": {"nowhere": 4}}}).apply(model, x)


def test_a_recipe_begins_on_grids(made, run, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(START % (*named(made), 8))
    found = run(recipe=recipe, epochs=0)
    conv, dense = kernels(keras.saving.load_model(tmp_path / "out.keras"))
    assert min(np.mean(conv == 0), np.mean(dense == 0)) >= 0.5
    assert on_grids(conv, 3, [3])
    assert len(np.unique(np.abs(dense))) <= 128
    assert found.report.operation == "prune_after_training + gptq"


@pytest.mark.slow
def test_a_training_goes_on_from_there(made, run, tmp_path):
    recipe = tmp_path / "r.yaml"
    start = START % (*named(made), 3)
    recipe.write_text(start)
    run("start.keras", recipe=recipe, epochs=0)
    recipe.write_text(start + RULES)
    found = run("out.keras", recipe=recipe, epochs=1, learning_rate=1e-3)
    before, after = (
        kernels(keras.saving.load_model(tmp_path / f"{name}.keras")) for name in ("start", "out")
    )
    for old, new in zip(before, after, strict=True):
        assert np.all(new[old == 0] == 0)
        np.testing.assert_allclose(new, old, atol=0.2 * np.abs(old).max())
    assert on_grids(after[0], 3, [3])
    assert on_grids(after[1][None], 3, [0])
    assert found.shrunk.report.operation == "prune_after_training + gptq"
