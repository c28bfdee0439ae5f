"""tfcompress: Keras 3 models made small and fast for phones, accelerators and microcontrollers."""

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfcompress.baking import finalize
    from tfcompress.callbacks import UpdateCompression
    from tfcompress.compression import compress, quantize_aware
    from tfcompress.graph import flatten
    from tfcompress.recipe import Recipe, Rule
    from tfcompress.targets import list_targets, load_target
    from tfcompress.techniques import Quantize, Technique
    from tfcompress.tflite.benchmark import benchmark
    from tfcompress.tflite.convert import convert
    from tfcompress.tflite.inspect import inspect
    from tfcompress.tflite.verify import verify

__version__ = "0.1.0"

# Imported at first use: TensorFlow takes seconds, and `tfcompress inspect` does not need it.
_HOMES = {
    "tfcompress.baking": ["finalize"],
    "tfcompress.callbacks": ["UpdateCompression"],
    "tfcompress.compression": ["compress", "quantize_aware"],
    "tfcompress.graph": ["flatten"],
    "tfcompress.recipe": ["Recipe", "Rule"],
    "tfcompress.targets": ["list_targets", "load_target"],
    "tfcompress.techniques": ["Quantize", "Technique"],
    "tfcompress.tflite.benchmark": ["benchmark"],
    "tfcompress.tflite.convert": ["convert"],
    "tfcompress.tflite.inspect": ["inspect"],
    "tfcompress.tflite.verify": ["verify"],
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Quantize",
    "Recipe",
    "Rule",
    "Technique",
    "UpdateCompression",
    "benchmark",
    "compress",
    "convert",
    "finalize",
    "flatten",
    "inspect",
    "list_targets",
    "load_target",
    "quantize_aware",
    "verify",
]


class _RegisterWithKeras(importlib.abc.MetaPathFinder):
    """Makes our layers known to Keras once Keras is imported, not before.

    `import tfcompress` then is enough to load a saved model, and costs no import of TensorFlow.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                importlib.import_module("tfcompress.registered")

            spec.loader.exec_module = execute_and_register
        return spec


if "keras" in sys.modules:
    importlib.import_module("tfcompress.registered")
else:
    sys.meta_path.insert(0, _RegisterWithKeras())


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'tfcompress' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
