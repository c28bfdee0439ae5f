"""What Vela prints, judged; and the names of its accelerators."""

import pytest

from tfcompress.tools.vela import ACCELERATORS, check_accelerator, judge

SUMMARY = {
    "inference_time": "4.9962e-05",
    "sram_memory_used": "6.90625",
    "dram_memory_used": "0.0",
    "off_chip_flash_memory_used": "16.515625",
    "cycles_total": "24981",
}
REASONS = """
Warning (supported operators) operator: SOFTMAX, ofm: 'y'
Reason: Operation has tensor with unsupported DataType Float32 (y)
Warning (supported operators) operator: EXP, ofm: 'z'
Reason: Unsupported opType
Reason: Unsupported opType
"""


def test_all_on_the_npu_passes_with_figures():
    said = "CPU operators = 0 (0.0%)\nNPU operators = 42 (100.0%)\n   NPU: Conv2D = a\n"
    found = judge(said, SUMMARY, "ethos-u55-128")
    assert (found.status, found.reason) == ("passed", "")
    assert found.figures == {
        "accelerator": "ethos-u55-128",
        "NPU ops": 42,
        "CPU ops": 0,
        "ops are": "Vela's own",
        "cycles": 24981,
        "SRAM KiB": 6.9,
        "flash KiB": 16.5,
        "ms": 0.04996,
    }


def test_one_operator_on_the_cpu_fails_with_the_reasons_once():
    said = f"{REASONS}\nCPU operators = 2 (4.5%)\nNPU operators = 42 (95.5%)\n"
    found = judge(said, {**SUMMARY, "dram_memory_used": "32"}, "ethos-u65-256")
    assert found.status == "failed"
    assert found.reason == (
        "2 operators run on the CPU; expected 0. Operation has tensor with unsupported DataType "
        "Float32 (y); Unsupported opType"
    )
    assert found.figures["CPU ops"] == 2
    assert found.figures["DRAM KiB"] == 32


def test_nothing_at_all_on_the_npu_is_no_pass():
    found = judge("CPU operators = 0 (0%)\nNPU operators = 0 (0%)\n", SUMMARY, "ethos-u55-32")
    assert (found.status, found.reason) == ("failed", "No operator is mapped.")


def test_output_without_counts_is_no_pass():
    found = judge("Network summary for model\n", SUMMARY, "ethos-u55-32")
    assert found.status == "failed"


def test_accelerators():
    assert len(ACCELERATORS) == 4 + 2 + 5
    for name in ACCELERATORS:
        check_accelerator(name)
    with pytest.raises(ValueError, match=r"'ethos-u55-127'; expected one of .*'ethos-u55-128'\?"):
        check_accelerator("ethos-u55-127")
    with pytest.raises(ValueError, match="unknown accelerator 55"):
        check_accelerator(55)
