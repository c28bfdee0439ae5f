"""What `c_array` writes, compiled for this machine and for a Cortex-M4; TFLite Micro's word."""

import subprocess

import pytest
from metadata_models import FULL, colours
from test_c_array import dense
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor
from tflm_stub import write_stub

from tfcompress.export.microcontroller.c_array import examine, measure_arena
from tfcompress.export.microcontroller.generation import METHODS, generate
from tfcompress.tflite.metadata import add_metadata
from tfcompress.tools.environments import Unavailable, program

pytestmark = pytest.mark.slow

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
CORTEX_M4 = ["-mcpu=cortex-m4", "-mthumb", "-fno-exceptions", "-fno-rtti"]
DUMP = """
#include <stdint.h>
#include <stdio.h>
#include "model.h"
int main(void) {
  if ((uintptr_t)model_data % 16 != 0) return 1;
  return fwrite(model_data, 1, MODEL_SIZE, stdout) == sizeof(model_data) ? 0 : 2;
}
"""


def compiler(name, package):
    try:
        return program(name, package)
    except Unavailable as error:
        pytest.skip(str(error))


def run(*command, check=True):
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr.decode()[-3000:]
    return done


def written(folder, data, name="model"):
    files = generate(examine(data, name, "a file"), data)
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def every_operator():
    """A file with each operator once, which only its list of operators is read of."""
    names = [name for name in METHODS if hasattr(OPS, name)]
    grid = {"scale": [0.5], "zero_point": [0]}
    tensors = [tensor(n, [1, 2], TYPES.INT8, 0, **grid) for n in "xy"]
    codes = [code(getattr(OPS, name)) for name in names]
    codes += [code(OPS.CUSTOM, 1, name) for name in METHODS if name not in names]
    operators = [operator(i, [0], [1]) for i in range(len(METHODS))]
    return build(codes, [graph(tensors, operators, [0], [1])], [])


@pytest.mark.parametrize("standard", ["c++11", "c++17"])
def test_the_array_holds_the_bytes_on_this_machine(tmp_path, standard):
    cc, cxx = compiler("gcc", "gcc"), compiler("g++", "g++")
    data = add_metadata(colours("uint8"), FULL)
    written(tmp_path, data)
    (tmp_path / "dump.c").write_text(DUMP)
    run(cxx, f"-std={standard}", *STRICT, "-c", tmp_path / "model.cc", "-o", tmp_path / "a.o")
    run(cc, "-std=c99", *STRICT, "-c", tmp_path / "dump.c", "-o", tmp_path / "b.o")
    run(cc, tmp_path / "a.o", tmp_path / "b.o", "-o", tmp_path / "dump")
    assert run(tmp_path / "dump").stdout == data


@pytest.mark.parametrize("standard", ["c++11", "c++17"])
def test_the_array_holds_the_bytes_on_a_cortex_m4(tmp_path, standard):
    cxx = compiler("arm-none-eabi-g++", "gcc-arm-none-eabi")
    objcopy = compiler("arm-none-eabi-objcopy", "binutils-arm-none-eabi")
    data = add_metadata(colours("uint8"), FULL)
    written(tmp_path, data)
    command = [cxx, *CORTEX_M4, f"-std={standard}", *STRICT]
    run(*command, "-c", tmp_path / "model.cc", "-o", tmp_path / "a.o")
    # Read-only: it stays in flash memory.
    pick = ["-O", "binary", "--only-section=.rodata"]
    run(objcopy, *pick, tmp_path / "a.o", tmp_path / "rodata")
    assert (tmp_path / "rodata").read_bytes() == data
    headers = run(objcopy.replace("objcopy", "objdump"), "-h", tmp_path / "a.o").stdout.decode()
    rodata = next(line for line in headers.splitlines() if ".rodata" in line)
    assert rodata.split()[-1] == "2**4"


def test_main_fills_the_input_and_prints_the_output(tmp_path):
    cxx = compiler("g++", "g++")
    stub = write_stub(tmp_path / "stub")
    written(tmp_path, dense())
    command = [cxx, "-std=c++17", *STRICT, "-I", stub, tmp_path / "main.cc", tmp_path / "model.cc"]
    run(*command, "-o", tmp_path / "main")
    # The stub's output is its input: the pattern, of which -128 and -127 were filled in.
    lines = run(tmp_path / "main").stdout.decode().splitlines()
    assert lines[:3] == ["output 0[0]: -128", "output 0[1]: -127", "output 0[2]: 0"]
    assert lines[3].startswith("arena: ")
    # A wrong name must not compile.
    header = tmp_path / "model_ops.h"
    header.write_text(header.read_text().replace("AddSoftmax", "AddSoftMax"))
    assert b"AddSoftMax" in run(*command, "-o", tmp_path / "main", check=False).stderr


def step_file():
    """A file whose second input is a state, which goes out as the second output."""
    grid = {"scale": [0.5], "zero_point": [5]}
    shapes = {"x": 3, "a_state": 2, "y": 3, "a_state_out": 2, "b_state_from_2": 1}
    tensors = [tensor(name, [1, n], TYPES.INT8, **grid) for name, n in shapes.items()]
    tensors.append(tensor("b_state_from_2_out", [1, 1], TYPES.INT8, **grid))
    return build([], [graph(tensors, [], [0, 1, 4], [2, 3, 5])], [])


def test_states_begin_as_zeros_and_are_fed_back(tmp_path):
    stub = write_stub(tmp_path / "stub")
    written(tmp_path, step_file())
    header = (tmp_path / "model_states.h").read_text()
    assert "if (states.calls > 2) memcpy(states.state_1, interpreter.output(2)" in header
    command = [compiler("g++", "g++"), "-std=c++17", *STRICT, "-I", stub, tmp_path / "main.cc"]
    run(*command, tmp_path / "model.cc", "-o", tmp_path / "main")
    # The stub has one tensor for all: the pattern, and upon it the states, zeros of code 5.
    lines = run(tmp_path / "main").stdout.decode().splitlines()
    call = ["output 0[0]: 5", "output 0[1]: 5", "output 0[2]: -126"]
    assert lines[:6] == call * 2
    assert "b_state_from_2" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float32", "uint8", "every operator"])
def test_main_compiles_for_a_cortex_m4_and_here(tmp_path, dtype):
    arm = compiler("arm-none-eabi-g++", "gcc-arm-none-eabi")
    stub = write_stub(tmp_path / "stub")
    # Among every operator is VAR_HANDLE, which needs room for variables.
    data = every_operator() if dtype == "every operator" else colours(dtype, outputs=2)
    written(tmp_path, data)
    for cxx, options in ((arm, CORTEX_M4), (compiler("g++", "g++"), [])):
        command = [cxx, *options, "-std=c++17", *STRICT, "-I", stub]
        run(*command, "-c", tmp_path / "main.cc", "-o", tmp_path / "main.o")
    run(*command, tmp_path / "main.o", tmp_path / "model.cc", "-o", tmp_path / "main")
    assert b"output 0[0]: " in run(tmp_path / "main").stdout


def test_types_that_are_filled_and_printed_compile(tmp_path):
    stub = write_stub(tmp_path / "stub")
    names = ("FLOAT32", "INT8", "UINT8", "INT16", "INT32", "UINT32", "INT64", "BOOL")
    tensors = [tensor(name, [2, 3], getattr(TYPES, name)) for name in names]
    ports = list(range(len(names)))
    written(tmp_path, build([], [graph(tensors, [], ports, ports)], []))
    command = ["-std=c++17", *STRICT, "-I", stub, "-c", tmp_path / "main.cc"]
    run(compiler("g++", "g++"), *command, "-o", tmp_path / "a.o")
    arm = compiler("arm-none-eabi-g++", "gcc-arm-none-eabi")
    run(arm, *CORTEX_M4, *command, "-o", tmp_path / "b.o")


def test_tflite_micro_measures_an_arena_that_is_enough_and_not_more():
    from tfcompress.tools.runtimes import TFLM

    data = colours("float32")
    try:
        size, note = measure_arena(data, "a file")
    except Unavailable as error:
        pytest.skip(str(error))
    assert note == f"measured by {TFLM.title} on a 64-bit machine"
    assert size % 16 == 0
    # Input and output at least, and not much more than what describes them.
    assert 8 * 8 * 3 * 4 + 3 * 4 < size < 8 * 8 * 3 * 4 + 3 * 4 + 8192


def test_tflite_micro_says_why_it_refuses_a_file():
    try:
        with pytest.raises(ValueError, match="MEAN") as caught:
            measure_arena(colours("uint8"), "'m.tflite'")
    except Unavailable as error:
        pytest.skip(str(error))
    assert "TFLite Micro refuses 'm.tflite': " in str(caught.value)
    assert "only float32, int8 or int16 input type is supported" in str(caught.value)
