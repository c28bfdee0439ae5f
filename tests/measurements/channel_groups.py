"""Our channel groups beside those of Torch-Pruning: the same structures, the same ratios.

ResNet-50 and MobileNetV2 of keras.applications are built in PyTorch node by node; then the groups
of both tools, and the MACs and parameters that uniform pruning leaves, are compared:

    PYTHONPATH=tests python -m measurements channel_groups
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
from keras import layers

from measurements import parser_of, show
from tfcompress.graph.nodes import Graph, Node
from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.prune_channels import prune_channels
from tfcompress.tools.environments import python_environment, run_tool

PACKAGES = ["torch==2.13.0", "torch-pruning==1.6.1", "numpy>=2"]
RATIOS = (0.25, 0.5, 0.75)
_PLAIN = (layers.ReLU, layers.Activation, layers.Add, layers.GlobalAveragePooling2D, layers.Dropout)


def told(node: Node) -> dict[str, Any]:
    """A node as plain data, from which the other process builds the same layer."""
    layer = node.operation
    found: dict[str, Any] = {"name": node.name, "kind": type(layer).__name__}
    producers = [tensor._keras_history.operation.name for tensor in node.inputs]
    found["inputs"] = producers
    if node.is_input or isinstance(layer, _PLAIN):
        return found
    shape = node.inputs[0].shape
    found["in"], found["out"] = shape[-1], node.outputs[0].shape[-1]
    if isinstance(layer, layers.ZeroPadding2D):
        (top, bottom), (left, right) = layer.padding
        found["padding"] = [top, bottom, left, right]
    elif isinstance(layer, layers.MaxPooling2D):
        found["kernel"], found["strides"] = list(layer.pool_size), list(layer.strides)
    elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
        kernel, strides = list(layer.kernel_size), list(layer.strides)
        found |= {"kernel": kernel, "strides": strides, "bias": layer.use_bias}
        found["padding"] = [0, 0, 0, 0]
        if layer.padding == "same":
            places = zip(shape[1:3], node.outputs[0].shape[1:3], kernel, strides, strict=True)
            whole = [max(0, (out - 1) * s + k - size) for size, out, k, s in places]
            found["padding"] = [n for total in whole for n in (total // 2, total - total // 2)]
    elif not isinstance(layer, layers.BatchNormalization | layers.Dense):
        raise TypeError(f"no counterpart of {found['kind']} in the PyTorch model")
    return found


def ask_torch_pruning(model: keras.Model, ratios=RATIOS) -> dict[str, Any]:
    """What Torch-Pruning makes of a model of one image input.

    Returns {"macs", "groups": [[layers that make, layers that read], ...], "pruned": {ratio:
    costs}}.
    """
    python = python_environment("torch-pruning", PACKAGES)
    nodes = [told(node) for node in Graph.of(model).nodes]
    height, width, channels = model.input_shape[1:]
    content = {"nodes": nodes, "shape": [channels, height, width], "ratios": list(ratios)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "graph.json").write_text(json.dumps(content))
        script = Path(__file__).with_name("torch_groups.py")
        run_tool([python, str(script), folder], what="Torch-Pruning", seconds=900)
        return json.loads((Path(folder) / "answer.json").read_text())


def our_groups(model: keras.Model) -> list[list[list[str]]]:
    """Our groups, as Torch-Pruning tells its own."""
    found = []
    for group in Structure(model).prunable().values():
        made = {member.layer for member in group.members if member.role != "reads"}
        read = {member.layer for member in group.members if member.role == "reads"}
        found.append([sorted(made), sorted(read)])
    return found


def compare(name: str, model: keras.Model) -> dict[str, Any]:
    """Groups and costs of one model by both tools."""
    flat = opened(model)
    theirs, ours = ask_torch_pruning(flat), our_groups(flat)
    row: dict[str, Any] = {
        "model": name,
        "groups": [len(ours), len(theirs["groups"])],
        "same_groups": sorted(map(str, ours)) == sorted(map(str, theirs["groups"])),
    }
    for ratio in RATIOS:
        start = time.process_time()
        small = prune_channels(model, sparsity=ratio, scope="local", round_to=1)
        seconds = time.process_time() - start
        other = theirs["pruned"][str(ratio)]
        params = sum(v.numpy().size for v in small.trainable_weights)
        row[f"macs at {ratio}"] = [small.surgery_report.macs[1], other["macs"]]
        row[f"params at {ratio}"] = [params, other["params"]]
        row[f"seconds at {ratio}"] = [round(seconds, 1), round(other["seconds"], 1)]
    return row


def channel_groups(arguments: list[str] | None = None) -> int:
    """Our channel groups beside those of Torch-Pruning; returns 1 if they differ."""
    options = parser_of(channel_groups, {"size": (224, "of the images")}).parse_args(arguments)
    shape = (options.size, options.size, 3)
    found = []
    for name in ("ResNet50", "MobileNetV2"):
        make = getattr(keras.applications, name)
        found.append(compare(name, make(weights=None, input_shape=shape)))
    rows = [
        (row["model"], key, *(value if isinstance(value, list) else (value, None)))
        for row in found
        for key, value in row.items()
        if key != "model"
    ]
    columns = {"model": "", "what": "", "ours": "s", "Torch-Pruning": "s"}
    texts = [[None if cell is None else str(cell) for cell in row] for row in rows]
    show(options, found, "Groups of channels", columns, texts)
    equal = [
        value if key == "same_groups" else value[0] == value[1]
        for row in found
        for key, value in row.items()
        if key == "same_groups" or key.startswith(("macs", "params"))
    ]
    return 0 if all(equal) else 1
