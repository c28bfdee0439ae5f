"""Vela, Arm's compiler for Ethos-U NPUs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from tfcompress.errors import expected_one_of
from tfcompress.files import temporary
from tfcompress.tools.driving import Figure, Outcome, Refused, Tool
from tfcompress.tools.environments import Unavailable, python_environment, run_tool
from tfcompress.tools.subject import Subject

PACKAGES = ("ethos-u-vela==5.2.0", "flatbuffers==25.12.19", "numpy==2.2.6")
SECONDS = 600.0

# System configuration and memory mode of Vela's own file Arm/vela.ini, by accelerator: the faster
# system of each family, with the memory mode that Vela takes if it is told none.
_SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_High_End", "Dedicated_Sram"),
    "ethos-u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
}

_MACS = {
    "ethos-u55": (32, 64, 128, 256),
    "ethos-u65": (256, 512),
    "ethos-u85": (128, 256, 512, 1024, 2048),
}

ACCELERATORS = tuple(f"{family}-{macs}" for family in _MACS for macs in _MACS[family])
DEFAULT = "ethos-u55-128"


def check_accelerator(value: object) -> None:
    """Raise ValueError unless Vela knows an accelerator of this name."""
    if value not in ACCELERATORS:
        raise ValueError(
            f"unknown accelerator {value!r}; {expected_one_of(str(value), ACCELERATORS)}"
        )


def run(file: Subject) -> Outcome:
    """Compile the file: passed if all operators run on the NPU and none on the CPU."""
    accelerator = file.options.get("accelerator", DEFAULT)
    vela = python_environment("vela", PACKAGES).with_name("vela")
    system, memory = _SYSTEMS[accelerator.rpartition("-")[0]]
    with temporary.folder() as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(file.data)
        command: list[str | Path] = [vela, "model.tflite", "--output-dir", "out"]
        command += ["--accelerator-config", accelerator, "--config", "Arm/vela.ini"]
        command += ["--system-config", system, "--memory-mode", memory]
        command += ["--verbose-performance", "--show-cpu-operations"]
        try:
            said = run_tool(command, what="Vela", seconds=SECONDS, folder=folder)
        except Unavailable as error:  # It is there; so it is the file that it fails on.
            raise Refused(str(error)) from error
        with open(folder / "out" / f"model_summary_{system}.csv", newline="") as table:
            (summary,) = csv.DictReader(table)
    return judge(said, summary, accelerator)


_COSTS = ("flash KiB", "cycles", "SRAM KiB", "ms")
TOOL = Tool("Arm Vela 5.2.0", run, {"accelerator": check_accelerator}, _COSTS)


def judge(said: str, summary: dict[str, str], accelerator: str) -> Outcome:
    """Judge what Vela printed and measured; its exit status is 0 whatever runs on the CPU."""
    counts = {kind: int(n) for kind, n in re.findall(r"^(CPU|NPU) operators = (\d+)", said, re.M)}
    if set(counts) != {"CPU", "NPU"}:
        return Outcome("failed", "Vela did not tell how many operators run where")
    kilobytes = ("sram_memory_used", "dram_memory_used", "off_chip_flash_memory_used")
    sram, dram, flash = (round(float(summary[column]), 1) for column in kilobytes)
    figures: dict[str, Figure] = {
        "accelerator": accelerator,
        "NPU ops": counts["NPU"],
        "CPU ops": counts["CPU"],
        # It takes the file's operators apart: these are more.
        "ops are": "Vela's own",
        "cycles": int(float(summary["cycles_total"])),
        "SRAM KiB": sram,
        **({"DRAM KiB": dram} if dram else {}),
        "flash KiB": flash,
        "ms": float(f"{1000 * float(summary['inference_time']):.4g}"),
    }
    if counts["CPU"] == 0 and counts["NPU"] > 0:
        return Outcome("passed", "", figures)
    reasons = list(dict.fromkeys(re.findall(r"^Reason: (.*)$", said, re.M)))
    why = "; ".join(" ".join(reason.split()) for reason in reasons[:2])
    more = f" and {len(reasons) - 2} other reasons" if len(reasons) > 2 else ""
    number = counts["CPU"]
    told = f"{number} operators run on the CPU; expected 0." if number else "No operator is mapped."
    return Outcome("failed", f"{told} {why}{more}".strip(), figures)
