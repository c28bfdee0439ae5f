"""A small stand-in for the headers of TFLite Micro, to compile generated source against.

Signatures follow tflite-micro of August 2026; the methods of the op resolver are listed here anew,
so that a wrong name in the package does not compile. The interpreter copies input 0 to output 0.
"""

from pathlib import Path

METHODS = """
Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BatchMatMul BatchToSpaceNd BroadcastArgs
BroadcastTo CallOnce Cast Ceil CircularBuffer Concatenation Conv2D Cos CumSum Decode Delay
DepthToSpace DepthwiseConv2D Dequantize DetectionPostprocess Div DynamicUpdateSlice EmbeddingLookup
Energy Elu Equal EthosU Exp ExpandDims FftAutoScale Fill FilterBank FilterBankLog
FilterBankSquareRoot FilterBankSpectralSubtraction Floor FloorDiv FloorMod Framer FullyConnected
Gather GatherNd Greater GreaterEqual HardSwish If Irfft L2Normalization L2Pool2D LeakyRelu Less
LessEqual Log LogicalAnd LogicalNot LogicalOr Logistic LogSoftmax Maximum MaxPool2D MirrorPad Mean
Minimum Mul Neg NotEqual OverlapAdd Pack Pad PadV2 PCAN Prelu Quantize ReadVariable ReduceAll
ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Rfft Round
Rsqrt SelectV2 Shape Sin Slice Softmax SpaceToBatchNd SpaceToDepth Split SplitV Squeeze Sqrt Square
SquaredDifference StridedSlice Stacker Sub Sum Svdf Tanh TransposeConv Transpose Unpack
UnidirectionalSequenceLSTM VarHandle While Window ZerosLike
""".split()

COMMON = """\
#pragma once
#include <cstddef>
#include <cstdint>
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
union TfLitePtrUnion {
  int32_t* i32;
  uint32_t* u32;
  int64_t* i64;
  float* f;
  bool* b;
  int16_t* i16;
  uint8_t* uint8;
  int8_t* int8;
};
struct TfLiteTensor { TfLitePtrUnion data; };
"""
RESOLVER = """\
#pragma once
#include "tensorflow/lite/c/common.h"
namespace tflite {
template <unsigned int tOpCount>
class MicroMutableOpResolver {
 public:
%s
 private:
  TfLiteStatus One() { return used_++ < tOpCount ? kTfLiteOk : kTfLiteError; }
  unsigned int used_ = 0;
};
}
"""
INTERPRETER = """\
#pragma once
#include "tensorflow/lite/schema/schema_generated.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
namespace tflite {
class MicroAllocator {
 public:
  static MicroAllocator* Create(uint8_t*, size_t) { return nullptr; }
};
class MicroResourceVariables {
 public:
  static MicroResourceVariables* Create(MicroAllocator*, int) { return nullptr; }
};
class MicroInterpreter {
 public:
  template <class Resolver>
  MicroInterpreter(const Model*, const Resolver&, uint8_t* arena, size_t size,
                   MicroResourceVariables* = nullptr) : room_(size) {
    input_.data.uint8 = output_.data.uint8 = arena;
  }
  template <class Resolver>
  MicroInterpreter(const Model*, const Resolver&, MicroAllocator*, MicroResourceVariables*) {
    static uint8_t memory[4096];
    input_.data.uint8 = output_.data.uint8 = memory;
  }
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  TfLiteStatus Invoke() { return kTfLiteOk; }
  TfLiteTensor* input(size_t) { return &input_; }
  TfLiteTensor* output(size_t) { return &output_; }
  size_t arena_used_bytes() const { return room_; }

 private:
  TfLiteTensor input_, output_;
  size_t room_ = 0;
};
}
"""
SCHEMA = """\
#pragma once
#include <cstdint>
#include <cstring>
#define TFLITE_SCHEMA_VERSION (3)
namespace tflite {
struct Model {
  unsigned char bytes[8];
  uint32_t version() const { return std::memcmp(bytes + 4, "TFL3", 4) == 0 ? 3 : 0; }
};
inline const Model* GetModel(const void* data) { return static_cast<const Model*>(data); }
}
"""
LOG = """\
#pragma once
#include <cstdarg>
#include <cstdio>
inline void MicroPrintf(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline void MicroPrintf(const char* format, ...) {
  va_list rest;
  va_start(rest, format);
  std::vprintf(format, rest);
  std::printf("\\n");
  va_end(rest);
}
"""


def write_stub(folder: Path) -> Path:
    """Write the headers; returns the folder for the include path."""
    methods = "\n".join(f"  TfLiteStatus Add{name}() {{ return One(); }}" for name in METHODS)
    headers = {
        "c/common.h": COMMON,
        "micro/micro_mutable_op_resolver.h": RESOLVER % methods,
        "micro/micro_interpreter.h": INTERPRETER,
        "micro/micro_log.h": LOG,
        "micro/system_setup.h": "namespace tflite { inline void InitializeTarget() {} }\n",
        "schema/schema_generated.h": SCHEMA,
    }
    for name, text in headers.items():
        path = folder / "tensorflow/lite" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
