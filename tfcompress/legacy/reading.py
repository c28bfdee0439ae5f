"""Files of tf_keras, looked through before anything in them is made."""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tfcompress.files import models, writing
from tfcompress.legacy import import_tf_keras, import_tfmot
from tfcompress.legacy.rebuild import kind_of

# Where classes named in a file may come from. A module named there would be imported.
_TRUSTED = ("keras", "tf_keras", "tensorflow_model_optimization", "builtins")
_METADATA = "keras_metadata.pb"
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"


def check(source: writing.PathLike) -> str:
    """Raises unless a file is a whole tf_keras model without code; gives the writer's version.

    Raises:
        ValueError: if it is damaged, of Keras 3, or holds code or classes of somebody's own.
    """
    version, configs = _read(Path(source))
    for config in configs:
        _check_config(config, source)
    return version


def load(source: writing.PathLike) -> Any:
    """The model in a file that `check` has passed, uncompiled, with its TFMOT wrappers."""
    tfmot = import_tfmot()
    from tensorflow_model_optimization.python.core.clustering.keras import (
        cluster_wrapper as wrapper,
    )

    # Missing from cluster_scope.
    missing = {
        kind.__name__: kind for kind in (wrapper.ClusterWeightsRNN, wrapper.ClusterWeightsMHA)
    }
    with (
        tfmot.sparsity.keras.prune_scope(),
        tfmot.clustering.keras.cluster_scope(),
        tfmot.quantization.keras.quantize_scope(),
        import_tf_keras().utils.custom_object_scope(missing),
    ):
        try:
            model = _load(Path(source))
        except MemoryError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ValueError(
                f"'{source}' cannot be loaded by tf_keras: {text}. Expected a whole model of its "
                "own layers and TFMOT's wrappers; strip these where it was trained, and save that."
            ) from error
    for layer in model._flatten_layers(include_self=False):
        if kind_of(layer) == "cluster" and layer.preserve_sparsity:
            _restore_masks(layer)
    return model


def _read(path: Path) -> tuple[str, list[Any]]:
    """The version that wrote a file, and the configurations in it."""
    if path.is_dir():
        return _read_saved_model(path)
    version = models.check_model_file(path) or "unknown"
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read(_CONFIG))
    else:
        import h5py

        with h5py.File(path, "r") as content:
            text = content.attrs["model_config"]
        try:
            config = json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"'{path}' is damaged: its configuration cannot be read. Save the model again."
            ) from error
    if not version.startswith(("1.", "2.", "unknown")):
        raise ValueError(
            f"'{path}' was written by Keras {version}: there is nothing to migrate. Expected a "
            "file of tf_keras (Keras 2); use this one as it is."
        )
    return version, [config]


def _read_saved_model(folder: Path) -> tuple[str, list[Any]]:
    if not (folder / "saved_model.pb").is_file():
        raise ValueError(
            f"'{folder}' is a folder without saved_model.pb; expected a .h5 or .keras file or a "
            "SavedModel folder of tf_keras. Name the model itself."
        )
    if not (folder / _METADATA).is_file():
        raise ValueError(
            f"'{folder}' is a SavedModel without {_METADATA}: a finished graph, which holds no "
            "layers. Migrate the file of the model it was exported from; to convert the graph, "
            "use `tfcompress convert`."
        )
    import_tf_keras()
    from google.protobuf.message import DecodeError
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    try:
        metadata.ParseFromString((folder / _METADATA).read_bytes())
        configs = [json.loads(node.metadata) for node in metadata.nodes]
    except (DecodeError, ValueError) as error:
        raise ValueError(
            f"'{folder}' is damaged: {_METADATA} cannot be read. Save the model again."
        ) from error
    known = [c["keras_version"] for c in configs if isinstance(c, dict) and "keras_version" in c]
    return str(known[0]) if known else "2", configs


def _check_config(value: Any, source: writing.PathLike) -> None:
    """Raises if a configuration holds code, or names classes that are not tf_keras's."""
    if isinstance(value, list):
        for part in value:
            _check_config(part, source)
    if not isinstance(value, dict):
        return
    kind, module = value.get("class_name"), value.get("module")
    if kind == "Lambda" or kind == "__lambda__":
        raise ValueError(
            f"'{source}' holds Python code (a Lambda layer), which is not run; expected layers "
            "only. Replace it by layers in tf_keras, or rebuild the model in Keras 3."
        )
    if isinstance(module, str) and module.split(".")[0] not in _TRUSTED:
        raise ValueError(
            f"'{source}' needs the class '{kind}' of the module '{module}', which is not imported; "
            "expected layers of tf_keras. Port the class to Keras 3, build the model there and "
            "load its weights."
        )
    for part in value.values():
        _check_config(part, source)


def _load(path: Path):
    tf_keras = import_tf_keras()
    if path.suffix != ".keras":
        return tf_keras.models.load_model(path, compile=False)
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        # Layers under TFMOT's wrappers that build themselves would be built twice.
        config = _without(("build_config", "compile_config"), json.loads(archive.read(_CONFIG)))
        model = tf_keras.saving.deserialize_keras_object(config)
        for layer in model._flatten_layers(include_self=False):
            if kind_of(layer) == "quantize":
                # As it was saved: TFMOT lists the weights of a layer twice if it wraps it built.
                own = [weight for weight, _, _ in layer._weight_vars]
                layer._trainable_weights[:0] = own + layer.layer.trainable_weights
        model.load_weights(archive.extract(_WEIGHTS, folder))
    return model


def _without(keys: tuple[str, ...], value: Any) -> Any:
    """A configuration without some entries, at any depth."""
    if isinstance(value, dict):
        return {key: _without(keys, part) for key, part in value.items() if key not in keys}
    return [_without(keys, part) for part in value] if isinstance(value, list) else value


def _restore_masks(layer) -> None:
    """Gives a loaded clustering wrapper the zeros of its weights.

    TFMOT does not save them, and takes those of the random weights before loading instead.
    """
    import tensorflow as tf

    for name, weight in layer.original_clusterable_weights.items():
        centroids = layer.cluster_centroids[name]
        clustered = layer.clustering_algorithms[name].get_clustered_weight(
            layer.pulling_indices[name], weight
        )
        layer.sparsity_masks[name] = tf.cast(tf.not_equal(clustered, 0), tf.float32)
        layer.zero_idx[name] = tf.argmin(tf.abs(centroids), axis=-1)
