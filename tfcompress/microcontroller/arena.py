"""How large the arena must be for TFLite Micro to plan and run a model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tfcompress.environments import python_environment, run_tool
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.arena import activation_bytes

# Runs in TFLite Micro's own environment. What an allocator has handed out at the end is no answer:
# planning needs memory that it gives back, sometimes more than all the tensors.
_SEARCH = """
import json, os, signal, sys, tempfile
import numpy as np
from tflite_micro.python.tflite_micro import runtime

data, inputs, high = open(sys.argv[1], "rb").read(), *map(int, sys.argv[2:])
low = 16
# TFLite Micro tells the reason there.
log = tempfile.TemporaryFile()
os.dup2(log.fileno(), 2)

def works(size):
    # In a process of its own: with far too little memory it crashes.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    signal.alarm(60)
    try:
        interpreter = runtime.Interpreter.from_bytes(data, arena_size=size)
        for i in range(inputs):
            details = interpreter.get_input_details(i)
            interpreter.set_input(np.zeros(details["shape"], details["dtype"]), i)
        interpreter.invoke()
        os._exit(0)
    except Exception as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(1)

if not works(high):
    log.seek(0)
    lines = log.read(4000).decode(errors="replace").split()
    print(json.dumps({"reason": " ".join(lines)[:400] or "it crashes, or takes a minute"}))
    sys.exit()
while low < high:
    middle = (low + high) // 32 * 16
    low, high = (low, middle) if works(middle) else (middle + 16, high)
print(json.dumps({"bytes": high}))
"""
_SECONDS = 300.0


def measure_arena(data: bytes, where: str) -> tuple[int, str]:
    """Let TFLite Micro find the smallest arena in which a model can be planned and run.

    Args:
        data: the bytes of the .tflite file.
        where: what error messages call it.

    Returns:
        (bytes, a multiple of 16; who measured).

    Raises:
        Unavailable: TFLite Micro cannot be had here.
        ValueError: it refuses the file, crashes on it or takes more than a minute.
    """
    from tfcompress.acceptance.tools import tflm

    model = flatbuffer.read(data, name=where)
    # Room to plan in, several times what is needed.
    most = min(8 * activation_bytes(model) + (16 << 20), 2**31 - 16) // 16 * 16
    inputs = len(model.subgraphs[0].inputs)
    python = python_environment("tflm", tflm.PACKAGES)
    with tempfile.TemporaryDirectory(prefix="tfcompress-") as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(data)
        command = [str(python), "-c", _SEARCH, str(path), *map(str, (inputs, most))]
        said = run_tool(command, what="TFLite Micro", seconds=_SECONDS)
    found = json.loads(said)
    if "reason" in found:
        raise ValueError(
            f"TFLite Micro refuses {where}: {found['reason']}; expected a file that it can run. "
            "Convert again with precision='int8' and io_dtype='int8', or replace the layer that "
            "it names."
        )
    return int(found["bytes"]), f"measured by {tflm.TITLE} on a 64-bit machine"
