"""Operators of a SavedModel that do more than compute, found before it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Operators with a state of their own kind that reach nothing outside: variables, tables in
# memory, control flow, random numbers. By how their names begin.
_HARMLESS = (
    *("Assign", "Variable", "VarHandleOp", "VarIsInitializedOp", "ReadVariableOp", "Resource"),
    *("DestroyResourceOp", "DisableCopyOnRead", "TemporaryVariable", "MakeWeakResourceHandle"),
    *("If", "While", "Case", "StatefulPartitionedCall", "XlaCallModule", "TensorArray", "Stack"),
    *("Random", "Stateful", "StatelessRandomGetAlg", "Rng", "Multinomial", "TruncatedNormal"),
    *("ParameterizedTruncatedNormal", "NonDeterministicInts", "CudnnRNN", "Empty", "DeepCopy"),
    *("HashTable", "AnonymousHashTable", "MutableHashTable", "MutableDenseHashTable"),
    *("AnonymousMutable", "LookupTable", "InitializeTableV2", "Assert", "CheckNumerics"),
    *("GuaranteeConst", "Print", "_Arg", "_Retval", "GraphDefVersion"),
)
# Those that count as stateless.
_ACTING = frozenset(
    "ReadFile MatchingFiles PyFuncStateless RegisterDataset RegisterDatasetV2 CacheDataset "
    "SnapshotDataset SnapshotDatasetV2 SnapshotDatasetReader SnapshotChunkDataset "
    "InitializeTableFromTextFile GenerateVocabRemapping ImmutableConst DebugIdentity "
    "DebugNanCount DebugNumericSummary".split()
)
# What every SavedModel has for its own variables, apart from what it computes.
_SAVING = frozenset("SaveV2 RestoreV2 MergeV2Checkpoints Save Restore SaveSlices".split())
_SHOWN = 5


def check(folder: Path, mend: str) -> None:
    """Raises a ValueError that names the operators of a SavedModel that reach outside.

    Args:
        mend: what to do if one trusts it.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString((folder / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise ValueError(
            f"'{folder}' is damaged: saved_model.pb cannot be read. Export the model again, or "
            "copy it again in full."
        ) from error
    found = sorted({name for graph in content.meta_graphs for name in _acting(graph)})
    if found:
        named = ", ".join(name[:80] for name in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(
            f"the SavedModel '{folder}' has operators that reach outside the model when it is "
            f"loaded or run: {named}{more}; expected only such as compute. {mend}"
        )


def _acting(meta: Any) -> Iterator[str]:
    functions = {f.signature.name: f for f in meta.graph_def.library.function}
    run = _run(meta, functions)
    for name, nodes in _graphs(meta, functions):
        for node in nodes:
            if node.op in functions:
                continue
            if node.op in _SAVING:
                if name in run or (not name and node.name in run):
                    yield node.op
            elif not _computes(node):
                yield node.op


def _graphs(meta: Any, functions: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All nodes, by the function that they are in; those of none have no name."""
    yield "", meta.graph_def.node
    yield from ((name, function.node_def) for name, function in functions.items())


def _computes(node: Any) -> bool:
    from tensorflow.python.framework import op_def_registry

    known = op_def_registry.get(node.op)
    if known is None or node.op in _ACTING:
        return False
    if node.op == "PrintV2":
        return node.attr["output_stream"].s in (b"", b"stderr", b"stdout") or (
            node.attr["output_stream"].s.startswith(b"log(")
        )
    return not known.is_stateful or node.op.startswith(_HARMLESS)


def _run(meta: Any, functions: dict[str, Any]) -> set[str]:
    """Names of functions, and of nodes outside, that are run by more than saving."""
    nodes = {node.name: node for node in meta.graph_def.node}
    found: set[str] = set()
    waiting = [name for name in _starts(meta) if name in functions or name in nodes]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in functions:
            inner = functions[name].node_def
        else:
            inner = [nodes[name]]
            waiting += [source for source in map(_node_of, nodes[name].input) if source in nodes]
        waiting += [called for node in inner for called in _called(node) if called in functions]
    return found


def _starts(meta: Any) -> Iterator[str]:
    """What a SavedModel offers to be run: signatures, initializers, functions of its objects."""
    for signature in meta.signature_def.values():
        for info in signature.outputs.values():
            yield _node_of(info.name)
    for collection in meta.collection_def.values():
        yield from map(_node_of, collection.node_list.value)
    yield from meta.object_graph_def.concrete_functions
    for item in meta.object_graph_def.nodes:
        yield from item.function.concrete_functions
        yield item.bare_concrete_function.concrete_function_name


def _node_of(tensor: str) -> str:
    return tensor.lstrip("^").split(":")[0]


def _called(node: Any) -> Iterable[str]:
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)
