"""TensorFlow Lite metadata: what a .tflite file says about itself to MediaPipe and other readers.

It is a flatbuffer of its own in the buffer that the file's entry TFLITE_METADATA names; labels lie
in a zip archive behind the model.
"""

from tfcompress.tflite.metadata.editing import (
    add_metadata,
    described,
    descriptions,
    metadata_of,
    read_metadata,
)
from tfcompress.tflite.metadata.types import Metadata, TensorMetadata, load_metadata, split_labels

__all__ = [
    "Metadata",
    "TensorMetadata",
    "add_metadata",
    "described",
    "descriptions",
    "load_metadata",
    "metadata_of",
    "read_metadata",
    "split_labels",
]
