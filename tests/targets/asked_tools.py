"""Asks real tools about many small files: what they map, load and run.

Some of the files crash a tool: each is asked about in a process that may end.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tfcompress.tools import vela as vela_tool
from tfcompress.tools.environments import python_environment, run_tool
from tfcompress.tools.runtimes import TFLM_LIBRARY

_EACH = """
import json, os, sys
def ask_all(ask, count):
    found, at = [], 0
    while at < count:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with os.fdopen(writer, "w") as stream:
                for i in range(at, count):
                    stream.write(json.dumps(ask(i)) + chr(10))
                    stream.flush()
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = [json.loads(line) for line in stream if line.endswith(chr(10))]
        os.waitpid(child, 0)
        found += said
        if len(found) < count:
            found.append("crashed")
        at = len(found)
    print("ANSWERS" + json.dumps(found))
"""
_VELA = (
    _EACH
    + """
import contextlib, io
from ethosu.vela import vela
folder, count, options = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
def ask(i):
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            vela.main([f"{folder}/{i}.tflite", "--output-dir", folder, *options])
    except BaseException as error:
        return str(error)
    return "done"
ask_all(ask, count)
"""
)
_TFLM = (
    _EACH
    + """
import numpy as np
from tflite_micro import runtime
folder, count = sys.argv[1], int(sys.argv[2])
def ask(i):
    with open(f"{folder}/{i}.tflite", "rb") as file:
        data = file.read()
    try:
        interpreter = runtime.Interpreter.from_bytes(data, arena_size=8_000_000)
        for k in range(8):
            try:
                details = interpreter.get_input_details(k)
            except Exception:
                break
            interpreter.set_input(np.ones(details["shape"], details["dtype"]), k)
        interpreter.invoke()
    except Exception as error:
        return str(error)
    return "runs"
ask_all(ask, count)
"""
)
_LITERT = (
    _EACH
    + """
from ai_edge_litert.interpreter import Interpreter
folder, count = sys.argv[1], int(sys.argv[2])
def ask(i):
    try:
        interpreter = Interpreter(f"{folder}/{i}.tflite")
        interpreter.allocate_tensors()
    except Exception as error:
        return str(error)
    parts = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    return [int(i) for part in parts for i in part["outputs"]]
ask_all(ask, count)
"""
)


def vela(files, accelerator):
    """Compiles files; for each what is left of it, or None where Vela fails on it."""
    system, memory = vela_tool._SYSTEMS[accelerator.rpartition("-")[0]]
    options = ["--accelerator-config", accelerator, "--config", "Arm/vela.ini"]
    options += ["--system-config", system, "--memory-mode", memory]
    with tempfile.TemporaryDirectory() as folder:
        _ask(_VELA, vela_tool.PACKAGES, "vela", files, folder, options)
        made = [Path(folder) / f"{i}_vela.tflite" for i in range(len(files))]
        return [path.read_bytes() if path.exists() else None for path in made]


def tflm(files):
    """Tells of each file whether TensorFlow Lite Micro loads and runs it."""
    with tempfile.TemporaryDirectory() as folder:
        said = _ask(_TFLM, TFLM_LIBRARY.packages, "tflm", files, folder, [])
    return [answer == "runs" for answer in said]


def delegated(files):
    """Tells of each file which tensors XNNPACK gives, or None where LiteRT does not load it.

    Of the operators of a delegated part only the last ones can be seen.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = _ask(_LITERT, None, "LiteRT", files, folder, [])
    return [set(answer) if isinstance(answer, list) else None for answer in said]


def _ask(script, packages, name, files, folder, options):
    for i, data in enumerate(files):
        (Path(folder) / f"{i}.tflite").write_bytes(data)
    python = sys.executable if packages is None else python_environment(name, packages)
    command = [python, "-c", script, folder, str(len(files)), *options]
    printed = run_tool(command, what=name, seconds=1200, folder=Path(folder))
    answers = json.loads(printed.rpartition("ANSWERS")[2])
    assert len(answers) == len(files), os.listdir(folder)[:5]
    return answers
