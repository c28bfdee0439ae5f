"""Files of tf_keras, looked through before anything in them is made."""

import contextlib
import inspect
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfcompress.files import models, saved_models, sizes, temporary, writing
from tfcompress.files.configs import Named, names, parse, short
from tfcompress.legacy import import_tf_keras, import_tfmot
from tfcompress.legacy.functions import FUNCTIONS
from tfcompress.legacy.rebuild import kind_of

# Where classes named in a file may come from. A module named there would be imported.
_TRUSTED = ("keras", "tf_keras", "tensorflow_model_optimization", "builtins")
# Layers that call what they name, or rather what tf_keras finds by that name in TensorFlow.
_CALLING = frozenset(
    "TFOpLambda SlicingOpLambda ClassMethod InstanceMethod InstanceProperty "
    "TensorFlowOpLayer AddLoss AddMetric".split()
)
_VALUES = frozenset(
    "Functional MeanMetricWrapper TensorShape TypeSpec InputSpec "
    "__tuple__ __tensor__ __numpy__ __bytes__ __ellipsis__".split()
)
# Modules of tf_keras in which classes, and what a setting names, are looked for.
_CLASSES = (
    "layers models initializers regularizers constraints mixed_precision losses metrics optimizers"
).split()
_ROOMS = {
    "function": ["activations", "losses", "metrics", "layers"],
    "activation": ["activations", "layers"],
    "initializer": ["initializers"],
    "regularizer": ["regularizers"],
    "constraint": ["constraints"],
    "fn": ["losses", "metrics"],
}
_READERS = ("get", "serialize", "deserialize", "experimental", "Lambda")
# Settings that are not looked at in a model that is only rebuilt.
_UNUSED = ("compile_config", "build_config", "training_config")
_METADATA = "keras_metadata.pb"
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"


def check(source: writing.PathLike) -> str:
    """Raises unless a file is a whole tf_keras model without code; gives the writer's version.

    Raises:
        ValueError: if it is damaged, of Keras 3, or names code, functions of TensorFlow that do
            more than compute, or classes of somebody's own.
    """
    version, configs = _read(Path(source))
    with _wrappers():
        for config in configs:
            for named in names(config, source, _UNUSED):
                _check_named(named, source)
    models.check_weights(Path(source))
    return version


def load(source: writing.PathLike) -> Any:
    """The model in a file that `check` has passed, uncompiled, with its TFMOT wrappers."""
    with _wrappers():
        try:
            with sizes.no_more_weights(import_tf_keras().layers.Layer, Path(source)):
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


@contextlib.contextmanager
def _wrappers() -> Iterator[None]:
    """Makes TFMOT's classes known to tf_keras."""
    tfmot = import_tfmot()
    from tensorflow_model_optimization.python.core.clustering.keras import (
        cluster_wrapper as wrapper,
    )
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule

    # Missing from their scopes.
    schedules = (pruning_schedule.ConstantSparsity, pruning_schedule.PolynomialDecay)
    missing = (wrapper.ClusterWeightsRNN, wrapper.ClusterWeightsMHA, *schedules)
    with (
        tfmot.sparsity.keras.prune_scope(),
        tfmot.clustering.keras.cluster_scope(),
        tfmot.quantization.keras.quantize_scope(),
        import_tf_keras().utils.custom_object_scope({kind.__name__: kind for kind in missing}),
    ):
        yield


def _read(path: Path) -> tuple[str, list[Any]]:
    """The version that wrote a file, and the configurations in it."""
    if path.is_dir():
        return _read_saved_model(path)
    version = models.check_model_file(path) or "unknown"
    config = models.read_config(path)
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
    saved_models.check(folder, "Save the model as model.save('model.h5') where it was trained.")
    from google.protobuf.message import DecodeError
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    try:
        metadata.ParseFromString((folder / _METADATA).read_bytes())
        configs = [parse(node.metadata, folder) for node in metadata.nodes]
    except (DecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"'{folder}' is damaged: {_METADATA} cannot be read. Save the model again."
        ) from error
    known = [c["keras_version"] for c in configs if isinstance(c, dict) and "keras_version" in c]
    return str(known[0]) if known else "2", configs


def _check_named(named: Named, source: writing.PathLike) -> None:
    """Raises if a configuration names what does more than compute."""
    if named.kind in ("Lambda", "__lambda__"):
        raise ValueError(
            f"'{source}' holds Python code (a Lambda layer), which is not run; expected layers "
            "only. Replace it by layers in tf_keras, or rebuild the model in Keras 3."
        )
    # tf_keras looks for the registered name, too, in the module that the file names.
    hidden = ">" not in (named.registered or ">") and named.registered != named.kind
    if named.kind in _CALLING and not hidden:
        called = _called(named)
        if named.kind not in ("TFOpLambda", "SlicingOpLambda") or called not in FUNCTIONS:
            raise ValueError(
                f"'{source}' calls TensorFlow's tf.{short(called)[1:-1]}, which is not run; "
                "expected layers, and functions that compute and are known here. Replace it in "
                "the tf_keras model by a layer, and save that."
            )
        return
    module = named.module or ""
    trusted = not module or module.split(".")[0] in _TRUSTED
    if not named.saved and (hidden or not trusted or not _is_known(named)):
        where = f" of the module {short(module)}" if module else ""
        raise ValueError(
            f"'{source}' needs the {'function' if named.kind in _ROOMS else 'class'} "
            f"{short(named.name)}{where}, which is not imported; "
            "expected layers of tf_keras. Port it to Keras 3, build the model there and "
            "load its weights."
        )


def _called(named: Named) -> str:
    """The function of TensorFlow that a layer calls."""
    settings = named.settings if isinstance(named.settings, dict) else {}
    node = settings.get("node_def")
    parts = (settings.get(key) for key in ("function", "cls_symbol", "method_name", "attr_name"))
    found = ".".join(part for part in parts if isinstance(part, str))
    return found or (f"raw_ops {node}" if node else named.kind)


def _is_known(named: Named) -> bool:
    tf_keras = import_tf_keras()
    if named.kind in _VALUES:
        return True
    name = named.name.split(">")[-1]
    if tf_keras.saving.get_registered_object(named.registered or named.name) is not None:
        return True
    rooms = _ROOMS.get(named.kind, _CLASSES)
    found = (getattr(getattr(tf_keras, room), name, None) for room in rooms)
    kind = callable if named.kind in _ROOMS else inspect.isclass
    return name not in _READERS and any(map(kind, found))


def _load(path: Path):
    tf_keras = import_tf_keras()
    if path.suffix != ".keras":
        return tf_keras.models.load_model(path, compile=False)
    with zipfile.ZipFile(path) as archive, temporary.folder() as folder:
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
