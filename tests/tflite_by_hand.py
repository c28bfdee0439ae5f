"""Parts of .tflite files, to build files by hand."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect

TYPES, OPS = schema.TensorType, schema.BuiltinOperator


def tensor(name, shape, dtype, buffer=0, scale=None, zero_point=None, axis=0):
    """A tensor; buffer 0 means that it is no constant."""
    quantization = None
    if scale is not None:
        quantization = schema.QuantizationParametersT(
            scale=np.float32(scale), zeroPoint=np.int64(zero_point), quantizedDimension=axis
        )
    return schema.TensorT(
        name=name, shape=shape, type=dtype, buffer=buffer, quantization=quantization
    )


def operator(code, inputs, outputs, kind=0, options=None):
    return schema.OperatorT(
        opcodeIndex=code,
        inputs=inputs,
        outputs=outputs,
        builtinOptionsType=kind,
        builtinOptions=options,
    )


def graph(tensors, operators, inputs, outputs):
    return schema.SubGraphT(tensors=tensors, operators=operators, inputs=inputs, outputs=outputs)


def code(builtin, version=1, custom=None):
    return schema.OperatorCodeT(
        deprecatedBuiltinCode=min(builtin, 127),
        builtinCode=builtin,
        version=version,
        customCode=custom,
    )


def build(codes, graphs, buffers, **fields):
    """The bytes of a file; buffer 0 is empty, as the format asks for."""
    stored = [
        schema.BufferT(data=None if b is None else np.frombuffer(b, np.uint8))
        for b in [None, *buffers]
    ]
    model = schema.ModelT(
        version=3, operatorCodes=codes, subgraphs=graphs, buffers=stored, **fields
    )
    return flatbuffer.write(model)


def fully_connected(activation=0):
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = activation
    return schema.BuiltinOptions.FullyConnectedOptions, options


def one_constant(name, shape, dtype, data, **quantization):
    constant = tensor(name, shape, dtype, 1, **quantization)
    return inspect(build([], [graph([constant], [], [], [])], [data]))
