"""What `check` finds about a .tflite file and a target: plain data that can print itself."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from tfcompress.results import Result, Rows, plain_fields, print_line, print_table

if TYPE_CHECKING:
    from rich.console import Console

_ROWS, _LAYERS = 7, 2


@dataclasses.dataclass(frozen=True)
class OperatorCheck:
    """An operator, mapped or not; what stands last is None where it is mapped.

    `status` is what the target's own compiler or runtime says, `reason` why in plain words;
    `fatal` if it keeps the target's compiler from making anything of the whole file.
    """

    subgraph: int
    index: int
    name: str
    version: int
    dtype: str  # as `inspect` tells it
    layer: str
    mapped: bool
    status: str
    reason: str | None = None
    mend: str | None = None
    source: str | None = None  # of the rule
    date: str | None = None
    fatal: bool = False


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about the whole file; `fatal` if it does not suit the target that way."""

    kind: str  # as "io_dtype", "batch", "metadata"; "refused": nothing is made of the file
    fatal: bool
    text: str
    mend: str | None = None
    source: str | None = None
    date: str | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """Operators of the first graph that follow one another and are all mapped, or all not."""

    mapped: bool
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many operators."""
        return self.last - self.first + 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the count."""
        return {**plain_fields(self), "count": self.count}


@dataclasses.dataclass(frozen=True)
class Check(Result):
    """Everything `check` found."""

    path: str
    target: str
    title: str
    accept_options: str | None  # how `tfcompress accept` asks the target's own tool, if it can
    compiler: str | None
    partition: str  # "rest", "each" or "none": what an operator that is not mapped does
    elsewhere: str | None  # where it runs then
    operators: tuple[OperatorCheck, ...]
    parts: tuple[Part, ...]
    findings: tuple[Finding, ...]
    activation_bytes: int  # a lower bound of the arena
    constant_bytes: int
    file_bytes: int

    @property
    def real_tool(self) -> str | None:
        """The command to run to be sure, if there is one."""
        file = shlex.quote(self.path) if self.path else "MODEL.tflite"
        given = self.accept_options
        return None if given is None else f"tfcompress accept {file} {given}"

    @property
    def mapped(self) -> int:
        """How many operators are mapped."""
        return sum(op.mapped for op in self.operators)

    @property
    def passed(self) -> bool:
        """True if every operator is mapped and nothing else is in the way."""
        return all(op.mapped for op in self.operators) and not any(f.fatal for f in self.findings)

    @property
    def is_refused(self) -> bool:
        """True if the target's compiler makes nothing of the whole file."""
        refused = any(f.kind == "refused" for f in self.findings)
        return refused or any(op.fatal for op in self.operators)

    @property
    def runs_in_parts(self) -> bool:
        """True if the file runs, and what is not mapped does so on its own elsewhere."""
        fatal = [*(f.fatal for f in self.findings), *(op.fatal for op in self.operators)]
        return self.partition == "each" and not any(fatal)

    @property
    def mends(self) -> tuple[str, ...]:
        """What to do, most needed first, each once."""
        given = Counter(op.mend for op in self.operators if op.mend)
        fatal = [f.mend for f in self.findings if f.mend and f.fatal]
        return tuple(dict.fromkeys([*fatal, *(mend for mend, _ in given.most_common())]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers, ready for `json.dumps`."""
        worked_out = {"passed": self.passed, "mapped": self.mapped, "mends": list(self.mends)}
        # The target's own tool has the last word.
        return {
            **worked_out,
            "is_rule_check": True,
            "real_tool": self.real_tool,
            **super().to_dict(),
        }

    def _print(self, console: Console) -> None:
        """Print a summary, what is not mapped and why, and what to do."""
        _render_summary(self, console)
        _render_unmapped(self, console)
        _render_findings(self, console)
        _lines(console, "What to do", self.mends)
        print_line(console, caution(self))


def _render_summary(found: Check, console: Console) -> None:
    count = len(found.operators)
    rows: Rows = [
        ("target", f"{found.target}: {found.title}"),
        ("operators", f"{found.mapped} of {count} mapped"),
        ("split", _split(found)),
        ("activations", f"at least {found.activation_bytes:,} bytes"),
        ("constants", f"{found.constant_bytes:,} bytes"),
        ("result", verdict_on(found)),
    ]
    print_table(console, found.path, "what,value", rows)


def _split(found: Check) -> str:
    shown = [f"{p.count} {'mapped' if p.mapped else 'not'}" for p in found.parts]
    if len(shown) > 9:
        shown = [*shown[:8], f"... {len(found.parts)} parts in all"]
    inside = sum(op.subgraph > 0 for op in found.operators)
    more = f"; {inside} more inside of these, in bodies of control flow" if inside else ""
    return (", ".join(shown) or "no operators") + more


def verdict_on(found: Check) -> str:
    """The verdict, and what it means for the file."""
    count = len(found.operators)
    left = count - found.mapped
    place = found.elsewhere or "something else"
    if found.passed:
        return "PASSED"
    if found.is_refused:
        return f"NOT PASSED: {found.compiler or 'the runtime'} refuses the whole file"
    if left == 0:
        return "NOT PASSED"
    if found.partition == "none":
        return "NOT PASSED: the file does not load, or stops at the first of these"
    if found.partition == "rest":
        return f"NOT PASSED: such operators, and what reads of them, run on {place}"
    verdict = "NOT ALL MAPPED" if found.runs_in_parts else "NOT PASSED"
    return f"{verdict}: {left} of {count} {'runs' if left == 1 else 'run'} on {place}"


def _render_unmapped(found: Check, console: Console) -> None:
    groups: dict[tuple[str, ...], list[OperatorCheck]] = {}
    for op in found.operators:
        if not op.mapped:
            key = (op.name, op.dtype, op.status, op.reason or "")
            groups.setdefault(key, []).append(op)
    if not groups:
        return
    rows: Rows = []
    for (name, dtype, status, reason), ops in list(groups.items())[:_ROWS]:
        rows.append((len(ops), f"{name}\n{dtype}", f"{status}\n{reason}".strip(), _layers(ops)))
    if len(groups) > _ROWS:
        left = sum(len(ops) for ops in list(groups.values())[_ROWS:])
        rows.append((left, "...", "and others: --json lists all of them", ""))
    print_table(console, "Not mapped", "count >,operator,why,layers", rows)


def _layers(ops: list[OperatorCheck]) -> str:
    names = [op.layer.split(";")[0] or f"operator {op.index}" for op in ops]
    more = [f"... ({len(names)})"] if len(names) > _LAYERS else []
    return "\n".join([*(_short(name) for name in names[:_LAYERS]), *more])


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"...{name[-27:]}"


def _render_findings(found: Check, console: Console) -> None:
    _lines(console, "In the way", [f.text for f in found.findings if f.fatal])
    _lines(console, "Notes", [f.text for f in found.findings if not f.fatal])


def _lines(console: Console, title: str, lines: tuple[str, ...] | list[str]) -> None:
    if lines:
        print_line(console, f"{title}:")
    for line in lines[:_ROWS]:
        print_line(console, f"  - {line}")
    if len(lines) > _ROWS:
        print_line(console, f"  - and {len(lines) - _ROWS} more")


def caution(found: Check) -> str:
    """What a check of rules cannot tell, and what can."""
    rules = "This is a check of rules"
    if found.real_tool:
        return f"{rules}; the tool itself has the last word: {found.real_tool}"
    if found.compiler:
        return f"{rules}, not {found.compiler}, which tfcompress cannot run: run it yourself."
    return f"{rules}, not a run on the device: try the file there."
