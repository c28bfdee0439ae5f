"""Runs TFLite Micro on a file."""

from pathlib import Path

from answering import answer


def run(samples, settings, log):
    from tflite_micro.python.tflite_micro import runtime

    data = Path("model.tflite").read_bytes()
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=settings["arena"])
    outputs = []
    for sample in samples:
        for place, value in enumerate(sample):
            interpreter.set_input(value, place)
        interpreter.invoke()
        outputs.append([interpreter.get_output(i) for i in range(settings["outputs"])])
    return outputs, {}


if __name__ == "__main__":
    answer(run, logged=2)
