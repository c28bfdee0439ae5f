"""The metadata of a .tflite file in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfcompress.tflite.metadata.types import Metadata, TensorMetadata
from tfcompress.tflite.tables import Rows, print_table

if TYPE_CHECKING:
    from rich.console import Console


def print_metadata(console: Console, metadata: Metadata | None, problem: str | None) -> None:
    """Print what a file says of itself, or why that cannot be read; nothing if it says nothing."""
    if problem:
        print_table(console, "Metadata", "what,value", [("problem", problem)])
    if metadata is None:
        return
    texts = ("name", "description", "version", "author", "license")
    rows: Rows = [(key, getattr(metadata, key)) for key in texts if getattr(metadata, key)]
    for kind, entries in (("input", metadata.inputs), ("output", metadata.outputs)):
        rows += [(f"{kind} {entry.name}", _tensor_text(entry)) for entry in entries]
    print_table(console, "Metadata", "what,value", rows)


def _tensor_text(entry: TensorMetadata) -> str:
    parts = [entry.description] if entry.description else []
    if entry.mean:
        parts.append(f"(x - {_numbers(entry.mean)}) / {_numbers(entry.std)}")
    if entry.minimum or entry.maximum:
        parts.append(f"{_numbers(entry.minimum)} to {_numbers(entry.maximum)}")
    if entry.labels:
        more = ", ..." if len(entry.labels) > 5 else ""
        parts.append(f"{len(entry.labels)} labels: {', '.join(entry.labels[:5])}{more}")
    return "; ".join(parts)


def _numbers(values: tuple[float, ...]) -> str:
    text = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
    return f"[{text}]" if len(values) > 1 else text or "?"
