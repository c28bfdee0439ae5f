"""What `verify` tells about a .tflite file: plain data that can print itself."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from tfcompress.tflite.differences import Difference
from tfcompress.tflite.layer_errors import LayerError
from tfcompress.tflite.tables import as_text, print_table

if TYPE_CHECKING:
    from rich.console import Console

# What is asked of a file whose quantization the Keras model did not simulate.
LEAST_SQNR_DB, LEAST_AGREEMENT = 10.0, 0.9
# Enough where it did, even if single values are off by more than the default tolerance: roundings
# that fall to the other side add up in deep models, and softmax makes several LSB of one.
GOOD_MEAN_LSB, GOOD_SQNR_DB, GOOD_AGREEMENT = 0.5, 30.0, 0.99


@dataclasses.dataclass(frozen=True)
class OutputCheck:
    """One output: how the file's values differ from the Keras model's.

    Attributes:
        name: of the output in the signature.
        dtype: of the output in the file.
        lsb: the real difference that counts as one LSB: the scale of the output's integers; 1 for
            whole numbers; 1/255 of the range of the Keras model's outputs where there are none.
        has_scale: whether `lsb` is a scale of the file.
        keras: Keras against LiteRT's reference kernels (BUILTIN_REF).
        xnnpack: the reference kernels against the default ones, XNNPACK where it can.
        passed: whether both are within the tolerance.
    """

    name: str
    dtype: str
    lsb: float
    has_scale: bool
    keras: Difference
    xnnpack: Difference
    passed: bool


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        path: the file.
        samples: how many samples were run.
        tolerance: the most LSB that are let pass; None if SQNR and agreement alone decide.
        strict: whether the tolerance was asked for, and alone decides.
        outputs: in the order of the Keras model's outputs.
        layers: the error of each layer, worst first, if it was asked for.
        notes: other things worth knowing, such as kernels that the reference lacks.
    """

    path: str
    samples: int
    tolerance: float | None
    strict: bool
    outputs: tuple[OutputCheck, ...]
    layers: tuple[LayerError, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.passed for output in self.outputs)

    @property
    def rule(self) -> str:
        """What was asked of the outputs, in words."""
        enough = "SQNR of {:g} dB and argmax agreement of {:.0%}"
        if self.tolerance is None:
            return f"at least an {enough.format(LEAST_SQNR_DB, LEAST_AGREEMENT)}"
        within = f"at most {self.tolerance:g} LSB"
        if self.strict:
            return within
        good = enough.format(GOOD_SQNR_DB, GOOD_AGREEMENT)
        return f"{within}, or a mean of {GOOD_MEAN_LSB:g} LSB, an {good}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; NaN and infinity (no error at all) become None."""
        return {"passed": self.passed, "rule": self.rule, **_plain(dataclasses.asdict(self))}

    def render(self, console: Console | None = None) -> None:
        """Prints the verdict and a table.

        Args:
            console: a rich console; standard output if None.
        """
        from rich.console import Console

        console = console or Console()
        rows: list[tuple[Any, ...]] = []
        for output in self.outputs:
            for pair, found in (("Keras, REF", output.keras), ("REF, XNNPACK", output.xnnpack)):
                agreement = "" if found.agreement is None else f"{found.agreement:.2%}"
                numbers = (f"{found.max_lsb:.2f}", f"{found.mean_lsb:.4f}", f"{found.max_abs:.3g}")
                rows.append((output.name, pair, *numbers, agreement, f"{found.sqnr_db:.1f}"))
        columns = "output,compared,max LSB >,mean LSB >,max diff >,argmax equal >,SQNR dB >"
        print_table(console, f"{self.path}: {self.samples} samples", columns, rows)
        if self.layers:
            columns = "layer,operator,SQNR dB >,of its inputs >"
            rows = [
                (e.layer or e.tensor[:60], e.op, f"{e.sqnr_db:.1f}", f"{e.input_sqnr_db:.1f}")
                for e in self.layers
            ]
            print_table(console, "Error by layer, worst first", columns, rows)
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        verdict = "[green]passed[/]" if self.passed else "[red]failed[/]"
        console.print(f"{verdict}: {self.rule}")

    def __str__(self) -> str:
        return as_text(self.render)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
