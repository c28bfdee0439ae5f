"""What layers trained in few bits are stored in and cost on each runtime, what zeros are worth
there, and zeros and few values on an Ethos-U: the tables of docs/few_bits.md.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from measurements import parser_of, tell

PAGE = Path(__file__).parents[2] / "docs" / "few_bits.md"
MARK = "<!-- {} -->"

# A layer each, large enough to be timed.
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
    "Dense, one scale": ((1024,), lambda: layers.Dense(1024)),
    "Dense, a scale a channel": ((1024,), lambda: layers.Dense(1024)),
    "Conv2D 1x1": ((32, 32, 64), lambda: layers.Conv2D(64, 1)),
    "Conv2D 3x3": ((32, 32, 64), lambda: layers.Conv2D(64, 3, padding="same")),
    "DepthwiseConv2D 3x3": ((32, 32, 64), lambda: layers.DepthwiseConv2D(3, padding="same")),
    "Conv2DTranspose 2x2": ((16, 16, 64), lambda: layers.Conv2DTranspose(64, 2, strides=2)),
}
RUNS = "layer,bits,LiteRT,equal,time,TFLite Micro,equal,arena,Ethos-U,flash KiB"
ZEROS = "zeros,bytes,zipped,in codes,flash KiB,int8 time,float bytes,float time"
COSTS = "weights,quality,bytes,zipped,flash KiB,cycles,SRAM KiB"


def few_bits(arguments: list[str] | None = None) -> int:
    """What few bits cost on each runtime, and what zeros and few values are worth on an Ethos-U."""
    parser = parser_of(few_bits, {})
    parser.add_argument("--steps", type=int, help="of the trainings; else those of the benchmark")
    parser.add_argument("--tasks", nargs="+", default=["keywords", "anomaly"])
    parser.add_argument("--write", action="store_true", help="write docs/few_bits.md anew")
    options = parser.parse_args(arguments)
    tables = {"runs": (RUNS, list(_layer_rows())), "zeros": (ZEROS, list(_zero_rows()))}
    for task in options.tasks:
        tables[task] = (COSTS, list(_value_rows(task, options.steps)))
    if options.json:
        print(json.dumps(tables))
    page = PAGE.read_text()
    for name, (columns, rows) in tables.items():
        text = _table(columns, rows)
        tell(text)
        page = _replaced(page, name, text)
    if options.write:
        PAGE.write_text(page)
    return 0


def _replaced(page: str, name: str, text: str) -> str:
    """A page with a table between the marks of its name."""
    before, mark, rest = page.partition(MARK.format(name))
    _, end, after = rest.partition(MARK.format(f"/{name}"))
    if not end:
        raise ValueError(f"{PAGE} must have the marks of '{name}'; received none. Add them.")
    return f"{before}{mark}\n{text}\n{end}{after}"


def _table(columns: str, rows: list[list[Any]]) -> str:
    names = columns.split(",")
    lines = [names, ["---"] * len(names), *rows]
    told = ([f"{v:,}" if isinstance(v, int) else str(v) for v in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in told)


def _layer_rows() -> Iterator[list[Any]]:
    """What a layer trained in 8, 4 and 2 bits becomes for each runtime."""
    for name, (shape, make) in LAYERS.items():
        dense = "per_channel" if name.endswith("channel") else "per_tensor"
        with tempfile.TemporaryDirectory() as folder:
            files = {bits: _files(Path(folder), shape, make, bits, dense) for bits in (8, 4, 2)}
            timed = tfc.benchmark([found["litert"] for found in files.values()], rounds=15)
            for (bits, found), entry in zip(files.items(), timed.files, strict=True):
                micro = tfc.accept(found["microcontroller"], "tflm").results[0]
                vela = tfc.accept(found["ethos_u55"], "vela").results[0]
                row = [
                    name,
                    bits,
                    _stored(found["litert"]),
                    f"{found['steps']:g}",
                    f"{entry.ratio:.2f}x",
                    _stored(found["microcontroller"]),
                    micro.figures["max LSB"],
                    micro.figures["arena bytes"],
                    _stored(found["ethos_u55"]),
                    vela.figures["flash KiB"],
                ]
                tell(str(row))
                yield row


def _files(folder: Path, shape, make, bits: int, dense: str) -> dict[str, Any]:
    """A file for each runtime, and how far LiteRT's reference kernels are from Keras in steps."""
    keras.utils.set_random_seed(0)
    x = keras.Input(shape)
    model = tfc.quantize_aware(keras.Model(x, make()(x)), bits=bits, dense=dense)
    data = np.random.default_rng(0).normal(size=(16, *shape)).astype("float32")
    model(data, training=True)
    found: dict[str, Any] = {}
    for target in ("litert", "microcontroller", "ethos_u55"):
        path = folder / f"{target}{bits}.tflite"
        known: dict[str, Any] = {"io_dtype": "int8"} if target == "litert" else {"target": target}
        tfc.convert(model, path, **known)
        found[target] = path
    (output,) = tfc.verify(model, found["litert"], data[:8]).outputs
    return {**found, "steps": round(float(output.keras.max_lsb), 2)}


def _stored(path: Path) -> str:
    """How a file stores its largest weight."""
    found = [t for t in tfc.inspect(path).tensors if t.is_constant and len(t.shape) > 1]
    return max(found, key=lambda t: np.prod(t.shape)).dtype


def _zero_rows() -> Iterator[list[Any]]:
    """What zeros in pointwise kernels are worth: the net is of the form of Fast Sparse ConvNets."""
    shares = (0.0, 0.5, 0.7, 0.8, 0.9)
    data = np.random.default_rng(0).normal(size=(32, 65, 65, 3)).astype("float32")
    int8: dict[str, Any] = {"precision": "int8", "calibration": data}
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        for share in shares:
            model, at = _pointwise_net(share), f"{share:.0%}"
            path, coded = folder / f"int8 {at}.tflite", folder / f"coded {at}.tflite"
            found = tfc.convert(model, path, io_dtype="int8", **int8)
            micro: dict[str, Any] = {"target": "microcontroller", "compressed_weights": share > 0.5}
            tfc.convert(model, coded, **int8, **micro)  # half of them are no smaller in codes
            tfc.convert(model, folder / f"vela {at}.tflite", target="ethos_u55", **int8)
            vela = tfc.accept(folder / f"vela {at}.tflite", "vela").results[0].figures
            _sparse_float(model, folder, folder / f"float {at}.tflite")
            size = coded.stat().st_size
            rows.append([at, found.file_bytes, found.zipped_bytes, size, vela["flash KiB"]])
        for kind in ("int8", "float"):
            files = [folder / f"{kind} {row[0]}.tflite" for row in rows]
            timed = tfc.benchmark(files, rounds=25).files
            for row, entry in zip(rows, timed, strict=True):
                more = [] if kind == "int8" else [entry.file_bytes]
                # The shortest, as other work on a machine makes medians of what it likes.
                row += [*more, f"{entry.min_ms / timed[0].min_ms:.2f}x"]
        yield from rows


def _pointwise_net(share: float) -> keras.Model:
    """A net whose pointwise kernels have a share of zeros, as XNNPACK's sparse kernels ask for."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((65, 65, 3), batch_size=1)
    x = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu6")(x)
    for _ in range(3):
        x = layers.Conv2D(192, 1, activation="relu6")(x)
        x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
        x = layers.Conv2D(64, 1)(x)
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    for layer in model.layers:
        if getattr(layer, "kernel_size", None) == (1, 1):
            kernel = np.array(layer.kernel)
            least = np.quantile(np.abs(kernel), share) if share else 0.0
            layer.kernel.assign(np.where(np.abs(kernel) < least, 0.0, kernel))
    return model


def _sparse_float(model: keras.Model, folder: Path, path: Path) -> None:
    """Writes a float file that stores where kernels are not zero, by TensorFlow's converter."""
    import tensorflow as tf

    model.export(str(folder / "saved"), verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    path.write_bytes(converter.convert())


def _techniques(steps: int) -> dict[str, list[Any]]:
    """What weights are trained to be, by what a table calls it."""
    frequency = max(1, steps // 50)

    def zeros(share: float) -> Any:
        ramp = tfc.schedules.polynomial(0.0, share, end=round(0.3 * steps), frequency=frequency)
        return tfc.Prune(ramp, scope="global", score="taylor")

    def of(*techniques: Any, bits: int = 8) -> list[Any]:
        return [*techniques, tfc.Quantize(bits=bits, momentum=0.95)]

    return {
        "8 bits": of(),
        "50% zeros": of(zeros(0.5)),
        "80% zeros": of(zeros(0.8)),
        "16 values (clusters)": of(tfc.Cluster(16)),
        "4 values (clusters)": of(tfc.Cluster(4)),
        "80% zeros, 16 values": of(zeros(0.8), tfc.Cluster(16)),
        "-7, -5, ..., 7": of(tfc.Codebook("8")),
        "-3, -1, 1, 3": of(tfc.Codebook("4")),
        "-1, 0, 1": of(tfc.Codebook("ternary", symmetric=True)),
        "-1, 1": of(tfc.Codebook("binary")),
        "4 bits": of(bits=4),
        "3 bits": of(bits=3),
        "2 bits": of(bits=2),
    }


def _value_rows(name: str, steps: int | None) -> Iterator[list[Any]]:
    """What Vela makes of a net of the benchmark whose weights are trained to be cheap."""
    from tfcompress.bench.models import compile_for
    from tfcompress.bench.running.child import file_quality, train
    from tfcompress.bench.tasks import TASKS

    task = TASKS[name]
    data, tuning = task.generate(), task.tuning
    steps = steps or tuning.steps
    model = keras.saving.load_model(train(name, 0, "full", None))
    with tempfile.TemporaryDirectory() as folder:
        for number, (label, techniques) in enumerate(_techniques(steps).items()):
            keras.utils.set_random_seed(0)
            small = tfc.compress(model, [tfc.Rule("*", techniques)])
            compile_for(small, steps, tuning.rate, task.loss, keras)
            batches = data.batches(tuning.batch, 0)
            known = {"steps_per_epoch": steps, "callbacks": [tfc.UpdateCompression()]}
            small.fit(batches, epochs=1, verbose=0, **known)
            path = Path(folder) / f"{number}.tflite"
            tfc.convert(tfc.finalize(small), path, target="ethos_u55")
            found = tfc.accept(path, "vela")
            figures = found.results[0].figures
            quality = f"{100 * file_quality(task, data, path):.2f}"
            costs = [figures[key] for key in ("flash KiB", "cycles", "SRAM KiB")]
            row = [label, quality, found.file_bytes, found.zipped_bytes, *costs]
            tell(str(row))
            yield row
