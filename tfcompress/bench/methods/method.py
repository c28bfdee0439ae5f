"""What a method of the benchmark is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfcompress.bench.methods.run import Run

Make = Callable[["Run"], None]

OURS, TFMOT, CONVERTER, AEQ = "tfcompress", "TFMOT", "TFLiteConverter", "ai-edge-quantizer"


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to make a file of a float model.

    Attributes:
        name: for the command line; unique.
        title: for people, without who it is by.
        who: `OURS` or a peer.
        make: carries it out: calls `run.fit` and ends with `run.convert` or `run.write`.
        family: methods of one family do the same: what is ours is compared with the peers in it.
        short: whether the short form of the benchmark has it.
    """

    name: str
    title: str
    who: str
    make: Make
    family: str
    short: bool = False
