"""tfcompress: Keras 3 models made small and fast for phones, accelerators and microcontrollers."""

import importlib
import importlib.abc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfcompress import distillation, schedules
    from tfcompress.acceptance.accept import accept
    from tfcompress.android.project import android_project
    from tfcompress.baking import finalize
    from tfcompress.callbacks import UpdateCompression
    from tfcompress.compression import compress, quantize_aware
    from tfcompress.compression_logger import CompressionLogger
    from tfcompress.distillation import (
        Distiller,
        MutualDistiller,
        SelfDistiller,
        init_from_teacher,
    )
    from tfcompress.graph import flatten
    from tfcompress.microcontroller.c_array import c_array
    from tfcompress.prune_callback import PruneCallback
    from tfcompress.recipe import Recipe, Rule
    from tfcompress.search.findings import Sensitivity
    from tfcompress.search.sensitivity import sensitivity
    from tfcompress.surgery.factors.factorize import factorize
    from tfcompress.surgery.folding import fold_batch_norm
    from tfcompress.surgery.profiling import profile
    from tfcompress.surgery.pruning.callback import ChannelPruning
    from tfcompress.surgery.pruning.channels import prune_channels
    from tfcompress.surgery.pruning.dead import remove_dead_channels
    from tfcompress.surgery.pruning.iterative import prune_channels_iteratively
    from tfcompress.surgery.separable import to_separable
    from tfcompress.surgery.settings import Shrink
    from tfcompress.targets import list_targets, load_target
    from tfcompress.techniques import (
        Cluster,
        GroupLasso,
        Prune,
        Quantize,
        Regularize,
        Technique,
    )
    from tfcompress.tflite.benchmark import benchmark
    from tfcompress.tflite.check import check
    from tfcompress.tflite.convert import convert
    from tfcompress.tflite.inspect import inspect
    from tfcompress.tflite.metadata import Metadata, TensorMetadata
    from tfcompress.tflite.verify import verify

__version__ = "0.1.0"

# Imported at first use: TensorFlow takes seconds, and `tfcompress inspect` does not need it.
_HOMES = {
    "tfcompress.acceptance.accept": ["accept"],
    "tfcompress.android.project": ["android_project"],
    "tfcompress.baking": ["finalize"],
    "tfcompress.callbacks": ["UpdateCompression"],
    "tfcompress.compression": ["compress", "quantize_aware"],
    "tfcompress.compression_logger": ["CompressionLogger"],
    "tfcompress.distillation": [
        "Distiller",
        "MutualDistiller",
        "SelfDistiller",
        "init_from_teacher",
    ],
    "tfcompress.graph": ["flatten"],
    "tfcompress.microcontroller.c_array": ["c_array"],
    "tfcompress.prune_callback": ["PruneCallback"],
    "tfcompress.recipe": ["Recipe", "Rule"],
    "tfcompress.search.findings": ["Sensitivity"],
    "tfcompress.search.sensitivity": ["sensitivity"],
    "tfcompress.surgery.pruning.callback": ["ChannelPruning"],
    "tfcompress.surgery.pruning.channels": ["prune_channels"],
    "tfcompress.surgery.pruning.dead": ["remove_dead_channels"],
    "tfcompress.surgery.factors.factorize": ["factorize"],
    "tfcompress.surgery.folding": ["fold_batch_norm"],
    "tfcompress.surgery.pruning.iterative": ["prune_channels_iteratively"],
    "tfcompress.surgery.profiling": ["profile"],
    "tfcompress.surgery.separable": ["to_separable"],
    "tfcompress.surgery.settings": ["Shrink"],
    "tfcompress.targets": ["list_targets", "load_target"],
    "tfcompress.techniques": [
        "Cluster",
        "GroupLasso",
        "Prune",
        "Quantize",
        "Regularize",
        "Technique",
    ],
    "tfcompress.tflite.benchmark": ["benchmark"],
    "tfcompress.tflite.check": ["check"],
    "tfcompress.tflite.convert": ["convert"],
    "tfcompress.tflite.inspect": ["inspect"],
    "tfcompress.tflite.metadata": ["Metadata", "TensorMetadata"],
    "tfcompress.tflite.verify": ["verify"],
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ChannelPruning",
    "Cluster",
    "CompressionLogger",
    "Distiller",
    "GroupLasso",
    "Metadata",
    "MutualDistiller",
    "Prune",
    "PruneCallback",
    "Quantize",
    "Recipe",
    "Regularize",
    "Rule",
    "SelfDistiller",
    "Sensitivity",
    "Shrink",
    "Technique",
    "TensorMetadata",
    "UpdateCompression",
    "accept",
    "android_project",
    "benchmark",
    "c_array",
    "check",
    "compress",
    "convert",
    "distillation",
    "factorize",
    "finalize",
    "flatten",
    "fold_batch_norm",
    "init_from_teacher",
    "inspect",
    "list_targets",
    "load_target",
    "profile",
    "prune_channels",
    "prune_channels_iteratively",
    "quantize_aware",
    "remove_dead_channels",
    "schedules",
    "sensitivity",
    "to_separable",
    "verify",
]


class _RegisterWithKeras(importlib.abc.MetaPathFinder):
    """Makes our layers known to Keras once Keras is imported, not before.

    `import tfcompress` then is enough to load a saved model, and costs no import of TensorFlow.
    Where one of our own modules imports Keras, its import is awaited: modules import each other.
    """

    running = 0  # our modules that are being imported

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "keras" and not fullname.startswith("tfcompress."):
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._then_register(spec.loader.exec_module)
        return spec

    def _then_register(self, execute):
        def execute_and_register(module):
            ours = module.__name__ != "keras"
            self.running += ours
            try:
                execute(module)
            finally:
                self.running -= ours
            if self.running == 0 and "keras" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module("tfcompress.registered")

        return execute_and_register


if "keras" in sys.modules:
    importlib.import_module("tfcompress.registered")
else:
    sys.meta_path.insert(0, _RegisterWithKeras())


def __getattr__(name: str):
    if name in ("distillation", "schedules"):
        return importlib.import_module(f"tfcompress.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'tfcompress' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
