"""A SavedModel, which has no Keras graph, on its way to .tflite."""

import tempfile

import tensorflow as tf


def converter(path, batch_size: int, select_tf_ops: bool):
    """A TFLiteConverter for a SavedModel's first signature, at a fixed batch size.

    Args:
        path: the folder of the SavedModel.
        batch_size: batch size of the file.
        select_tf_ops: whether ops that LiteRT lacks may be taken from TensorFlow.

    Returns:
        The converter, and (input names, output names).

    Raises:
        ValueError: if there is no signature, or one with other dynamic dimensions than the batch.
    """
    loaded = tf.saved_model.load(str(path))
    key = next((k for k in ("serve", "serving_default") if k in loaded.signatures), None)
    key = key or next(iter(loaded.signatures), None)
    if key is None:
        raise ValueError(
            f"the SavedModel at '{path}' must have a signature; received one without. Save it with "
            "model.export(path) of Keras 3."
        )
    function = loaded.signatures[key]
    specs = []
    for name, spec in sorted(function.structured_input_signature[1].items()):
        shape = spec.shape.as_list() if spec.shape.rank is not None else [None, None]
        if any(size is None for size in shape[1:]):
            raise ValueError(
                f"input '{name}' must have fixed sizes but for the batch; received shape "
                f"{tuple(shape)}. Export the model with fixed sizes."
            )
        specs.append(tf.TensorSpec([batch_size, *shape[1:]], spec.dtype, name=name))
    names = [spec.name for spec in specs]

    @tf.function(input_signature=specs)
    def serve(*inputs):
        return function(**dict(zip(names, inputs, strict=True)))

    module = tf.Module()
    module.loaded, module.serve = loaded, serve
    folder = tempfile.TemporaryDirectory(prefix="tfcompress_")
    tf.saved_model.save(module, folder.name, signatures={"serve": serve})
    made = tf.lite.TFLiteConverter.from_saved_model(folder.name, signature_keys=["serve"])
    made._tfcompress_folder = folder  # lives as long as the converter
    if select_tf_ops:
        ops = tf.lite.OpsSet
        made.target_spec.supported_ops = [ops.TFLITE_BUILTINS, ops.SELECT_TF_OPS]
    return made, (names, sorted(function.structured_outputs))
