"""Finds the smallest arena in which TFLite Micro plans and runs a file.

What an allocator has handed out at the end is no answer: planning needs memory that it gives back,
sometimes more than all the tensors.
"""

import os
import signal
from pathlib import Path

import numpy as np
from answering import answer

SECONDS = 60


def run(samples, settings, log):
    from tflite_micro.python.tflite_micro import runtime

    data = Path("model.tflite").read_bytes()

    def try_out(size):
        interpreter = runtime.Interpreter.from_bytes(data, arena_size=size)
        for i in range(settings["inputs"]):
            details = interpreter.get_input_details(i)
            interpreter.set_input(np.zeros(details["shape"], details["dtype"]), i)
        interpreter.invoke()

    low, high = 16, settings["arena"]
    if not works(try_out, high):
        raise RuntimeError(log.text()[:400] or f"it crashes, or takes more than {SECONDS} s")
    while low < high:
        middle = (low + high) // 32 * 16
        low, high = (low, middle) if works(try_out, middle) else (middle + 16, high)
    return [], {"arena bytes": high}


def works(try_out, size):
    """Whether an arena is large enough; in a process of its own, as too small a one may crash."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    signal.alarm(SECONDS)
    try:
        try_out(size)
        os._exit(0)
    except Exception as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(1)


if __name__ == "__main__":
    answer(run)
