"""tfcompress: Keras 3 models made small and fast for phones, accelerators and microcontrollers."""

import importlib
import importlib.abc
import sys
from typing import TYPE_CHECKING

from tfcompress.version import VERSION

if TYPE_CHECKING:
    from tfcompress import distillation, post_training, schedules
    from tfcompress.compression.callbacks import UpdateCompression
    from tfcompress.compression.compress import compress, quantize_aware
    from tfcompress.compression.finalize import finalize
    from tfcompress.compression.in_place import PruneCallback
    from tfcompress.compression.logger import CompressionLogger
    from tfcompress.conversion.convert import convert
    from tfcompress.distillation import Distiller, MutualDistiller, SelfDistiller, init_from_teacher
    from tfcompress.export.android.project import android_project
    from tfcompress.export.microcontroller.c_array import c_array
    from tfcompress.graph.flatten import flatten
    from tfcompress.kinds import register_kernel
    from tfcompress.pilot.auto import auto
    from tfcompress.pilot.result import AutoResult
    from tfcompress.recipe.findings import Sensitivity
    from tfcompress.recipe.flash import ExpectedFlash, expected_flash
    from tfcompress.recipe.recipe import Recipe
    from tfcompress.search.architecture.found import ArchitectureSearch
    from tfcompress.search.architecture.search_architecture import search_architecture
    from tfcompress.search.architecture.space import ArchitectureSpace
    from tfcompress.search.choice import ChannelsAndBits, PrecisionChoice
    from tfcompress.search.choose_channels_and_bits import choose_channels_and_bits
    from tfcompress.search.choose_precision import choose_precision
    from tfcompress.search.sensitivity import sensitivity
    from tfcompress.surgery.branches import add_branches, fold_branches
    from tfcompress.surgery.factors.factorize import factorize
    from tfcompress.surgery.folding import fold_batch_norm
    from tfcompress.surgery.profile import profile
    from tfcompress.surgery.pruning.dead import remove_dead_channels
    from tfcompress.surgery.pruning.in_training import ChannelPruning
    from tfcompress.surgery.pruning.prune_channels import prune_channels, prune_channels_iteratively
    from tfcompress.surgery.separable import to_separable
    from tfcompress.surgery.shrink import Shrink
    from tfcompress.surgery.split import split
    from tfcompress.surgery.streams.stream import Stream
    from tfcompress.surgery.streams.streaming import streaming
    from tfcompress.targets.check import check
    from tfcompress.targets.targets import list_targets, load_target
    from tfcompress.techniques import (
        Cluster,
        Codebook,
        GroupLasso,
        Prune,
        Quantize,
        Regularize,
        Technique,
    )
    from tfcompress.techniques.rules import Rule
    from tfcompress.tflite.benchmark import benchmark
    from tfcompress.tflite.inspect import inspect
    from tfcompress.tflite.metadata import Metadata, TensorMetadata
    from tfcompress.tools.accept import accept, accept_all
    from tfcompress.verification.verify import verify


__version__ = VERSION

# Imported at first use: TensorFlow takes seconds, and `tfcompress inspect` does not need it.
_HOMES = {
    "tfcompress.compression.callbacks": ["UpdateCompression"],
    "tfcompress.compression.compress": ["compress", "quantize_aware"],
    "tfcompress.compression.finalize": ["finalize"],
    "tfcompress.compression.in_place": ["PruneCallback"],
    "tfcompress.compression.logger": ["CompressionLogger"],
    "tfcompress.conversion.convert": ["convert"],
    "tfcompress.verification.verify": ["verify"],
    "tfcompress.distillation": [
        "Distiller",
        "MutualDistiller",
        "SelfDistiller",
        "init_from_teacher",
    ],
    "tfcompress.export.android.project": ["android_project"],
    "tfcompress.export.microcontroller.c_array": ["c_array"],
    "tfcompress.graph.flatten": ["flatten"],
    "tfcompress.kinds": ["register_kernel"],
    "tfcompress.pilot.auto": ["auto"],
    "tfcompress.pilot.result": ["AutoResult"],
    "tfcompress.recipe.flash": ["ExpectedFlash", "expected_flash"],
    "tfcompress.recipe.recipe": ["Recipe"],
    "tfcompress.recipe.findings": ["Sensitivity"],
    "tfcompress.search.architecture.found": ["ArchitectureSearch"],
    "tfcompress.search.architecture.search_architecture": ["search_architecture"],
    "tfcompress.search.architecture.space": ["ArchitectureSpace"],
    "tfcompress.search.choice": ["ChannelsAndBits", "PrecisionChoice"],
    "tfcompress.search.choose_channels_and_bits": ["choose_channels_and_bits"],
    "tfcompress.search.choose_precision": ["choose_precision"],
    "tfcompress.search.sensitivity": ["sensitivity"],
    "tfcompress.surgery.branches": ["add_branches", "fold_branches"],
    "tfcompress.surgery.factors.factorize": ["factorize"],
    "tfcompress.surgery.folding": ["fold_batch_norm"],
    "tfcompress.surgery.profile": ["profile"],
    "tfcompress.surgery.pruning.dead": ["remove_dead_channels"],
    "tfcompress.surgery.pruning.in_training": ["ChannelPruning"],
    "tfcompress.surgery.pruning.prune_channels": [
        "prune_channels",
        "prune_channels_iteratively",
    ],
    "tfcompress.surgery.separable": ["to_separable"],
    "tfcompress.surgery.shrink": ["Shrink"],
    "tfcompress.surgery.split": ["split"],
    "tfcompress.surgery.streams.stream": ["Stream"],
    "tfcompress.surgery.streams.streaming": ["streaming"],
    "tfcompress.targets.check": ["check"],
    "tfcompress.targets.targets": ["list_targets", "load_target"],
    "tfcompress.techniques": [
        "Cluster",
        "Codebook",
        "GroupLasso",
        "Prune",
        "Quantize",
        "Regularize",
        "Technique",
    ],
    "tfcompress.techniques.rules": ["Rule"],
    "tfcompress.tflite.benchmark": ["benchmark"],
    "tfcompress.tflite.inspect": ["inspect"],
    "tfcompress.tflite.metadata": ["Metadata", "TensorMetadata"],
    "tfcompress.tools.accept": ["accept", "accept_all"],
}

_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ArchitectureSearch",
    "ArchitectureSpace",
    "AutoResult",
    "ChannelPruning",
    "ChannelsAndBits",
    "Cluster",
    "Codebook",
    "CompressionLogger",
    "Distiller",
    "ExpectedFlash",
    "GroupLasso",
    "Metadata",
    "MutualDistiller",
    "PrecisionChoice",
    "Prune",
    "PruneCallback",
    "Quantize",
    "Recipe",
    "Regularize",
    "Rule",
    "SelfDistiller",
    "Sensitivity",
    "Shrink",
    "Stream",
    "Technique",
    "TensorMetadata",
    "UpdateCompression",
    "accept",
    "accept_all",
    "add_branches",
    "android_project",
    "auto",
    "benchmark",
    "c_array",
    "check",
    "choose_channels_and_bits",
    "choose_precision",
    "compress",
    "convert",
    "distillation",
    "expected_flash",
    "factorize",
    "finalize",
    "flatten",
    "fold_batch_norm",
    "fold_branches",
    "init_from_teacher",
    "inspect",
    "list_targets",
    "load_target",
    "post_training",
    "profile",
    "prune_channels",
    "prune_channels_iteratively",
    "quantize_aware",
    "register_kernel",
    "remove_dead_channels",
    "schedules",
    "search_architecture",
    "sensitivity",
    "split",
    "streaming",
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
    if name in ("distillation", "post_training", "schedules"):
        return importlib.import_module(f"tfcompress.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'tfcompress' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
