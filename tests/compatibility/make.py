"""Saves one model of each kind, its outputs, the public names and all help, by the code at hand.

What is in `saved/` was made by version 0.1.0 before the rooms were rebuilt, and must go on loading:

    python tests/compatibility/make.py tests/compatibility/saved
"""

import inspect
import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc
from tfcompress import distillation, schedules

STEPS = 8


class Subclassed(keras.Model):
    """A class token, a parameter of its own and operations in `call`."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.embed = layers.Dense(8, name="embed")
        self.token = self.add_weight(shape=(1, 1, 8), name="token")
        self.attention = layers.MultiHeadAttention(2, 4, name="attention")
        self.head = layers.Dense(3, name="head")

    def call(self, x):
        x = self.embed(x)
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, 8))
        x = ops.concatenate([token, x], axis=1)
        x = x + self.attention(x, x)
        return ops.softmax(self.head(x[:, 0]))


def cnn(name="cnn", width=8):
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = skip = layers.ReLU(6.0, name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add(name="add")([layers.Conv2D(width, 1, name="pointwise")(x), skip])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name=name)


def recurrent():
    inputs = keras.Input((3, 3), name="steps")
    x = layers.GRU(4, name="gru", unroll=True)(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="recurrent")


def fitted(model, x, labels, *callbacks, loss="sparse_categorical_crossentropy"):
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    model.fit(x, labels, batch_size=8, epochs=2, verbose=0, callbacks=list(callbacks))
    return model


def compressed(model, x, labels, *techniques):
    small = tfc.compress(model, tfc.Recipe([tfc.Rule("*", list(techniques))]))
    return fitted(small, x, labels, tfc.UpdateCompression())


def models():
    """(name, model, inputs) of one model of each kind."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.uniform(size=(32, 8, 8, 3)).astype("float32")
    labels = random.integers(0, 4, 32)
    plain = fitted(cnn(), x, labels)
    curve = schedules.polynomial(0.0, 0.75, end=STEPS // 2)
    techniques = {
        "prune": [tfc.Prune(curve)],
        "prune_taylor": [tfc.Prune(schedules.cosine(0.0, 0.5, end=4), score="taylor")],
        "prune_2_4": [tfc.Prune(0.5, pattern="2:4")],
        "cluster": [tfc.Cluster(4)],
        "quantize": [tfc.Quantize()],
        "quantize_int4": [tfc.Quantize(bits=4, dense="per_tensor", freeze=6)],
        "regularize": [tfc.Regularize(tfc.GroupLasso(1e-4))],
        "all": [tfc.Regularize("l2"), tfc.Prune(curve), tfc.Cluster(8), tfc.Quantize(delay=2)],
    }
    for name, chosen in techniques.items():
        yield name, compressed(plain, x, labels, *chosen), x
    yield "finalized", tfc.finalize(compressed(plain, x, labels, *techniques["all"])), x
    tokens = random.normal(size=(32, 6, 5)).astype("float32")
    subclassed = Subclassed()
    subclassed(tokens)
    yield "flat", tfc.flatten(subclassed, inputs=keras.Input((6, 5))), tokens
    attention = tfc.quantize_aware(subclassed, inputs=keras.Input((6, 5)))
    yield "quantize_attention", fitted(attention, tokens, labels % 3), tokens
    steps = random.normal(size=(32, 3, 3)).astype("float32")
    gru = fitted(tfc.quantize_aware(recurrent()), steps, steps[:, 0, :2], loss="mse")
    yield "quantize_gru", gru, steps
    losses = [distillation.SoftLabels(), distillation.Features("add", "add", weight=0.1)]
    student = tfc.quantize_aware(cnn("student", 4))
    distiller = tfc.Distiller(student, plain, losses, alpha=0.3, temperature=3.0)
    yield "distiller", fitted(distiller, x, labels), x
    mutual = tfc.MutualDistiller([cnn("first", 4), cnn("second", 4)])
    yield "mutual", fitted(mutual, x, labels), x
    taught = tfc.SelfDistiller(cnn("own", 4), ["relu"])
    yield "self", fitted(taught, x, labels), x
    yield "channels", tfc.prune_channels(plain, params=0.7, round_to=1), x
    yield "svd", tfc.factorize(plain, "svd", params=0.8), x


def output_of(model, x):
    """What a model gives for some samples; of a trainer, what its students give."""
    inner = getattr(model, "student", None) or model
    inner = model.students if hasattr(model, "students") and inner is model else [inner]
    return np.concatenate([np.asarray(each(x[:8], training=False)) for each in inner], axis=-1)


def names():
    """Public names with their signatures."""
    found = {}
    for module in (tfc, distillation, schedules):
        for name in getattr(module, "__all__", None) or [n for n in dir(module) if n[0] != "_"]:
            value = getattr(module, name)
            if inspect.ismodule(value) or not getattr(value, "__module__", "").startswith("tfc"):
                continue
            known = callable(value) and not inspect.isclass(value)
            signature = value if known else getattr(value, "__init__", None)
            parameters = inspect.signature(signature).parameters.values() if signature else []
            found[f"{module.__name__}.{name}"] = [
                f"{p.name}{'' if p.default is p.empty else '=' + repr(p.default)}"
                for p in parameters
                if p.name != "self"
            ]
    return found


def help_texts(app):
    """What `--help` says of each command."""
    import typer.main
    from typer.testing import CliRunner

    commands = sorted(typer.main.get_command(app).commands)
    runner = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"})
    asked = [[], *([command] for command in commands)]
    return {" ".join(words): runner.invoke(app, [*words, "--help"]).output for words in asked}


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, model, x in models():
        model.save(folder / f"{name}.keras")
        np.savez_compressed(folder / f"{name}.npz", x=x[:8], y=output_of(model, x))
    try:
        from tfcompress.cli.app import app
    except ImportError:
        from tfcompress.cli import app
    (folder / "names.json").write_text(json.dumps(names(), indent=1, sort_keys=True) + "\n")
    (folder / "help.json").write_text(json.dumps(help_texts(app), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
