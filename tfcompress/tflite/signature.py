"""Names that a file bears outside: its signature, its inputs and outputs."""

import dataclasses
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite.flatbuffer import dtype_name, text


@dataclasses.dataclass(frozen=True)
class Input:
    """Name, shape (batch first, None) and dtype of an input, as `files.samples` takes it."""

    name: str
    shape: tuple
    dtype: str


def inputs(model) -> list[Input]:
    """The inputs of a float file, in their order."""
    graph = model.subgraphs[0]
    tensors = [graph.tensors[i] for i in graph.inputs]
    return [
        Input(t.name.decode(), (None, *(int(n) for n in t.shape[1:])), dtype_name(t))
        for t in tensors
    ]


def first_signature(model: Any) -> Any:
    """The first signature of a file's main graph; None if it has none."""
    return next((s for s in model.signatureDefs if s.subgraphIndex == 0), None)


def io_names(model: Any) -> tuple[list[str], list[str]]:
    """The names of a file's inputs and outputs, in the order of its graph.

    Returns (inputs, outputs): names in the first signature, else of the tensors; each only once.
    """
    graph, signature = model.subgraphs[0], first_signature(model)
    found = []
    for indices, entries in (
        (graph.inputs, getattr(signature, "inputs", None)),
        (graph.outputs, getattr(signature, "outputs", None)),
    ):
        told = {entry.tensorIndex: text(entry.name) for entry in entries or []}
        names = [told.get(i) or text(graph.tensors[i].name) for i in indices]
        # The format does not ask for names that differ.
        found.append([f"{n}:{i}" if n in names[:i] else n for i, n in enumerate(names)])
    return found[0], found[1]


# Names that the converter of a large model gives, to tell the order of inputs and outputs.
INPUT, OUTPUT = "tfcompress_input_", "tfcompress_output_"


def in_order(model) -> None:
    """Brings inputs and outputs into the order that `INPUT` and `OUTPUT` names tell, if they do."""
    signatures = model.signatureDefs
    entries = [*signatures[0].inputs, *signatures[0].outputs] if signatures else []
    if not entries or not all(e.name.startswith(b"tfcompress_") for e in entries):
        return
    graph = model.subgraphs[0]
    by_name = {entry.name.decode(): entry.tensorIndex for entry in entries}
    graph.inputs = [by_name[name] for name in sorted(by_name) if name.startswith(INPUT)]
    graph.outputs = [by_name[name] for name in sorted(by_name) if name.startswith(OUTPUT)]
    model.signatureDefs = []


def name_inputs_and_outputs(
    model, inputs: list[str], outputs: list[str], key: str = "serve"
) -> None:
    """Gives a file a signature if it has none, and its tensors the names of the Keras model's."""
    in_order(model)
    graph = model.subgraphs[0]
    if not model.signatureDefs:
        maps = (_tensor_maps(inputs, graph.inputs), _tensor_maps(outputs, graph.outputs))
        model.signatureDefs = [schema.SignatureDefT(*maps, key.encode(), 0)]
    signature = model.signatureDefs[0]
    for entry in (*signature.outputs, *signature.inputs):
        graph.tensors[entry.tensorIndex].name = entry.name
    kept = {*graph.inputs, *graph.outputs}
    taken = {bytes(graph.tensors[index].name) for index in kept}
    for index, tensor in enumerate(graph.tensors):
        if index not in kept:
            while bytes(tensor.name or b"") in taken:
                tensor.name = bytes(tensor.name or b"") + b"_"
            taken.add(bytes(tensor.name))


def _tensor_maps(names: list[str], indices) -> list:
    pairs = zip(names, indices, strict=True)
    return [schema.TensorMapT(name.encode(), int(index)) for name, index in pairs]
