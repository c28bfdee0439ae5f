"""What `c_array` says of the files that it wrote."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tfcompress.results import Result, Rows, print_table

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output, in the order of the interpreter; scale and zero point if quantized.

    `about` is what the file's metadata say of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    scale: float | None
    zero_point: int | None
    about: str = ""


@dataclasses.dataclass(frozen=True)
class CArray(Result):
    """The files for a microcontroller, and the memory that they ask for.

    Attributes:
        folder: where they lie.
        files: their names.
        name: what they are named after; the array is `<name>_data`.
        array_bytes: its size, to lie in flash memory.
        ops: methods that add the operators to the op resolver.
        variables: how many the model keeps between runs.
        arena_bytes: RAM for the arena as measured by TFLite Micro; None if not measured.
        arena_lower_bound: of the arena: the activations alone, an estimate.
        arena_note: who measured, or why nobody did.
        inputs, outputs: of the model.
    """

    folder: str
    files: tuple[str, ...]
    name: str
    array_bytes: int
    ops: tuple[str, ...]
    variables: int
    arena_bytes: int | None
    arena_lower_bound: int
    arena_note: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def _print(self, console: Console) -> None:
        if self.arena_bytes is None:
            lower = f"at least {self.arena_lower_bound:,} bytes, an estimate"
            arena = f"not measured ({self.arena_note}); {lower}"
        else:
            arena = f"{self.arena_bytes:,} bytes, {self.arena_note}"
        rows: Rows = [
            ("files", ", ".join(self.files)),
            ("array (flash)", f"{self.name}_data, {self.array_bytes:,} bytes"),
            ("arena (RAM)", arena),
            ("operators", f"{len(self.ops)}: {', '.join(self.ops)}"),
        ]
        print_table(console, self.folder, "what,value", rows)
        ports = [("input", port) for port in self.inputs]
        ports += [("output", port) for port in self.outputs]
        rows = [(kind, p.name, list(p.shape), p.dtype, _quantization(p)) for kind, p in ports]
        print_table(console, "Inputs and outputs", ",name,shape,dtype,quantization", rows)


def _quantization(port: Port) -> str:
    if port.scale is None:
        return ""
    return f"scale {port.scale:.6g}, zero point {port.zero_point}"
